//! Prompts that a model answers while it trains: texts and chats as tokens, rendered as the server renders them.

use model_qwen::RenderOptions;
use serde_json::{Map, Value, json};

use crate::chat_format::ChatFormat;
use crate::data::format::describe;

/// The prompt of a record, as its data has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// A text, or a list of messages.
    pub content: Value,
    /// Token ids.
    pub tokens: Vec<u32>,
}

/// What a prompt may be, for messages.
pub(crate) const EXPECTED: &str =
    "a text, or a list of messages with `role` and `content` that ends before an answer";

impl Prompt {
    /// A prompt of `content`: a text, which is what a user says where the model has a chat template, or messages. `tools` are
    /// function schemas for the template.
    ///
    /// # Errors
    /// What is wrong with it, to be put after its place: no prompt at all, a list of messages for a model without a chat
    /// template, and messages that the template refuses.
    pub fn new(content: Value, tools: Option<Value>, format: &ChatFormat) -> Result<Self, String> {
        let tokens = match &content {
            Value::String(text) if !text.trim().is_empty() => text_tokens(text, tools, format),
            Value::Array(messages) if !messages.is_empty() => {
                check_messages(messages)?;
                chat_tokens(messages, tools, format)
            }
            Value::String(_) => return Err(format!("expected {EXPECTED}, found an empty text")),
            Value::Array(_) => return Err(format!("expected {EXPECTED}, found an empty list")),
            other => {
                let found = describe(Some(other));
                return Err(format!("expected {EXPECTED}, found {found}"));
            }
        }?;
        match tokens.is_empty() {
            true => Err("expected a prompt of at least one token, found none".to_owned()),
            false => Ok(Self { content, tokens }),
        }
    }

    /// What is said last, for people to read.
    #[must_use]
    pub fn shown(&self) -> String {
        let last = |messages: &Vec<Value>| messages.last()?.get("content").cloned();
        match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(messages) => match last(messages) {
                Some(Value::String(text)) => text,
                other => other.unwrap_or_default().to_string(),
            },
            other => other.to_string(),
        }
    }
}

/// The prompt of a record's `prompt` or `messages`; an answer at the end of `messages` is left out.
///
/// # Errors
/// As [`Prompt::new`], and a record with neither.
pub(crate) fn of_record(
    fields: &Map<String, Value>,
    format: &ChatFormat,
) -> Result<Prompt, String> {
    let tools = fields.get("tools").filter(|tools| !tools.is_null());
    let content = match (fields.get("prompt"), fields.get("messages")) {
        (Some(prompt), _) if !prompt.is_null() => prompt.clone(),
        (_, Some(Value::Array(messages))) => {
            let mut messages = messages.clone();
            let answers = |message: &Value| message.get("role") == Some(&json!("assistant"));
            if messages.last().is_some_and(answers) {
                messages.pop();
            }
            Value::Array(messages)
        }
        (_, Some(messages)) if !messages.is_null() => {
            let found = describe(Some(messages));
            return Err(format!("field `messages`: expected a list, found {found}"));
        }
        _ => {
            let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
            let found = match keys.is_empty() {
                true => "no field".to_owned(),
                false => keys.join(", "),
            };
            return Err(format!(
                "expected a record with `prompt` or `messages`, found {found}"
            ));
        }
    };
    Prompt::new(content, tools.cloned(), format)
}

fn check_messages(messages: &[Value]) -> Result<(), String> {
    for (index, message) in messages.iter().enumerate() {
        for field in ["role", "content"] {
            let is_there = match message.get(field) {
                Some(Value::String(_)) => true,
                Some(value) => field == "content" && (value.is_array() || value.is_null()),
                None => field == "content" && message.get("tool_calls").is_some(),
            };
            if !is_there {
                let found = describe(message.get(field));
                return Err(format!(
                    "field `messages[{index}].{field}`: expected a text, found {found}"
                ));
            }
        }
    }
    match messages.last().and_then(|message| message.get("role")) {
        Some(role) if role == "assistant" => Err(format!(
            "expected {EXPECTED}, found an answer of the assistant at its end"
        )),
        _ => Ok(()),
    }
}

fn text_tokens(text: &str, tools: Option<Value>, format: &ChatFormat) -> Result<Vec<u32>, String> {
    let encode = |with_special: bool| {
        let tokens = format.tokenizer.encode(text, with_special);
        tokens.map_err(|error| error.to_string())
    };
    match &format.template {
        None => encode(true),
        // Rendered already.
        Some(_) if format.facts.has_marker(text) => encode(false),
        Some(_) => chat_tokens(&[json!({"role": "user", "content": text})], tools, format),
    }
}

fn chat_tokens(
    messages: &[Value],
    tools: Option<Value>,
    format: &ChatFormat,
) -> Result<Vec<u32>, String> {
    let Some(template) = &format.template else {
        return Err("expected a text, found messages: the model has no chat template".to_owned());
    };
    let options = RenderOptions {
        add_generation_prompt: true,
        tools,
        ..RenderOptions::default()
    };
    let text = template.render(messages, &options);
    let text = text.map_err(|error| error.to_string())?;
    let tokens = format.tokenizer.encode(&text, false);
    tokens.map_err(|error| error.to_string())
}
