//! Objects of settings in a request: each key is understood, or refused by name.

use model_qwen::json_type;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::protocol::reasoning_effort::ReasoningEffort;

/// What `include` may have; all but two are of tools that the server doesn't have, or of images.
pub(crate) const INCLUDABLE: [&str; 8] = [
    LOGPROBS,
    ENCRYPTED,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
];
/// The value of `include` that asks for log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";
/// The value that asks for reasoning in a form that comes back with the next request.
const ENCRYPTED: &str = "reasoning.encrypted_content";
/// `metadata` has at most so many pairs, with keys and values of so many characters.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

/// The keys of an object that have a value, each read by `read`: `Ok` is understood, `Err` says what is expected.
fn each(
    field: &str,
    object: Option<&Value>,
    mut read: impl FnMut(&str, &Value) -> Result<(), &'static str>,
) -> Result<(), ApiError> {
    let object = match object {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(object)) => object,
        Some(other) => return Err(ApiError::expected(field, "an object", json_type(other))),
    };
    let keys = object.iter().filter(|(_, value)| !value.is_null());
    for (key, value) in keys {
        read(key, value).map_err(|expected| {
            let found = match value {
                Value::String(text) => format!("`{text}`"),
                Value::Bool(on) => format!("`{on}`"),
                other => json_type(other).to_owned(),
            };
            ApiError::expected(format!("{field}.{key}"), expected, &found)
        })?;
    }
    Ok(())
}

fn is_one_of(value: &Value, words: &[&str]) -> bool {
    value.as_str().is_some_and(|word| words.contains(&word))
}

/// What a key is expected to be that no table has.
const UNKNOWN: &str = "no such key";

/// Reads `reasoning` and gives its effort.
///
/// # Errors
/// 400 with the key that is not understood.
pub fn read_reasoning(reasoning: Option<&Value>) -> Result<Option<ReasoningEffort>, ApiError> {
    let mut effort = None;
    each("reasoning", reasoning, |key, value| match key {
        "effort" => {
            effort = serde_json::from_value(value.clone())
                .map_err(|_| "none, minimal, low, medium, high, xhigh or max")?;
            Ok(())
        }
        // A summary is of use where the reasoning is kept back.
        "summary" | "generate_summary" if is_one_of(value, &["auto", "concise", "detailed"]) => {
            Ok(())
        }
        "summary" | "generate_summary" => Err("auto, concise or detailed"),
        "context" if is_one_of(value, &["auto"]) => Ok(()),
        "context" => Err("auto (the chat template decides)"),
        "mode" if is_one_of(value, &["standard"]) => Ok(()),
        "mode" => Err("standard"),
        _ => Err(UNKNOWN),
    })?;
    Ok(effort)
}

/// Reads `text` and gives its `format`, in the form of a chat's `response_format`.
///
/// # Errors
/// 400 with the key that is not understood.
pub fn read_text(text: Option<&Value>) -> Result<Option<Value>, ApiError> {
    let mut format = None;
    each("text", text, |key, value| match key {
        "format" => {
            format = Some(value.clone());
            Ok(())
        }
        "verbosity" if is_one_of(value, &["medium"]) => Ok(()),
        "verbosity" => Err("medium (the model has no such setting)"),
        _ => Err(UNKNOWN),
    })?;
    format.as_ref().map_or(Ok(None), chat_format)
}

/// `text.format` as a chat's `response_format`.
fn chat_format(format: &Value) -> Result<Option<Value>, ApiError> {
    let Value::Object(format) = format else {
        return Err(ApiError::expected(
            "text.format",
            "an object",
            json_type(format),
        ));
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text" | "json_object") => Ok(Some(Value::Object(format.clone()))),
        Some("json_schema") => {
            let keys = format
                .iter()
                .filter(|(key, value)| *key != "type" && !value.is_null());
            let keys = keys.map(|(key, value)| (key.clone(), value.clone()));
            let schema: Map<String, Value> = keys.collect();
            Ok(Some(
                json!({ "type": "json_schema", "json_schema": schema }),
            ))
        }
        other => {
            let found = other.map_or_else(|| "none".to_owned(), |other| format!("`{other}`"));
            let expected = "text, json_object or json_schema";
            Err(ApiError::expected("text.format.type", expected, &found))
        }
    }
}

/// What `include` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Included {
    /// Log-probabilities of the text.
    pub logprobs: bool,
    /// `encrypted_content` of reasoning.
    pub encrypted: bool,
}

/// Reads `include`.
///
/// # Errors
/// 400 with the value that is unknown.
pub fn read_include(include: &[String]) -> Result<Included, ApiError> {
    for (i, value) in include.iter().enumerate() {
        if !INCLUDABLE.contains(&value.as_str()) {
            let expected = format!("one of {}", INCLUDABLE.join(", "));
            return Err(ApiError::expected(
                format!("include[{i}]"),
                &expected,
                &format!("`{value}`"),
            ));
        }
    }
    let has = |wanted: &str| include.iter().any(|value| value == wanted);
    Ok(Included {
        logprobs: has(LOGPROBS),
        encrypted: has(ENCRYPTED),
    })
}

