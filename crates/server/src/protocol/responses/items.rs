//! Items of a conversation in one form: as they are stored and listed.

use axum::http::StatusCode;
use model_qwen::json_type;
use serde_json::{Map, Value, json};

use super::new_id;
use super::output::ENCRYPTED;
use crate::error::ApiError;

/// A message, a call, its output, or reasoning.
pub type Item = Map<String, Value>;

/// Whether an item was written to its end.
const STATUS: [&str; 3] = ["completed", "in_progress", "incomplete"];

/// Reads the field `input`: a text or items, each with an id. `find` gives an item that is stored.
///
/// # Errors
/// 400 with the field that is no item of this server; 404 if a reference leads nowhere.
pub fn read_input(
    input: Value,
    find: impl Fn(&str) -> Option<Item>,
) -> Result<Vec<Item>, ApiError> {
    match input {
        Value::String(text) => {
            let message = json!({ "role": "user", "content": text });
            read_item("input", message, &find).map(|item| vec![item])
        }
        Value::Array(items) if !items.is_empty() => {
            let items = items.into_iter().enumerate();
            items
                .map(|(i, item)| read_item(&format!("input[{i}]"), item, &find))
                .collect()
        }
        Value::Array(_) => Err(ApiError::expected(
            "input",
            "a text or items",
            "an empty list",
        )),
        other => Err(ApiError::expected(
            "input",
            "a string or a list of items",
            json_type(&other),
        )),
    }
}

fn read_item(
    place: &str,
    item: Value,
    find: &impl Fn(&str) -> Option<Item>,
) -> Result<Item, ApiError> {
    let mut item = match item {
        Value::Object(item) => item,
        other => return Err(ApiError::expected(place, "an object", json_type(&other))),
    };
    item.retain(|_, value| !value.is_null());
    let place_of_type = format!("{place}.type");
    let of_type = match item.get("type") {
        Some(Value::String(of_type)) => of_type.as_str(),
        Some(other) => {
            return Err(ApiError::expected(
                &place_of_type,
                "a string",
                json_type(other),
            ));
        }
        None if item.contains_key("role") => "message",
        None if item.contains_key("id") && item.len() == 1 => "item_reference",
        None => {
            return Err(ApiError::expected(
                &place_of_type,
                "a type, or a role",
                "neither",
            ));
        }
    };
    match of_type {
        "message" => read_message(place, item),
        "function_call" => read_call(place, item, "function_call", "arguments", "fc"),
        "custom_tool_call" => read_call(place, item, "custom_tool_call", "input", "ctc"),
        "function_call_output" => read_output(place, item, "function_call_output", "fco"),
        "custom_tool_call_output" => read_output(place, item, "custom_tool_call_output", "ctco"),
        "reasoning" => read_reasoning(place, item),
        "item_reference" => {
            let id = text(place, &mut item, "id")?;
            find(&id).ok_or_else(|| {
                let param = format!("{place}.id");
                let message = format!("`{param}`: no item `{id}` is stored.");
                ApiError {
                    status: StatusCode::NOT_FOUND,
                    ..ApiError::bad_request(param, message)
                }
            })
        }
        other => {
            let expected = "message, function_call, function_call_output, custom_tool_call, custom_tool_call_output, reasoning or \
                 item_reference";
            Err(ApiError::expected(
                &place_of_type,
                expected,
                &format!("`{other}`"),
            ))
        }
    }
}

/// The item in its stored form: these fields, its id and its status.
fn stored(place: &str, mut item: Item, prefix: &str, fields: Value) -> Result<Item, ApiError> {
    let id = match item.contains_key("id") {
        true => text(place, &mut item, "id")?,
        false => new_id(prefix),
    };
    let status = match item.contains_key("status") {
        true => text(place, &mut item, "status")?,
        false => STATUS[0].to_owned(),
    };
    if !STATUS.contains(&status.as_str()) {
        let expected = "one of completed, in_progress and incomplete";
        return Err(ApiError::expected(
            format!("{place}.status"),
            expected,
            &format!("`{status}`"),
        ));
    }
    let mut stored = Item::new();
    stored.insert("id".to_owned(), id.into());
    if let Value::Object(fields) = fields {
        stored.extend(fields);
    }
    stored.insert("status".to_owned(), status.into());
    Ok(stored)
}

