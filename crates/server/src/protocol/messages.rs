//! Messages in the forms that OpenAI's and vLLM's clients send, made into the one form that templates know.

use model_qwen::json_type;
use serde_json::{Map, Value, json};

use super::fields::log_ignored;
use super::switches::switch;
use crate::error::ApiError;

/// Roles that every template is expected to know.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// By these the last message says that the answer goes on with it: DeepSeek's and Mistral's name, and Alibaba's.
const CONTINUED: [&str; 2] = ["prefix", "partial"];

/// The place of the field by which the last message, of the assistant, says that the answer goes on with it. A template may read it.
/// On another message it has no effect, which the log says.
///
/// # Errors
/// 400 with the field if it is no switch.
pub(super) fn continued(messages: &mut [Map<String, Value>]) -> Result<Option<String>, ApiError> {
    let num_messages = messages.len();
    let mut found = None;
    let mut ignored = Vec::new();
    for (i, message) in messages.iter_mut().enumerate() {
        let is_last = i + 1 == num_messages && message.get("role") == Some(&json!("assistant"));
        for name in CONTINUED {
            let place = format!("messages[{i}].{name}");
            let is_on = switch(&place, message.get(name))? == Some(true);
            if is_on && is_last {
                message.insert(name.to_owned(), Value::Bool(true));
                found.get_or_insert(place);
            } else {
                message.shift_remove(name);
                ignored.extend(is_on.then_some(place));
            }
        }
    }
    log_ignored(&ignored);
    Ok(found)
}

/// Checks messages and brings them into one form, for a template with this source.
///
/// # Errors
/// 400 with the field of a message that cannot be shown to the model.
pub(super) fn prepare(
    messages: Vec<Map<String, Value>>,
    template: &str,
) -> Result<Vec<Value>, ApiError> {
    let messages = messages.into_iter().enumerate();
    let prepare = |(i, message)| one(i, message, template).map(Value::Object);
    messages.map(prepare).collect()
}

/// The text of a prepared message.
pub(super) fn text(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn one(
    i: usize,
    mut message: Map<String, Value>,
    template: &str,
) -> Result<Map<String, Value>, ApiError> {
    // A template may ask whether a field is there.
    message.retain(|field, value| field == "content" || !value.is_null());
    let role = role(i, &message, template)?;
    message.insert("role".to_owned(), Value::from(role.as_str()));
    take_calls(i, &mut message)?;
    for field in ["reasoning", "reasoning_content"] {
        if let Some(other) = message.get(field).filter(|value| !value.is_string()) {
            let place = format!("messages[{i}].{field}");
            return Err(ApiError::expected(&place, "a string", json_type(other)));
        }
    }
    let place = format!("messages[{i}].content");
    let content = match message.shift_remove("content") {
        Some(Value::Array(parts)) => Some(parts_of(&place, parts)?),
        Some(Value::Null) | None => None,
        Some(content) => Some(content),
    };
    // What openai-python sends back of an answer that was refused, cut off, or only a call.
    let refusal = message.shift_remove("refusal");
    let content = match content {
        None if role != "assistant" => {
            return Err(ApiError::expected(
                &place,
                "a string or a list of text parts",
                "nothing",
            ));
        }
        // The template of R1 tells a turn with calls by it; others would join it to a text.
        None if message.contains_key("tool_calls") && template.contains("is none") => Value::Null,
        None => refusal
            .filter(Value::is_string)
            .unwrap_or_else(|| Value::from("")),
        Some(content) => content,
    };
    message.insert("content".to_owned(), content);
    Ok(message)
}

/// The role by which the template knows a message.
fn role(i: usize, message: &Map<String, Value>, template: &str) -> Result<String, ApiError> {
    let names = |role: &str| {
        let quoted = [format!("'{role}'"), format!("\"{role}\"")];
        quoted.iter().any(|quoted| template.contains(quoted))
    };
    let found = match message.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "developer" if !names("developer") => return Ok("system".to_owned()),
            // The role of results before there were tools.
            "function" => return Ok("tool".to_owned()),
            known if ROLES.contains(&known) || names(known) => return Ok(known.to_owned()),
            unknown => format!("`{unknown}`"),
        },
        Some(other) => json_type(other).to_owned(),
        None => "nothing".to_owned(),
    };
    Err(ApiError::expected(
        format!("messages[{i}].role"),
        "one of system, developer, user, assistant and tool",
        &found,
    ))
}

