//! Bodies of `/v1/completions`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::Body;
use super::logprobs::{CompletionLogprobs, PromptLogprobs};
use super::usage::Usage;
use crate::error::ApiError;

/// vLLM's and OpenAI's default for this endpoint.
pub const DEFAULT_MAX_TOKENS: usize = 16;

/// Fields of a completion request besides [`super::common::SamplingFields`].
#[derive(Clone, Debug, Deserialize)]
pub struct CompletionFields {
    /// Served name or adapter name.
    pub model: Option<String>,
    /// One prompt or several, as text or token ids.
    pub prompt: Prompt,
    /// Most tokens to generate; 16 by default. 0 is allowed with `echo`.
    pub max_tokens: Option<usize>,
    /// How many alternatives per token; absent = no log-probabilities.
    pub logprobs: Option<i64>,
    /// Begin the answer with the prompt.
    pub echo: Option<bool>,
    /// What follows the answer, for models that fill in the middle.
    pub suffix: Option<String>,
    /// Let the tokenizer add its special tokens to a text prompt; true by default.
    pub add_special_tokens: Option<bool>,
}

impl CompletionFields {
    /// Reads the fields of a body, and takes the prompt out of it.
    ///
    /// # Errors
    /// 400 with the field that is missing or has the wrong type.
    pub(crate) fn take(body: &mut Body) -> Result<Self, ApiError> {
        match body.take("prompt") {
            // Texts are the long ones.
            Some(Value::String(text)) => {
                body.put("prompt", Value::from(""));
                Ok(Self {
                    prompt: Prompt::Text(text),
                    ..body.read()?
                })
            }
            Some(other) => {
                body.put("prompt", other);
                body.read()
            }
            None => body.read(),
        }
    }
}

/// `prompt` in its four forms.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids or a list of lists of token ids"
)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptItem {
    /// A text to tokenize.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// The prompts one by one.
    ///
    /// # Errors
    /// 400 if there is none.
    pub fn into_items(self) -> Result<Vec<PromptItem>, ApiError> {
        let items: Vec<PromptItem> = match self {
            Self::Text(text) => vec![PromptItem::Text(text)],
            // An empty list could be any of the three lists, and is refused below.
            Self::Tokens(ids) if ids.is_empty() => Vec::new(),
            Self::Tokens(ids) => vec![PromptItem::Tokens(ids)],
            Self::Texts(texts) => texts.into_iter().map(PromptItem::Text).collect(),
            Self::TokenLists(lists) => lists.into_iter().map(PromptItem::Tokens).collect(),
        };
        if items.is_empty() {
            return Err(ApiError::bad_request(
                "prompt",
                "`prompt` must not be empty.",
            ));
        }
        Ok(items)
    }
}

/// The answer without streaming, and one event of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CompletionResponse<'a> {
    /// `cmpl-…`.
    pub id: &'a str,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name the request used.
    pub model: &'a str,
    /// Index = prompt × n + choice.
    pub choices: Vec<CompletionChoice>,
    /// The same for the same server and model.
    pub system_fingerprint: &'a str,
    /// Token counts; in a stream absent unless asked for, then null until due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Value>,
}

impl CompletionResponse<'_> {
    /// A [`Usage`] as the field holds it.
    pub fn usage(usage: Usage) -> Option<Value> {
        serde_json::to_value(usage).ok()
    }
}

/// One choice.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CompletionChoice {
    /// Index = prompt × n + choice.
    pub index: usize,
    /// The text, or what is new of it.
    pub text: String,
    /// If asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null before the end of a stream.
    pub finish_reason: Option<&'static str>,
    /// The stop string or token that ended it; null for the end-of-sequence token.
    pub stop_reason: Value,
    /// The new tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// The prompt's tokens, if asked for; in a stream once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// One entry per token of the prompt, if asked for; the first is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}
