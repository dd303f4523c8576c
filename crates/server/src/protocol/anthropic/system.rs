//! Instructions: the field `system`, and messages of the role `system` among the turns.
//!
//! Templates know one message of this role, the first one. Instructions that come later are shown as part of the turn beside
//! them, so that the tokens before them stay those of the last request, which the prefix cache has.

use serde_json::{Map, Value, json};

use super::blocks::texts;
use crate::error::ApiError;

/// Claude Code's first block has another number in each request; the prefix cache would find nothing.
const BILLING: &str = "x-anthropic-billing-header";

/// The text of instructions.
pub(super) fn text(place: &str, content: Value) -> Result<String, ApiError> {
    let mut texts = texts(place, content)?;
    texts.retain(|text| !text.is_empty() && !text.starts_with(BILLING));
    Ok(texts.join("\n"))
}

/// Adds more text to others.
pub(super) fn add(all: &mut String, text: &str) {
    if !all.is_empty() && !text.is_empty() {
        all.push_str("\n\n");
    }
    all.push_str(text);
}

/// Adds text to a turn, behind what it has or before it.
pub(super) fn fold(turn: &mut Map<String, Value>, text: String, is_behind: bool) {
    match turn.get_mut("content") {
        Some(Value::String(content)) => {
            let (first, second) = match is_behind {
                true => (content.as_str(), text.as_str()),
                false => (text.as_str(), content.as_str()),
            };
            let mut both = first.to_owned();
            add(&mut both, second);
            *content = both;
        }
        Some(Value::Array(parts)) => {
            let at = if is_behind { parts.len() } else { 0 };
            parts.insert(at, json!({ "type": "text", "text": text }));
        }
        _ => {
            turn.insert("content".to_owned(), Value::String(text));
        }
    }
}