/// Brings calls into the form of `tool_calls`; no calls are no field, no arguments are an empty object.
fn take_calls(i: usize, message: &mut Map<String, Value>) -> Result<(), ApiError> {
    if let Some(call @ Value::Object(_)) = message.shift_remove("function_call") {
        let calls = json!([{ "type": "function", "function": call }]);
        message.entry("tool_calls").or_insert(calls);
    }
    let place = format!("messages[{i}].tool_calls");
    let calls = match message.get_mut("tool_calls") {
        None => return Ok(()),
        Some(Value::Array(calls)) => calls,
        Some(other) => return Err(ApiError::expected(&place, "a list", json_type(other))),
    };
    for (j, call) in calls.iter_mut().enumerate() {
        check_call(&format!("{place}[{j}]"), call)?;
    }
    if calls.is_empty() {
        message.shift_remove("tool_calls");
    }
    Ok(())
}

/// Arguments that are no JSON are what the model wrote: it may see them again.
fn check_call(place: &str, call: &mut Value) -> Result<(), ApiError> {
    let Value::Object(call) = call else {
        return Err(ApiError::expected(place, "an object", json_type(call)));
    };
    match call.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(other)) => {
            let found = format!("`{other}`");
            return Err(ApiError::expected(
                format!("{place}.type"),
                "`function`",
                &found,
            ));
        }
        Some(other) => {
            return Err(ApiError::expected(
                format!("{place}.type"),
                "`function`",
                json_type(other),
            ));
        }
    }
    let place = format!("{place}.function");
    let function = match call.get_mut("function") {
        Some(Value::Object(function)) => function,
        other => {
            let found = other.map_or("nothing", |other| json_type(other));
            return Err(ApiError::expected(&place, "an object", found));
        }
    };
    match function.get("name") {
        Some(Value::String(_)) => {}
        other => {
            let found = other.map_or("nothing", json_type);
            return Err(ApiError::expected(
                format!("{place}.name"),
                "a string",
                found,
            ));
        }
    }
    let arguments = function.entry("arguments").or_insert(Value::Null);
    match arguments {
        Value::Null => *arguments = Value::from("{}"),
        Value::String(text) if text.trim().is_empty() => *arguments = Value::from("{}"),
        Value::String(_) | Value::Object(_) => {}
        other => {
            let expected = "a string of JSON, or an object";
            return Err(ApiError::expected(
                format!("{place}.arguments"),
                expected,
                json_type(other),
            ));
        }
    }
    Ok(())
}

