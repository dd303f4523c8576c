//! Blocks of content.

use model_qwen::json_type;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::protocol::switches::switch;

/// A block that the model can read.
#[derive(Debug, PartialEq)]
pub(super) enum Block {
    /// What was said.
    Text(String),
    /// What the assistant thought.
    Thinking(String),
    /// The assistant called a tool.
    Call {
        /// Its id, for the result.
        id: String,
        /// Name of the tool.
        name: String,
        /// Arguments.
        input: Map<String, Value>,
    },
    /// What a tool gave.
    Result {
        /// Of which call.
        id: String,
        /// As text.
        text: String,
    },
}

/// Reads the content of a message: a text or blocks. Blocks without anything to read are left out.
pub(super) fn read(
    place: &str,
    content: Option<Value>,
    role: &str,
) -> Result<Vec<Block>, ApiError> {
    match content {
        Some(Value::String(text)) => Ok(vec![Block::Text(text)]),
        Some(Value::Array(blocks)) => {
            let mut read = Vec::with_capacity(blocks.len());
            for (i, block) in blocks.into_iter().enumerate() {
                read.extend(one(&format!("{place}[{i}]"), block, role)?);
            }
            Ok(read)
        }
        other => {
            let found = other.as_ref().map_or("nothing", json_type);
            Err(ApiError::expected(
                place,
                "a string or a list of blocks",
                found,
            ))
        }
    }
}

/// Texts of a list that may have nothing else, such as `system`.
pub(super) fn texts(place: &str, content: Value) -> Result<Vec<String>, ApiError> {
    let blocks = read(place, Some(content), "system")?;
    let texts = blocks.into_iter().filter_map(|block| match block {
        Block::Text(text) => Some(text),
        _ => None,
    });
    Ok(texts.collect())
}

fn one(place: &str, block: Value, role: &str) -> Result<Option<Block>, ApiError> {
    let Value::Object(mut block) = block else {
        let expected = "a block such as {\"type\": \"text\", \"text\": …}";
        return Err(ApiError::expected(place, expected, json_type(&block)));
    };
    let block_type = text(place, &mut block, "type")?;
    let block = match (block_type.as_str(), role) {
        ("text", _) => {
            let text = text(place, &mut block, "text")?;
            (!text.is_empty()).then_some(Block::Text(text))
        }
        ("thinking", "assistant") => {
            let thinking = text(place, &mut block, "thinking")?;
            (!thinking.is_empty()).then_some(Block::Thinking(thinking))
        }
        // Encrypted: nobody but its author can read it.
        ("redacted_thinking", "assistant") => None,
        ("tool_use", "assistant") => Some(Block::Call {
            id: text(place, &mut block, "id")?,
            name: text(place, &mut block, "name")?,
            input: input(place, &mut block)?,
        }),
        ("tool_result", "user") => Some(Block::Result {
            id: text(place, &mut block, "tool_use_id")?,
            text: result(place, &mut block)?,
        }),
        (other, _) => {
            let expected = match role {
                "assistant" => "`text`, `thinking`, `redacted_thinking` or `tool_use`",
                "user" => "`text` or `tool_result` (the model reads only text)",
                _ => "`text`",
            };
            let place = format!("{place}.type");
            return Err(ApiError::expected(place, expected, &format!("`{other}`")));
        }
    };
    Ok(block)
}

fn text(place: &str, block: &mut Map<String, Value>, field: &str) -> Result<String, ApiError> {
    match block.shift_remove(field) {
        Some(Value::String(text)) => Ok(text),
        other => {
            let found = other.as_ref().map_or("nothing", json_type);
            let place = format!("{place}.{field}");
            Err(ApiError::expected(place, "a string", found))
        }
    }
}

fn input(place: &str, block: &mut Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    match block.shift_remove("input") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(input)) => Ok(input),
        Some(other) => {
            let place = format!("{place}.input");
            Err(ApiError::expected(place, "an object", json_type(&other)))
        }
    }
}

/// The text of a result; that of an error says so.
fn result(place: &str, block: &mut Map<String, Value>) -> Result<String, ApiError> {
    let text = match block.shift_remove("content") {
        None | Some(Value::Null) => String::new(),
        Some(content) => texts(&format!("{place}.content"), content)?.join("\n"),
    };
    let is_error = block.shift_remove("is_error");
    let is_error = switch(&format!("{place}.is_error"), is_error.as_ref())?;
    Ok(match is_error {
        Some(true) if text.is_empty() => "Error".to_owned(),
        Some(true) => format!("Error: {text}"),
        Some(false) | None => text,
    })
}
