//! Bodies of `/v1/chat/completions`.

use model_qwen::{RenderOptions, TemplateError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::logprobs::ChatLogprobs;
use super::usage::Usage;
use crate::error::ApiError;
use crate::state::AppState;

/// Fields of a chat request besides [`super::common::SamplingFields`].
#[derive(Clone, Debug, Deserialize)]
pub struct ChatFields {
    /// Served name or adapter name.
    pub model: Option<String>,
    /// The conversation and how it is rendered.
    pub messages: Vec<Map<String, Value>>,
    /// Older name of `max_completion_tokens`.
    pub max_tokens: Option<usize>,
    /// Most tokens to generate; the rest of the context by default.
    pub max_completion_tokens: Option<usize>,
    /// Whether to send log-probabilities.
    pub logprobs: Option<bool>,
    /// How many alternatives per token.
    pub top_logprobs: Option<usize>,
    /// `none`, `auto`, `required` or a function.
    pub tool_choice: Option<Value>,
}

/// How a conversation becomes a prompt; also read by `/tokenize`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TemplateFields {
    /// Tools that the template may show.
    pub tools: Option<Vec<Value>>,
    /// End with the start of an assistant turn; true by default unless the final message is continued.
    pub add_generation_prompt: Option<bool>,
    /// Leave the last message open.
    pub continue_final_message: Option<bool>,
    /// More variables for the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Let the tokenizer add its own special tokens to what the template wrote; false by default.
    pub add_special_tokens: Option<bool>,
}

/// Renders a conversation.
///
/// # Errors
/// 400 if a message is malformed, the template refuses it, or there is no template.
pub fn render(
    state: &AppState,
    messages: &[Map<String, Value>],
    fields: &TemplateFields,
) -> Result<String, ApiError> {
    let Some(template) = &state.model().chat_template else {
        return Err(ApiError::bad_request(
            "messages",
            "This model has no chat template; start the server with --chat-template or use /v1/completions.",
        ));
    };
    if messages.is_empty() {
        return Err(ApiError::bad_request(
            "messages",
            "`messages` must not be empty.",
        ));
    }
    let continue_final_message = fields.continue_final_message.unwrap_or(false);
    for (i, message) in messages.iter().enumerate() {
        check(i, message)?;
    }
    let messages: Vec<Value> = messages.iter().cloned().map(Value::Object).collect();
    let options = RenderOptions {
        add_generation_prompt: fields
            .add_generation_prompt
            .unwrap_or(!continue_final_message),
        continue_final_message,
        tools: fields
            .tools
            .clone()
            .filter(|tools| !tools.is_empty())
            .map(Value::Array),
        extra: fields.chat_template_kwargs.clone().unwrap_or_default(),
    };
    template.render(&messages, &options).map_err(template_error)
}

/// Refuses what a template would show as nothing: a message without content (only a tool call may be all there is) and
/// parts that are not text.
fn check(i: usize, message: &Map<String, Value>) -> Result<(), ApiError> {
    let fail = |field: &str, expected: &str, found: &str| {
        let param = format!("messages[{i}].{field}");
        Err(ApiError::bad_request(
            &param,
            format!("`{param}`: expected {expected}, found {found}."),
        ))
    };
    match message.get("content") {
        None | Some(Value::Null) if message.get("role").is_none_or(|role| role != "assistant") => {
            fail("content", "a string or a list of text parts", "nothing")
        }
        Some(Value::Array(parts)) => {
            let kinds = parts
                .iter()
                .map(|part| part.get("type").and_then(Value::as_str));
            match kinds
                .enumerate()
                .find_map(|(j, kind)| Some((j, kind.filter(|&kind| kind != "text")?)))
            {
                Some((j, kind)) => fail(
                    &format!("content[{j}].type"),
                    "`text` (the model reads only text)",
                    kind,
                ),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Names the field that the template stumbled over.
fn template_error(error: TemplateError) -> ApiError {
    let message = error.to_string();
    match error {
        TemplateError::Message { index, field, .. } => {
            ApiError::bad_request(format!("messages[{index}]{field}"), message)
        }
        TemplateError::ContinueFinalMessage(_) => {
            ApiError::bad_request("continue_final_message", message)
        }
        TemplateError::Raised(_)
        | TemplateError::Render(_)
        | TemplateError::File { .. }
        | TemplateError::Syntax { .. } => ApiError::bad_request("messages", message),
    }
}

/// The answer without streaming.
#[derive(Debug, Serialize)]
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
    /// Token counts.
    pub usage: Usage,
}

/// One choice of a [`ChatResponse`].
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    /// 0-based.
    pub index: usize,
    /// What the model said.
    pub message: AssistantMessage,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// The stop string or token that ended it; null for the end-of-sequence token.
    pub stop_reason: Value,
}

/// The message of a [`ChatChoice`].
#[derive(Debug, Serialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
}

/// One event of a stream.
#[derive(Debug, Serialize)]
pub struct ChatChunk<'a> {
    /// The same in every event.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// The same in every event.
    pub created: u64,
    /// The name the request used.
    pub model: &'a str,
    /// One choice, or none in the usage event.
    pub choices: Vec<ChatChunkChoice>,
    /// Absent unless asked for; then null until the usage is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Value>,
}

/// The choice of a [`ChatChunk`].
#[derive(Debug, Serialize)]
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
}

/// New parts of a message.
#[derive(Debug, Default, Serialize)]
pub struct ChatDelta {
    /// `assistant`, in the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