/// Parts of text, each as `{"type": "text", "text": …}`. vLLM shows refusals and thoughts as text, too.
fn parts_of(place: &str, parts: Vec<Value>) -> Result<Value, ApiError> {
    let parts = parts.into_iter().enumerate().map(|(j, part)| {
        let place = format!("{place}[{j}]");
        let mut part = match part {
            Value::String(text) => return Ok(json!({ "type": "text", "text": text })),
            Value::Object(part) => part,
            other => {
                let expected = "a part such as {\"type\": \"text\", \"text\": …}";
                return Err(ApiError::expected(&place, expected, json_type(&other)));
            }
        };
        let field = match part.get("type") {
            None => "text",
            Some(Value::String(kind)) => match kind.as_str() {
                "text" | "input_text" | "output_text" => "text",
                "refusal" => "refusal",
                "thinking" => "thinking",
                other => {
                    let expected = "`text` (the model reads only text)";
                    return Err(ApiError::expected(
                        format!("{place}.type"),
                        expected,
                        &format!("`{other}`"),
                    ));
                }
            },
            Some(other) => {
                return Err(ApiError::expected(
                    format!("{place}.type"),
                    "a string",
                    json_type(other),
                ));
            }
        };
        match part.shift_remove(field) {
            Some(Value::String(text)) => Ok(json!({ "type": "text", "text": text })),
            other => {
                let found = other.as_ref().map_or("nothing", json_type);
                Err(ApiError::expected(
                    format!("{place}.{field}"),
                    "a string",
                    found,
                ))
            }
        }
    });
    Ok(Value::Array(parts.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "{{ message.role }} {% if message.role == 'critic' %}";

    fn prepared(message: Value, template: &str) -> Result<Value, ApiError> {
        let Value::Object(message) = message else {
            panic!("not an object")
        };
        Ok(prepare(vec![message], template)?.remove(0))
    }

    #[test]
    fn roles_are_those_of_the_template() {
        let role = |role: &str, template: &str| {
            let message = json!({ "role": role, "content": "x" });
            prepared(message, template).map(|message| message["role"].clone())
        };
        assert_eq!(role("developer", TEMPLATE).unwrap(), "system");
        let own = "{% if message.role == \"developer\" %}";
        assert_eq!(role("developer", own).unwrap(), "developer");
        assert_eq!(role("function", TEMPLATE).unwrap(), "tool");
        assert_eq!(role("critic", TEMPLATE).unwrap(), "critic");
        for unknown in ["bot", "", "User"] {
            let error = role(unknown, TEMPLATE).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("messages[0].role"));
            assert!(error.message.contains(&format!("`{unknown}`")));
        }
    }

    #[test]
    fn an_assistant_may_have_said_nothing() {
        for (message, content) in [
            (json!({ "content": null, "tool_calls": null }), json!("")),
            (json!({ "tool_calls": [], "refusal": null }), json!("")),
            (json!({ "content": null, "refusal": "No." }), json!("No.")),
            (
                json!({ "content": "Yes.", "refusal": "No." }),
                json!("Yes."),
            ),
            (
                json!({ "content": null, "tool_calls": [{ "function": { "name": "f" } }] }),
                json!(""),
            ),
        ] {
            let mut message = message;
            message["role"] = "assistant".into();
            if message
                .get("tool_calls")
                .is_some_and(|calls| calls[0].is_object())
            {
                let of_r1 = "{% if message['content'] is none %}";
                assert_eq!(
                    prepared(message.clone(), of_r1).unwrap()["content"],
                    Value::Null
                );
            }
            let prepared = prepared(message, TEMPLATE).unwrap();
            assert_eq!(prepared["content"], content);
            assert!(prepared.get("refusal").is_none());
        }
        for role in ["user", "system", "tool"] {
            let silent = json!({ "role": role, "content": null });
            assert!(prepared(silent, TEMPLATE).is_err(), "{role}");
        }
    }

    #[test]
    fn all_parts_of_text_are_text() {
        let parts = json!(["a", { "text": "b" }, { "type": "input_text", "text": "c" }, { "type": "output_text", "text": "d" },
            { "type": "refusal", "refusal": "e" }, { "type": "thinking", "thinking": "f" }]);
        let message = json!({ "role": "user", "content": parts });
        let prepared_parts = prepared(message, TEMPLATE).unwrap();
        assert_eq!(
            prepared_parts["content"][5],
            json!({ "type": "text", "text": "f" })
        );
        assert_eq!(text(&prepared_parts), "a\nb\nc\nd\ne\nf");
        for (part, param) in [
            (json!(5), "messages[0].content[0]"),
            (
                json!({ "type": "image_url" }),
                "messages[0].content[0].type",
            ),
            (
                json!({ "type": "text", "value": "x" }),
                "messages[0].content[0].text",
            ),
            (
                json!({ "type": "refusal", "text": "x" }),
                "messages[0].content[0].refusal",
            ),
        ] {
            let message = json!({ "role": "user", "content": [part] });
            let error = prepared(message, TEMPLATE).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn calls_without_arguments_have_an_empty_object() {
        for arguments in [json!(""), json!(" "), Value::Null] {
            let call = json!({ "function": { "name": "f", "arguments": arguments } });
            let message = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
            let prepared = prepared(message, TEMPLATE).unwrap();
            assert_eq!(prepared["tool_calls"][0]["function"]["arguments"], "{}");
        }
        let old = json!({ "role": "assistant", "content": null, "function_call": { "name": "f" } });
        let prepared = prepared(old, TEMPLATE).unwrap();
        assert_eq!(
            prepared["tool_calls"][0]["function"],
            json!({ "name": "f", "arguments": "{}" })
        );
        assert!(prepared.get("function_call").is_none());
    }
}