/// Checks `stream_options`.
///
/// # Errors
/// 400 with the key that asks for what a stream doesn't have.
pub fn check_stream_options(options: Option<&Value>) -> Result<(), ApiError> {
    each("stream_options", options, |key, value| match (key, value) {
        ("include_obfuscation" | "continuous_usage_stats", Value::Bool(false)) => Ok(()),
        ("include_obfuscation", _) => Err("false (events are not padded)"),
        ("continuous_usage_stats", _) => Err("false (usage comes with the last event)"),
        ("include_usage", Value::Bool(_)) => Ok(()),
        ("include_usage", _) => Err("a boolean"),
        _ => Err(UNKNOWN),
    })
}

/// Checks `metadata`: at most 16 short texts.
///
/// # Errors
/// 400 with the key.
pub fn check_metadata(metadata: Option<&Value>) -> Result<(), ApiError> {
    let (max_num, max_key, max_value) = MAX_METADATA;
    let mut num = 0;
    each("metadata", metadata, |key, value| {
        num += 1;
        match value {
            _ if num > max_num => Err("at most 16 keys"),
            _ if key.chars().count() > max_key => Err("keys of at most 64 characters"),
            Value::String(text) if text.chars().count() <= max_value => Ok(()),
            _ => Err("a text of at most 512 characters"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_understood() {
        assert_eq!(read_reasoning(None).unwrap(), None);
        let reasoning = json!({ "effort": "low", "summary": "auto", "generate_summary": null, "mode": "standard", "context": "auto" });
        assert_eq!(
            read_reasoning(Some(&reasoning)).unwrap(),
            Some(ReasoningEffort::Low)
        );
        assert_eq!(
            read_text(Some(
                &json!({ "verbosity": "medium", "format": { "type": "text" } })
            ))
            .unwrap(),
            Some(json!({ "type": "text" }))
        );
        assert_eq!(read_text(Some(&json!({ "format": null }))).unwrap(), None);
        let format = json!({ "format": { "type": "json_schema", "name": "n", "schema": {}, "strict": true, "description": null } });
        assert_eq!(
            read_text(Some(&format)).unwrap(),
            Some(
                json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": {}, "strict": true } })
            )
        );
        let include = |value: &str| read_include(&[value.to_owned()]).unwrap();
        assert_eq!(include("web_search_call.results"), Included::default());
        assert!(include(ENCRYPTED).encrypted && !include(ENCRYPTED).logprobs);
        assert!(include(LOGPROBS).logprobs && !include(LOGPROBS).encrypted);
        check_stream_options(Some(
            &json!({ "include_obfuscation": false, "include_usage": true }),
        ))
        .unwrap();
        check_metadata(Some(&json!({ "a": "b", "c": null }))).unwrap();
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let reasoning = |value: Value| read_reasoning(Some(&value)).map(|_| ());
        let text = |value: Value| read_text(Some(&value)).map(|_| ());
        let many: Map<String, Value> = (0..17).map(|i| (i.to_string(), json!(""))).collect();
        for (result, param) in [
            (reasoning(json!("low")), "reasoning"),
            (
                reasoning(json!({ "effort": "enormous" })),
                "reasoning.effort",
            ),
            (reasoning(json!({ "summary": true })), "reasoning.summary"),
            (reasoning(json!({ "mode": "pro" })), "reasoning.mode"),
            (reasoning(json!({ "budget": 5 })), "reasoning.budget"),
            (text(json!({ "verbosity": "low" })), "text.verbosity"),
            (text(json!({ "format": "json" })), "text.format"),
            (
                text(json!({ "format": { "type": "grammar" } })),
                "text.format.type",
            ),
            (text(json!({ "odd": 1 })), "text.odd"),
            (read_include(&["all".to_owned()]).map(|_| ()), "include[0]"),
            (
                check_stream_options(Some(&json!({ "include_obfuscation": true }))),
                "stream_options.include_obfuscation",
            ),
            (
                check_stream_options(Some(&json!({ "continuous_usage_stats": true }))),
                "stream_options.continuous_usage_stats",
            ),
            (
                check_stream_options(Some(&json!({ "odd": 1 }))),
                "stream_options.odd",
            ),
            (check_metadata(Some(&json!({ "a": 5 }))), "metadata.a"),
            (
                check_metadata(Some(&json!({ "a": "x".repeat(513) }))),
                "metadata.a",
            ),
            (check_metadata(Some(&Value::Object(many))), "metadata.16"),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        }
    }
}
