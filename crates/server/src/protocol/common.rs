//! Fields that chat and text completions share.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::body::Body;
use crate::error::ApiError;

/// Most choices per prompt.
const MAX_N: usize = 128;
/// Most alternatives per token in `logprobs`.
pub const MAX_LOGPROBS: usize = 20;
/// Fields that would change the answer and that this server does not implement: refused rather than ignored.
const UNSUPPORTED: [&str; 11] = [
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "suffix",
    "use_beam_search",
    "prompt_embeds",
    "logits_processors",
    "prompt_logprobs",
    "audio",
];

/// Sampling, stopping and streaming fields of `/v1/chat/completions` and `/v1/completions`; absent and null are the same.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SamplingFields {
    /// Softmax temperature, 0 = greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// 0 or -1 = off.
    pub top_k: Option<i64>,
    /// Least probability, as a fraction of the best token's.
    pub min_p: Option<f32>,
    /// Multiplicative penalty on tokens of prompt and output.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from tokens of the output.
    pub presence_penalty: Option<f32>,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: Option<f32>,
    /// Token id (as text) to a number added to its logit.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Choice `i` uses `seed + i`.
    pub seed: Option<i64>,
    /// Choices per prompt.
    pub n: Option<usize>,
    /// Tokens before any stop condition counts.
    pub min_tokens: Option<usize>,
    /// Strings that end the text.
    pub stop: Option<Stop>,
    /// Tokens that end the text.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Go on after the end-of-sequence token.
    pub ignore_eos: Option<bool>,
    /// Keep the stop string (or token) in the text.
    pub include_stop_str_in_output: Option<bool>,
    /// Leave special tokens out of the text; true by default.
    pub skip_special_tokens: Option<bool>,
    /// Answer as server-sent events.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Show tokens in logprobs as `token_id:N`.
    pub return_tokens_as_token_ids: Option<bool>,
    /// Separates prefix-cache entries.
    pub cache_salt: Option<String>,
    /// Only `{"type": "text"}` is implemented.
    pub response_format: Option<ResponseFormat>,
}

/// `response_format`.
#[derive(Clone, Debug, Deserialize)]
pub struct ResponseFormat {
    /// `text`, `json_object`, `json_schema`.
    pub r#type: String,
}

/// `stop`: one string or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// Send usage in a last chunk without choices.
    pub include_usage: Option<bool>,
    /// Send usage so far in every chunk.
    pub continuous_usage_stats: Option<bool>,
}

impl SamplingFields {
    /// Reads and checks the shared fields.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn from_body(body: &Body) -> Result<Self, ApiError> {
        let fields: Self = body.read()?;
        if let Some(name) = UNSUPPORTED.iter().find(|name| body.has(name)) {
            return Err(ApiError::bad_request(
                *name,
                format!("`{name}` is not supported."),
            ));
        }
        match &fields.response_format {
            Some(format) if format.r#type != "text" => {
                let message = format!(
                    "`response_format`: the type `{}` is not supported, only `text`.",
                    format.r#type
                );
                return Err(ApiError::bad_request("response_format.type", message));
            }
            _ => {}
        }
        if fields.stream_options.is_some() && !fields.stream() {
            return Err(ApiError::bad_request(
                "stream_options",
                "`stream_options` is only allowed with `stream`: true.",
            ));
        }
        if !(1..=MAX_N).contains(&fields.n()) {
            let message = format!("`n` must be between 1 and {MAX_N}, found {}.", fields.n());
            return Err(ApiError::bad_request("n", message));
        }
        if fields.stop_strings().iter().any(String::is_empty) {
            return Err(ApiError::bad_request(
                "stop",
                "`stop` must not contain an empty string.",
            ));
        }
        Ok(fields)
    }

    /// Choices per prompt.
    pub fn n(&self) -> usize {
        self.n.unwrap_or(1)
    }

    /// Whether to answer as a stream.
    pub fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(super) fn stop_strings(&self) -> Vec<String> {
        match &self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Many(texts)) => texts.clone(),
        }
    }
}
