//! What a value of a record says, in each of the ways in which files write it.

use serde_json::Value;

use super::field_names::REASONING;

/// Words that say whether there is reasoning, as in Nemotron's data, and are none.
const SWITCHES: [&str; 7] = ["on", "off", "true", "false", "yes", "no", "none"];

/// The items of a list, which a table has as JSON; `None` for what is none, and for an empty one.
pub(super) fn listed(value: &Value) -> Option<Vec<Value>> {
    let items = match value {
        Value::Array(items) => items.clone(),
        Value::String(text) if text.trim_start().starts_with('[') => {
            serde_json::from_str(text).ok()?
        }
        _ => return None,
    };
    (!items.is_empty()).then_some(items)
}

/// What a label says: true, false, 0 and 1, also as tables have them.
pub(super) fn verdict_of(label: &Value) -> Option<bool> {
    match label {
        Value::Bool(label) => Some(*label),
        Value::Number(label) if label.as_f64() == Some(1.0) => Some(true),
        Value::Number(label) if label.as_f64() == Some(0.0) => Some(false),
        Value::String(label) => match label.trim().to_lowercase().as_str() {
            "true" | "1" | "1.0" => Some(true),
            "false" | "0" | "0.0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A text, also alone in a list, as in s1K.
pub(super) fn only_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(items) => match &items[..] {
            [Value::String(text)] => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Whether this field of a record is the reasoning before its answer.
pub(super) fn is_reasoning(key: &str, value: &Value) -> bool {
    let text = only_text(value).map(|text| text.trim().to_lowercase());
    REASONING.contains(&key)
        && text.is_some_and(|text| !text.is_empty() && !SWITCHES.contains(&text.as_str()))
}

/// Whether two texts differ in white space at most.
pub(super) fn are_alike(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}
