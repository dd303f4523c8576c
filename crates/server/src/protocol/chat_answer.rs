//! Answers of `/v1/chat/completions`.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::logprobs::{ChatLogprobs, PromptLogprobs};
use super::usage::Usage;

/// The answer without streaming.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name the request used.
    pub model: String,
    /// In the order of `index`.
    pub choices: Vec<ChatChoice>,
    /// The same for the same server and model.
    pub system_fingerprint: String,
    /// Token counts.
    pub usage: Usage,
    /// The prompt's tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// One entry per token of the prompt, if asked for; the first is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// One choice of a [`ChatResponse`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatChoice {
    /// 0-based.
    pub index: usize,
    /// What the model said.
    pub message: AssistantMessage,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
    /// The stop string or token that ended it; null for the end-of-sequence token.
    pub stop_reason: Value,
    /// Its tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// The message of a [`ChatChoice`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct AssistantMessage {
    /// `assistant`, or the role of a last message that is continued.
    pub role: String,
    /// Its text; null if there are only calls or reasoning.
    pub content: Option<String>,
    /// What the model thought before.
    #[serde(flatten)]
    pub reasoning: Reasoning,
    /// What the model calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// Reasoning under both of its names: vLLM's, and the one that DeepSeek's API and other servers have.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Reasoning {
    /// vLLM's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl From<String> for Reasoning {
    fn from(text: String) -> Self {
        Self {
            reasoning: Some(text.clone()),
            reasoning_content: Some(text),
        }
    }
}

/// A call, or its beginning.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ToolCall {
    /// `call_…`.
    pub id: String,
    /// `function`.
    pub r#type: &'static str,
    /// What is called.
    pub function: CalledFunction,
}

/// Part of [`ToolCall`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct CalledFunction {
    /// Its name.
    pub name: String,
    /// JSON; empty at the beginning of a streamed call.
    pub arguments: String,
}

/// New parts of a call.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ToolCallDelta {
    /// 0-based, among the calls of a choice.
    pub index: usize,
    /// The call's beginning, or more of its arguments.
    #[serde(flatten)]
    pub part: ToolCallPart,
}

/// Part of [`ToolCallDelta`].
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ToolCallPart {
    /// A call without arguments.
    Begin(ToolCall),
    /// More arguments.
    Arguments {
        /// The object they are in.
        function: MoreArguments,
    },
}

/// Part of [`ToolCallPart`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct MoreArguments {
    /// JSON.
    pub arguments: String,
}

/// One event of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatChunk<'a> {
    /// The same in every event.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// The same in every event.
    pub created: u64,
    /// The name the request used.
    pub model: &'a str,
    /// The same for the same server and model.
    pub system_fingerprint: &'a str,
    /// One choice, or none in the usage event.
    pub choices: Vec<ChatChunkChoice>,
    /// The prompt's tokens, in the first event, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// Absent unless asked for; then null until the usage is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Value>,
}

/// The choice of a [`ChatChunk`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatChunkChoice {
    /// 0-based.
    pub index: usize,
    /// What is new.
    pub delta: ChatDelta,
    /// Of the new tokens.
    pub logprobs: Option<ChatLogprobs>,
    /// Null until the end.
    pub finish_reason: Option<&'static str>,
    /// As in [`ChatChoice`], only at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    /// The new tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// New parts of a message.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct ChatDelta {
    /// The answer's role, in the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More text, which may be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More reasoning.
    #[serde(flatten)]
    pub reasoning: Reasoning,
    /// More of a call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}