/// Takes out a text.
fn text(place: &str, item: &mut Item, field: &str) -> Result<String, ApiError> {
    match item.shift_remove(field) {
        Some(Value::String(text)) => Ok(text),
        other => {
            let found = other.as_ref().map_or("nothing", json_type);
            Err(ApiError::expected(
                format!("{place}.{field}"),
                "a string",
                found,
            ))
        }
    }
}

fn read_message(place: &str, mut item: Item) -> Result<Item, ApiError> {
    let role = text(place, &mut item, "role")?;
    if matches!(role.as_str(), "tool" | "function") {
        let expected = "`user`, `assistant`, `system` or `developer` (the result of a call is an item `function_call_output`)";
        let found = format!("`{role}`");
        return Err(ApiError::expected(
            format!("{place}.role"),
            expected,
            &found,
        ));
    }
    let place_of_content = format!("{place}.content");
    let content = match item.shift_remove("content") {
        Some(Value::String(text)) => vec![text_part(&role, text)],
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            parts
                .map(|(j, part)| read_part(&format!("{place_of_content}[{j}]"), &role, part))
                .collect::<Result<_, _>>()?
        }
        None if role == "assistant" => Vec::new(),
        other => {
            let found = other.as_ref().map_or("nothing", json_type);
            return Err(ApiError::expected(
                &place_of_content,
                "a string or a list of parts",
                found,
            ));
        }
    };
    let fields = json!({ "type": "message", "role": role, "content": content });
    stored(place, item, "msg", fields)
}

fn text_part(role: &str, text: String) -> Value {
    match role {
        "assistant" => json!({ "type": "output_text", "text": text, "annotations": [] }),
        _ => json!({ "type": "input_text", "text": text }),
    }
}

fn read_part(place: &str, role: &str, part: Value) -> Result<Value, ApiError> {
    let mut part = match part {
        Value::Object(part) => part,
        other => {
            let expected = "a part such as {\"type\": \"input_text\", \"text\": …}";
            return Err(ApiError::expected(place, expected, json_type(&other)));
        }
    };
    match part.get("type").and_then(Value::as_str) {
        Some("input_text" | "output_text" | "text") => {
            text(place, &mut part, "text").map(|text| text_part(role, text))
        }
        Some("refusal") => {
            let refusal = text(place, &mut part, "refusal")?;
            Ok(json!({ "type": "refusal", "refusal": refusal }))
        }
        other => {
            let expected = "`input_text`, `output_text` or `refusal` (the model reads only text)";
            let found = other.map_or_else(|| "none".to_owned(), |other| format!("`{other}`"));
            Err(ApiError::expected(
                format!("{place}.type"),
                expected,
                &found,
            ))
        }
    }
}

/// Reads a call of a function, whose field `given` has its arguments, or of a custom tool.
fn read_call(
    place: &str,
    mut item: Item,
    of_type: &str,
    given: &str,
    prefix: &str,
) -> Result<Item, ApiError> {
    let (call_id, name) = (
        text(place, &mut item, "call_id")?,
        text(place, &mut item, "name")?,
    );
    let text_of_call = text(place, &mut item, given)?;
    let mut fields =
        json!({ "type": of_type, "call_id": call_id, "name": name, given: text_of_call });
    if item.contains_key("namespace") {
        fields["namespace"] = Value::from(text(place, &mut item, "namespace")?);
    }
    stored(place, item, prefix, fields)
}

fn read_output(place: &str, mut item: Item, of_type: &str, prefix: &str) -> Result<Item, ApiError> {
    let call_id = text(place, &mut item, "call_id")?;
    let output = match item.shift_remove("output") {
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            let parts =
                parts.map(|(j, part)| read_part(&format!("{place}.output[{j}]"), "tool", part));
            Value::Array(parts.collect::<Result<_, _>>()?)
        }
        Some(text @ Value::String(_)) => text,
        other => {
            let found = other.as_ref().map_or("nothing", json_type);
            let param = format!("{place}.output");
            return Err(ApiError::expected(
                &param,
                "a string or a list of parts",
                found,
            ));
        }
    };
    let fields = json!({ "type": of_type, "call_id": call_id, "output": output });
    stored(place, item, prefix, fields)
}

