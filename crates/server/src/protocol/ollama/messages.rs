//! Ollama's messages as OpenAI's.

use model_qwen::json_type;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Reads a list of messages.
pub(super) fn read(messages: Vec<Value>) -> Result<Vec<Map<String, Value>>, ApiError> {
    let messages = messages.into_iter().enumerate();
    messages.map(|(i, message)| one(i, message)).collect()
}

fn one(i: usize, message: Value) -> Result<Map<String, Value>, ApiError> {
    let place = format!("messages[{i}]");
    let Value::Object(mut message) = message else {
        let expected = "an object with `role` and `content`";
        return Err(ApiError::expected(place, expected, json_type(&message)));
    };
    let field = |name: &str| format!("{place}.{name}");
    match message.shift_remove("images") {
        None | Some(Value::Null) => {}
        Some(Value::Array(images)) if images.is_empty() => {}
        Some(_) => {
            let message = format!(
                "`{}` is not supported: the model reads only text.",
                field("images")
            );
            return Err(ApiError::bad_request(field("images"), message));
        }
    }
    let mut text = |name: &str| match message.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(ApiError::expected(
            field(name),
            "a string",
            json_type(&other),
        )),
    };
    let role = text("role")?.unwrap_or_default();
    let content = text("content")?.unwrap_or_default();
    let thinking = text("thinking")?.filter(|text| !text.is_empty());
    let tool_name = text("tool_name")?.or(text("name")?);
    let tool_call_id = text("tool_call_id")?;
    let calls = match message.shift_remove("tool_calls") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(calls)) => calls,
        Some(other) => {
            let place = field("tool_calls");
            return Err(ApiError::expected(place, "a list", json_type(&other)));
        }
    };
    for (j, call) in calls.iter().enumerate() {
        check_call(&format!("{}[{j}]", field("tool_calls")), call)?;
    }
    let optional = [
        ("reasoning_content", thinking.map(Value::String)),
        ("name", tool_name.map(Value::String)),
        ("tool_call_id", tool_call_id.map(Value::String)),
    ];
    let mut turn = Map::new();
    turn.insert("role".to_owned(), Value::String(role));
    let is_silent = content.is_empty() && !calls.is_empty();
    let content = if is_silent {
        Value::Null
    } else {
        content.into()
    };
    turn.insert("content".to_owned(), content);
    for (name, value) in optional {
        turn.extend(value.map(|value| (name.to_owned(), value)));
    }
    if !calls.is_empty() {
        let calls = calls.into_iter().map(with_type).collect();
        turn.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Ok(turn)
}

fn check_call(place: &str, call: &Value) -> Result<(), ApiError> {
    let place = format!("{place}.function");
    let Some(Value::Object(function)) = call.get("function") else {
        let found = call.get("function").map_or("nothing", json_type);
        return Err(ApiError::expected(place, "an object", found));
    };
    match function.get("name") {
        Some(Value::String(name)) if !name.is_empty() => {}
        other => {
            let place = format!("{place}.name");
            let found = other.map_or("nothing", json_type);
            return Err(ApiError::expected(place, "a name", found));
        }
    }
    match function.get("arguments") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(other) => {
            let place = format!("{place}.arguments");
            Err(ApiError::expected(place, "an object", json_type(other)))
        }
    }
}

fn with_type(mut call: Value) -> Value {
    if let Value::Object(call) = &mut call {
        call.insert("type".to_owned(), Value::from("function"));
    }
    call
}
