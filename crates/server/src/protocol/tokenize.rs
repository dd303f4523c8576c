//! Bodies of `/tokenize` and `/detokenize`, vLLM's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Body of `/tokenize`: `prompt` or `messages` (then with [`super::chat::TemplateFields`]).
#[derive(Debug, Deserialize)]
pub struct TokenizeFields {
    /// Served name or adapter name.
    pub model: Option<String>,
    /// A text.
    pub prompt: Option<String>,
    /// A conversation.
    pub messages: Option<Vec<Map<String, Value>>>,
    /// Also send the tokens as text.
    pub return_token_strs: Option<bool>,
}

/// Answer of `/tokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tokenized {
    /// Number of tokens.
    pub count: usize,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The vocabulary's entries for the ids, if asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Body of `/detokenize`.
#[derive(Debug, Deserialize)]
pub struct DetokenizeFields {
    /// Served name or adapter name.
    pub model: Option<String>,
    /// Token ids.
    pub tokens: Vec<u32>,
}

/// Answer of `/detokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Detokenized {
    /// The text, special tokens included.
    pub prompt: String,
}