fn read_reasoning(place: &str, mut item: Item) -> Result<Item, ApiError> {
    let encrypted = match item.contains_key("encrypted_content") {
        true => Some(text(place, &mut item, "encrypted_content")?),
        false => None,
    };
    let mut texts = |field: &str, of_type: &str| {
        let parts = match item.shift_remove(field) {
            None => return Ok(Vec::new()),
            Some(Value::Array(parts)) => parts,
            Some(other) => {
                return Err(ApiError::expected(
                    format!("{place}.{field}"),
                    "a list of parts",
                    json_type(&other),
                ));
            }
        };
        let parts = parts.into_iter().enumerate().map(|(j, part)| {
            let place = format!("{place}.{field}[{j}]");
            let Value::Object(mut part) = part else {
                return Err(ApiError::expected(&place, "an object", json_type(&part)));
            };
            let text = text(&place, &mut part, "text")?;
            Ok(json!({ "type": of_type, "text": text }))
        });
        parts.collect::<Result<Vec<_>, _>>()
    };
    let summary = texts("summary", "summary_text")?;
    let mut content = texts("content", "reasoning_text")?;
    if let Some(encrypted) = encrypted.filter(|_| content.is_empty()) {
        let Some(text) = encrypted.strip_prefix(ENCRYPTED) else {
            let param = format!("{place}.encrypted_content");
            let expected = "what this server has sent, or `content` beside it";
            return Err(ApiError::expected(&param, expected, "another server's"));
        };
        content.push(json!({ "type": "reasoning_text", "text": text }));
    }
    let fields = json!({ "type": "reasoning", "summary": summary, "content": content });
    stored(place, item, "rs", fields)
}

