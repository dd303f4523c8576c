//! Values of a format's keys.

use serde_json::{Map, Value};

use crate::constraint::grammar_error::{GrammarError, invalid};
use crate::json_file::json_type;

/// An object of a request, whose every key is known; other keys may say nothing: null, false or an empty list.
pub(super) fn object<'a>(
    value: &'a Value,
    what: &str,
    keys: &[&str],
) -> Result<&'a Map<String, Value>, GrammarError> {
    let Value::Object(object) = value else {
        return invalid(format!(
            "{what}: expected an object, found {}",
            json_type(value)
        ));
    };
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let unknown = object
        .iter()
        .find(|(key, value)| !keys.contains(&key.as_str()) && !says_nothing(value));
    match unknown {
        None => Ok(object),
        Some((key, _)) => invalid(format!(
            "{what}: the key `{key}` is not supported, expected {}",
            keys.join(", ")
        )),
    }
}

pub(super) fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, GrammarError> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => invalid(format!(
            "`{key}`: expected a string, found {}",
            json_type(other)
        )),
        None => invalid(format!("expected `{key}`")),
    }
}

pub(super) fn texts(object: &Map<String, Value>, key: &str) -> Result<Vec<String>, GrammarError> {
    let texts = list(object, key)?.iter().map(|text| match text {
        Value::String(text) => Ok(text.clone()),
        other => invalid(format!(
            "`{key}`: expected strings, found {}",
            json_type(other)
        )),
    });
    texts.collect()
}

/// The same where the list may be empty or absent.
pub(super) fn optional_texts(
    object: &Map<String, Value>,
    key: &str,
) -> Result<Vec<String>, GrammarError> {
    match object.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) if items.is_empty() => Ok(Vec::new()),
        Some(_) => texts(object, key),
    }
}

pub(super) fn list<'a>(
    object: &'a Map<String, Value>,
    key: &str,
) -> Result<&'a [Value], GrammarError> {
    match object.get(key) {
        Some(Value::Array(items)) if !items.is_empty() => Ok(items),
        Some(Value::Array(_)) => invalid(format!("`{key}`: expected at least one, found none")),
        Some(other) => invalid(format!(
            "`{key}`: expected a list, found {}",
            json_type(other)
        )),
        None => invalid(format!("expected `{key}`")),
    }
}

pub(super) fn flag(object: &Map<String, Value>, key: &str) -> Result<bool, GrammarError> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => invalid(format!(
            "`{key}`: expected a boolean, found {}",
            json_type(other)
        )),
    }
}
