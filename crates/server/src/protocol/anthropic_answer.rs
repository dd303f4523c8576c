//! Answers of `/v1/messages` and `/v1/messages/count_tokens`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::usage::Usage;

/// The answer without streaming, or its beginning.
#[derive(Debug, Serialize)]
pub struct Message {
    /// `msg_…`.
    pub id: String,
    /// `message`.
    pub r#type: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// What the model thought, said and called.
    pub content: Vec<ContentBlock>,
    /// The name the request used.
    pub model: String,
    /// `end_turn`, `max_tokens`, `stop_sequence`, `tool_use` or `model_context_window_exceeded`.
    pub stop_reason: Option<&'static str>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<String>,
    /// Token counts.
    pub usage: MessageUsage,
}

/// A part of a [`Message`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentBlock {
    /// What the model thought.
    Thinking {
        /// Its text.
        thinking: String,
        /// Empty: thoughts are not signed here.
        signature: &'static str,
    },
    /// What it said.
    Text {
        /// Its text.
        text: String,
    },
    /// A tool that it calls.
    ToolUse {
        /// `toolu_…`.
        id: String,
        /// Name of the tool.
        name: String,
        /// Arguments.
        input: Map<String, Value>,
    },
}

/// `usage` of a [`Message`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MessageUsage {
    /// Prompt tokens that were computed.
    pub input_tokens: usize,
    /// Prompt tokens that an entry of the cache was made for: the server doesn't count them.
    pub cache_creation_input_tokens: usize,
    /// Prompt tokens found in the cache.
    pub cache_read_input_tokens: usize,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// What they were for, where answers are split into thoughts and text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens_details: Option<OutputTokensDetails>,
}

/// Part of [`MessageUsage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutputTokensDetails {
    /// Tokens of thoughts.
    pub thinking_tokens: usize,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        let details = usage.completion_tokens_details;
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
            output_tokens_details: details.map(|details| OutputTokensDetails {
                thinking_tokens: details.reasoning_tokens,
            }),
        }
    }
}

/// Answer of `/v1/messages/count_tokens`.
#[derive(Debug, Serialize)]
pub struct TokenCount {
    /// Tokens of the prompt that the template makes of the request.
    pub input_tokens: usize,
}