/// Whether an item is an answer that the next one goes on with.
pub fn is_unfinished(item: &Item) -> bool {
    item.get("type").is_some_and(|of_type| of_type == "message")
        && item.get("role").is_some_and(|role| role == "assistant")
        && item.get("status").is_some_and(|status| status != STATUS[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: Value) -> Result<Vec<Item>, ApiError> {
        read_input(input, |id| {
            let item = json!({ "id": id, "type": "message", "stored": true });
            (id == "msg_1").then(|| item.as_object().unwrap().clone())
        })
    }

    #[test]
    fn every_item_has_one_form() {
        let read = |item: Value| {
            let mut item = read(json!([item])).unwrap().remove(0);
            let id = item.shift_remove("id").unwrap();
            (Value::Object(item), id.as_str().unwrap().to_owned())
        };
        let said = |role: &str, content: Value| json!({ "type": "message", "role": role, "content": [content], "status": "completed" });
        let part = json!({ "type": "input_text", "text": "a" });
        for content in [
            json!("a"),
            json!([{ "type": "input_text", "text": "a", "prompt_cache_breakpoint": null }]),
        ] {
            let (item, id) = read(json!({ "role": "user", "content": content, "phase": null }));
            assert_eq!(item, said("user", part.clone()));
            assert!(id.starts_with("msg_"));
        }
        let answer = json!({ "id": "msg_x", "type": "message", "role": "assistant", "status": "incomplete",
            "content": [{ "type": "output_text", "text": "a", "annotations": [], "logprobs": [], "parsed": {} }, { "type": "refusal", "refusal": "no" }] });
        let (item, id) = read(answer);
        assert_eq!(
            (id.as_str(), &item["status"]),
            ("msg_x", &json!("incomplete"))
        );
        assert_eq!(
            item["content"],
            json!([{ "type": "output_text", "text": "a", "annotations": [] }, { "type": "refusal", "refusal": "no" }])
        );
        assert!(is_unfinished(item.as_object().unwrap()));
        let call = json!({ "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed" });
        assert_eq!(read(call.clone()).0, call);
        for output in [json!("12"), json!([part])] {
            let output = json!({ "type": "function_call_output", "call_id": "c", "output": output, "status": "completed" });
            assert_eq!(read(output.clone()).0, output);
        }
        let thought = json!({ "type": "reasoning", "summary": [{ "type": "summary_text", "text": "s" }],
            "content": [{ "type": "reasoning_text", "text": "t" }], "status": "completed" });
        let mut given = thought.clone();
        given["encrypted_content"] = Value::Null;
        assert_eq!(read(given).0, thought);
        let mut sent = thought.clone();
        sent["encrypted_content"] = json!(format!("{ENCRYPTED}t"));
        assert_eq!(read(sent.clone()).0, thought);
        sent["content"] = json!([]);
        assert_eq!(read(sent).0, thought);
        let custom = json!({ "type": "custom_tool_call", "call_id": "c", "name": "f", "input": "a\nb", "namespace": "n", "status": "completed" });
        let (item, id) = read(custom.clone());
        assert_eq!(item, custom);
        assert!(id.starts_with("ctc_"));
        let output = json!({ "type": "custom_tool_call_output", "call_id": "c", "output": "12", "status": "completed" });
        assert_eq!(read(output.clone()).0, output);
        for reference in [
            json!({ "type": "item_reference", "id": "msg_1" }),
            json!({ "id": "msg_1", "type": null }),
        ] {
            assert_eq!(read(reference).0["stored"], true);
        }
    }

    #[test]
    fn what_is_no_item_is_named() {
        for (item, param) in [
            (json!("a"), "input[0]"),
            (json!({}), "input[0].type"),
            (json!({ "type": 1 }), "input[0].type"),
            (json!({ "type": "computer_call" }), "input[0].type"),
            (
                json!({ "type": "custom_tool_call", "call_id": "c", "name": "f", "arguments": "{}" }),
                "input[0].input",
            ),
            (
                json!({ "type": "custom_tool_call_output", "call_id": "c" }),
                "input[0].output",
            ),
            (json!({ "role": 1, "content": "a" }), "input[0].role"),
            (json!({ "role": "user" }), "input[0].content"),
            (json!({ "role": "user", "content": 1 }), "input[0].content"),
            (
                json!({ "role": "user", "content": ["a"] }),
                "input[0].content[0]",
            ),
            (
                json!({ "role": "user", "content": [{ "type": "input_image" }] }),
                "input[0].content[0].type",
            ),
            (
                json!({ "role": "user", "content": [{ "type": "input_text" }] }),
                "input[0].content[0].text",
            ),
            (
                json!({ "role": "user", "content": "a", "status": "odd" }),
                "input[0].status",
            ),
            (
                json!({ "role": "user", "content": "a", "id": 5 }),
                "input[0].id",
            ),
            (
                json!({ "type": "function_call", "name": "f", "arguments": "" }),
                "input[0].call_id",
            ),
            (
                json!({ "type": "function_call", "call_id": "c", "name": "f", "arguments": {} }),
                "input[0].arguments",
            ),
            (
                json!({ "type": "function_call", "call_id": "c", "name": "f", "arguments": "", "namespace": 1 }),
                "input[0].namespace",
            ),
            (
                json!({ "type": "function_call_output", "call_id": "c" }),
                "input[0].output",
            ),
            (
                json!({ "type": "function_call_output", "call_id": "c", "output": [{ "type": "input_file" }] }),
                "input[0].output[0].type",
            ),
            (
                json!({ "type": "reasoning", "encrypted_content": "x" }),
                "input[0].encrypted_content",
            ),
            (
                json!({ "type": "reasoning", "summary": "x" }),
                "input[0].summary",
            ),
            (
                json!({ "type": "reasoning", "content": [{ "text": 1 }] }),
                "input[0].content[0].text",
            ),
        ] {
            let error = read(json!([item])).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
            assert!(error.message.contains(param) && error.message.contains("expected"));
        }
        for input in [json!([]), json!(5), json!({ "role": "user" })] {
            assert_eq!(read(input).unwrap_err().param.as_deref(), Some("input"));
        }
        let error = read(json!([{ "type": "item_reference", "id": "msg_2" }])).unwrap_err();
        assert_eq!(
            (error.status, error.param.as_deref()),
            (StatusCode::NOT_FOUND, Some("input[0].id"))
        );
    }
}
