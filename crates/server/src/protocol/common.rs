//! Fields that chat and text completions share.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::body::Body;
use super::logprobs::LogprobLimit;
use super::object::object;
pub use super::stream_options::StreamOptions;
use crate::error::ApiError;
use crate::request_id;
use crate::state::AppState;

/// Most choices per prompt.
const MAX_N: usize = 128;
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
    /// How many of the last tokens the penalties look at; only Ollama's API has it.
    #[serde(skip)]
    pub penalty_window: Option<usize>,
    /// Token id (as text) to a number added to its logit.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// The only tokens that may come.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Words that may not come.
    pub bad_words: Option<Texts>,
    /// Choice `i` uses `seed + i`.
    pub seed: Option<i64>,
    /// Choices per prompt.
    pub n: Option<usize>,
    /// Tokens before any stop condition counts.
    pub min_tokens: Option<usize>,
    /// Strings that end the text.
    pub stop: Option<Texts>,
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
    #[serde(default, deserialize_with = "object")]
    pub stream_options: Option<StreamOptions>,
    /// Show tokens in logprobs as `token_id:N`.
    pub return_tokens_as_token_ids: Option<bool>,
    /// Send token ids beside the texts.
    pub return_token_ids: Option<bool>,
    /// Log-probabilities of the prompt's tokens, with this many alternatives each; -1 = the whole vocabulary.
    pub prompt_logprobs: Option<i64>,
    /// Keep this many tokens of the prompt; -1 = as many as fit.
    pub truncate_prompt_tokens: Option<i64>,
    /// Which of them.
    pub truncation_side: Option<TruncationSide>,
    /// The answer's id, unless the header `X-Request-Id` has one.
    pub request_id: Option<String>,
    /// Separates prefix-cache entries.
    pub cache_salt: Option<String>,
}

/// One string or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    pub(crate) fn of(texts: Option<&Self>) -> Vec<String> {
        match texts {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text.clone()],
            Some(Self::Many(texts)) => texts.clone(),
        }
    }
}

/// `truncation_side`: the end of the prompt that is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruncationSide {
    /// Its beginning.
    #[default]
    Left,
    /// Its end.
    Right,
}

/// Checks a `request_id`.
///
/// # Errors
/// 400 for a text that is too long to be an id, or that can't be shown on one line.
pub(crate) fn check_request_id(given: Option<&str>) -> Result<(), ApiError> {
    const MAX_LEN: usize = request_id::MAX_LEN;
    let Some(id) = given else { return Ok(()) };
    let control = id.chars().find(|c| c.is_control());
    let found = match control {
        Some(c) => format!("the control character U+{:04X}", u32::from(c)),
        None if id.len() > MAX_LEN => format!("{} bytes", id.len()),
        None => return Ok(()),
    };
    let expected = format!("a printable text of at most {MAX_LEN} bytes");
    Err(ApiError::expected("request_id", &expected, &found))
}

impl SamplingFields {
    /// The same for APIs that take a `top_p` of 0, which vLLM's does not: a share of nothing leaves the most likely token.
    #[must_use]
    pub(super) fn with_top_p_of_zero(self) -> Self {
        match self.top_p {
            Some(0.0) => Self {
                top_p: None,
                top_k: Some(1),
                ..self
            },
            _ => self,
        }
    }

    /// Reads and checks the shared fields; a token has no more alternatives than `limit` says.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn from_body(body: &Body, limit: LogprobLimit) -> Result<Self, ApiError> {
        let mut fields: Self = body.read()?;
        check_request_id(fields.request_id.as_deref())?;
        let options = fields.stream_options.unwrap_or_default();
        let asks =
            options.include_usage == Some(true) || options.continuous_usage_stats == Some(true);
        if asks && !fields.stream() {
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
        let unusable = |param: &str, expected: &str, found: String| {
            let message = format!("`{param}` must be {expected}, found {found}.");
            Err(ApiError::bad_request(param, message))
        };
        match fields.truncate_prompt_tokens {
            Some(n) if n != -1 && n < 1 => {
                let expected = "-1 (the longest prompt) or at least 1";
                return unusable("truncate_prompt_tokens", expected, n.to_string());
            }
            _ => {}
        }
        if let Some(given) = fields.prompt_logprobs {
            let num = limit.num("prompt_logprobs", given)?;
            if fields.stream() {
                let expected = "absent with `stream`: true";
                return unusable("prompt_logprobs", expected, "both".to_owned());
            }
            fields.prompt_logprobs = i64::try_from(num).ok();
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

    /// What a stream shows besides text.
    pub(crate) fn shown_usage(&self, state: &AppState) -> StreamOptions {
        let options = self.stream_options.unwrap_or_default();
        match state.api().enable_force_include_usage {
            true => StreamOptions {
                include_usage: Some(true),
                ..options
            },
            false => options,
        }
    }

    /// Whether log-probabilities show tokens as `token_id:N`.
    pub(crate) fn tokens_as_ids(&self, state: &AppState) -> bool {
        let asked = self.return_tokens_as_token_ids;
        asked.unwrap_or(state.api().return_tokens_as_token_ids)
    }

    /// Alternatives per token of the prompt, if its log-probabilities are asked for.
    pub fn prompt_logprobs(&self) -> Option<usize> {
        self.prompt_logprobs.and_then(|n| usize::try_from(n).ok())
    }

    /// `bad_words` as they were given.
    pub(crate) fn bad_words_given(&self) -> Vec<String> {
        Texts::of(self.bad_words.as_ref())
    }

    pub(super) fn stop_strings(&self) -> Vec<String> {
        Texts::of(self.stop.as_ref())
    }
}
