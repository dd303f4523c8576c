//! Anthropic's messages as OpenAI's: results of tools become messages of their own, thoughts and calls fields.

use std::collections::HashMap;

use model_qwen::json_type;
use serde_json::{Map, Value, json};

use super::blocks::{self, Block};
use super::system;
use crate::error::ApiError;

/// A conversation in OpenAI's form.
#[derive(Debug)]
pub(super) struct Turns {
    /// The messages.
    pub(super) messages: Vec<Map<String, Value>>,
    /// Whether the answer goes on with the last one.
    pub(super) is_continued: bool,
}

/// What is known while the messages are read.
#[derive(Default)]
struct Reader {
    messages: Vec<Map<String, Value>>,
    /// Instructions that wait for the next turn of the user.
    pending: String,
    /// Names of called tools.
    names: HashMap<String, String>,
}

/// Reads `messages` and `system`.
pub(super) fn read(messages: Vec<Value>, system: Option<Value>) -> Result<Turns, ApiError> {
    let mut instructions = match system {
        None | Some(Value::Null) => String::new(),
        Some(system) => system::text("system", system)?,
    };
    let mut reader = Reader::default();
    let mut is_leading = true;
    for (i, message) in messages.into_iter().enumerate() {
        let place = format!("messages[{i}]");
        let (role, content) = parts(&place, message)?;
        let place = format!("{place}.content");
        is_leading &= role == "system";
        match role.as_str() {
            "system" => {
                let text = system::text(&place, content.unwrap_or_default())?;
                match is_leading {
                    true => system::add(&mut instructions, &text),
                    false => reader.instruct(text),
                }
            }
            "assistant" => {
                let blocks = blocks::read(&place, content, &role)?;
                reader.assistant(blocks);
            }
            _ => {
                let blocks = blocks::read(&place, content, &role)?;
                reader.user(blocks);
            }
        }
    }
    reader.flush();
    let mut messages = reader.messages;
    let is_continued = messages
        .last()
        .is_some_and(|last| last["role"] == "assistant" && !last.contains_key("tool_calls"));
    if !instructions.is_empty() {
        messages.insert(0, turn("system", instructions));
    }
    Ok(Turns {
        messages,
        is_continued,
    })
}

/// Role and content of a message.
fn parts(place: &str, message: Value) -> Result<(String, Option<Value>), ApiError> {
    let Value::Object(mut message) = message else {
        let expected = "an object with `role` and `content`";
        return Err(ApiError::expected(place, expected, json_type(&message)));
    };
    let found = match message.shift_remove("role") {
        Some(Value::String(role)) if matches!(role.as_str(), "user" | "assistant" | "system") => {
            return Ok((role, message.shift_remove("content")));
        }
        Some(Value::String(role)) => format!("`{role}`"),
        other => other.as_ref().map_or("nothing", json_type).to_owned(),
    };
    let expected = "`user`, `assistant` or `system`";
    Err(ApiError::expected(
        format!("{place}.role"),
        expected,
        &found,
    ))
}

fn turn(role: &str, content: impl Into<Value>) -> Map<String, Value> {
    let content = content.into();
    Map::from_iter([
        ("role".to_owned(), Value::from(role)),
        ("content".to_owned(), content),
    ])
}

/// One text as it is, several as parts.
fn content(mut texts: Vec<String>) -> Value {
    match texts.len() {
        0 => Value::from(""),
        1 => Value::String(texts.remove(0)),
        _ => {
            let part = |text| json!({ "type": "text", "text": text });
            texts.into_iter().map(part).collect()
        }
    }
}

impl Reader {
    fn instruct(&mut self, text: String) {
        match self.messages.last_mut() {
            Some(last) if last["role"] != "assistant" && self.pending.is_empty() => {
                system::fold(last, text, true);
            }
            _ => system::add(&mut self.pending, &text),
        }
    }

    /// Shows instructions that no turn of the user followed.
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.messages.push(turn("user", pending));
        }
    }

    fn assistant(&mut self, blocks: Vec<Block>) {
        self.flush();
        let (mut texts, mut thoughts, mut calls) = (Vec::new(), String::new(), Vec::new());
        for block in blocks {
            match block {
                Block::Text(text) => texts.push(text),
                Block::Thinking(text) => thoughts.push_str(&text),
                Block::Call { id, name, input } => {
                    calls.push(json!({ "id": id, "type": "function",
                        "function": { "name": name, "arguments": input } }));
                    self.names.insert(id, name);
                }
                // Only the user's.
                Block::Result { .. } => {}
            }
        }
        let content = match texts.is_empty() && !calls.is_empty() {
            true => Value::Null,
            false => content(texts),
        };
        let mut message = turn("assistant", content);
        if !thoughts.is_empty() {
            message.insert("reasoning_content".to_owned(), Value::String(thoughts));
        }
        if !calls.is_empty() {
            message.insert("tool_calls".to_owned(), Value::Array(calls));
        }
        self.messages.push(message);
    }

    /// Results come before what the user says, wherever they are.
    fn user(&mut self, blocks: Vec<Block>) {
        let (mut texts, mut has_results) = (Vec::new(), false);
        for block in blocks {
            match block {
                Block::Text(text) => texts.push(text),
                Block::Result { id, text } => {
                    has_results = true;
                    let mut message = turn("tool", text);
                    if let Some(name) = self.names.get(&id) {
                        message.insert("name".to_owned(), Value::String(name.clone()));
                    }
                    message.insert("tool_call_id".to_owned(), Value::String(id));
                    self.messages.push(message);
                }
                // Only the assistant's.
                Block::Thinking(_) | Block::Call { .. } => {}
            }
        }
        let pending = std::mem::take(&mut self.pending);
        if texts.is_empty() && has_results {
            if let Some(last) = self.messages.last_mut().filter(|_| !pending.is_empty()) {
                system::fold(last, pending, true);
            }
            return;
        }
        let mut message = turn("user", content(texts));
        if !pending.is_empty() {
            system::fold(&mut message, pending, false);
        }
        self.messages.push(message);
    }
}
