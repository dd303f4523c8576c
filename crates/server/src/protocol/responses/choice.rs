//! `tool_choice`, which has less depth here than in a chat.

use model_qwen::json_type;
use serde_json::{Map, Value, json};

use super::callee::Callee;
use super::tools::{Tools, is_hosted};
use crate::error::ApiError;

/// `tool_choice` as in a chat; the tools are those of the request.
///
/// # Errors
/// 400 if it is no choice, or one among tools that are not there.
pub fn chat_choice(choice: &Value, tools: &Tools) -> Result<Value, ApiError> {
    const EXPECTED: &str = "`none`, `auto`, `required`, {\"type\": \"function\", \"name\": …}, {\"type\": \"custom\", …} or {\"type\": \"allowed_tools\", …}";
    let choice = match choice {
        Value::Null => return Ok(Value::from("auto")),
        Value::String(mode) => {
            return match mode.as_str() {
                "required" if tools.chat.is_empty() => Err(ApiError::expected(
                    "tool_choice",
                    "`tools` with `required`",
                    "none",
                )),
                "none" | "auto" | "required" => Ok(choice.clone()),
                _ => Err(ApiError::expected(
                    "tool_choice",
                    EXPECTED,
                    &format!("`{mode}`"),
                )),
            };
        }
        Value::Object(choice) => choice,
        other => {
            return Err(ApiError::expected(
                "tool_choice",
                EXPECTED,
                json_type(other),
            ));
        }
    };
    match choice.get("type").and_then(Value::as_str) {
        Some("function" | "custom") => chat_function("tool_choice", choice, tools),
        Some("allowed_tools") => {
            let mode = match choice.get("mode").and_then(Value::as_str) {
                Some(mode @ ("auto" | "required")) => mode,
                other => {
                    let found = other.unwrap_or("none");
                    return Err(ApiError::expected(
                        "tool_choice.mode",
                        "`auto` or `required`",
                        found,
                    ));
                }
            };
            let Some(Value::Array(allowed)) = choice.get("tools") else {
                return Err(ApiError::expected(
                    "tool_choice.tools",
                    "a list of tools",
                    "none",
                ));
            };
            // The tools of the request are without these, too.
            let is_here = |tool: &Value| {
                let of_type = tool.get("type").and_then(Value::as_str);
                !of_type.is_some_and(is_hosted)
            };
            if !allowed.is_empty() && !allowed.iter().any(is_here) {
                let expected = "at least one that is no tool of OpenAI's servers";
                return Err(ApiError::expected("tool_choice.tools", expected, "none"));
            }
            let allowed = allowed.iter().enumerate().filter(|(_, tool)| is_here(tool));
            let allowed = allowed.map(|(i, tool)| {
                let place = format!("tool_choice.tools[{i}]");
                match tool {
                    Value::Object(tool) => chat_function(&place, tool, tools),
                    other => Err(ApiError::expected(&place, "an object", json_type(other))),
                }
            });
            let allowed = allowed.collect::<Result<Vec<_>, _>>()?;
            let allowed = json!({ "mode": mode, "tools": allowed });
            Ok(json!({ "type": "allowed_tools", "allowed_tools": allowed }))
        }
        other => {
            let found = other.map_or_else(|| "none".to_owned(), |other| format!("`{other}`"));
            Err(ApiError::expected(
                "tool_choice.type",
                "`function`, `custom` or `allowed_tools`",
                &found,
            ))
        }
    }
}

/// `{"type": "function", "name": …}` as in a chat.
fn chat_function(
    place: &str,
    function: &Map<String, Value>,
    tools: &Tools,
) -> Result<Value, ApiError> {
    let of_type = function.get("type").and_then(Value::as_str);
    let is_custom = match of_type {
        Some("custom") => true,
        Some("function") | None => false,
        Some(other) => {
            let found = format!("`{other}`");
            return Err(ApiError::expected(
                format!("{place}.type"),
                "`function` or `custom`",
                &found,
            ));
        }
    };
    let namespace = match function.get("namespace") {
        None | Some(Value::Null) => None,
        Some(Value::String(namespace)) => Some(namespace.as_str()),
        Some(other) => {
            let place = format!("{place}.namespace");
            return Err(ApiError::expected(place, "a string", json_type(other)));
        }
    };
    let name = function.get("name").and_then(Value::as_str);
    let named: Vec<&String> = name.map_or_else(Vec::new, |name| {
        let of_name = |(flat, callee): &(&String, &Callee)| {
            let is_named = match namespace {
                Some(_) => callee.name == name && callee.namespace.as_deref() == namespace,
                None => *flat == name || callee.name == name,
            };
            is_named && callee.is_custom == is_custom
        };
        match tools.callees.get_key_value(name).filter(of_name) {
            None => (tools.callees.iter().filter(of_name))
                .map(|(flat, _)| flat)
                .collect(),
            Some((flat, _)) => vec![flat],
        }
    });
    match named.as_slice() {
        [flat] => Ok(json!({ "type": "function", "function": { "name": flat } })),
        [_, _, ..] => Err(ApiError::expected(
            format!("{place}.namespace"),
            "the namespace of one of the tools of this name",
            "none",
        )),
        [] => {
            let found = name.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
            let expected = match is_custom {
                true => "the name of one of the custom `tools`",
                false => "the name of one of the functions of `tools`",
            };
            Err(ApiError::expected(
                format!("{place}.name"),
                expected,
                &found,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::responses::tools::read_tools;

    fn function(name: &str) -> Value {
        json!({ "type": "function", "name": name })
    }

    #[test]
    fn choices_are_among_the_tools() {
        let space = json!({ "type": "namespace", "name": "n", "tools": [function("d")] });
        let custom = |name: &str| json!({ "type": "custom", "name": name });
        let search = json!({ "type": "web_search" });
        let given = vec![
            function("a"),
            search.clone(),
            function("b"),
            custom("p"),
            space,
        ];
        let tools = read_tools(given).unwrap();
        let chat = |name: &str| json!({ "type": "function", "function": { "name": name } });
        let allowed = |mode: &str, tool: Value| json!({ "type": "allowed_tools", "mode": mode, "tools": [tool] });
        for (choice, expected) in [
            (json!(null), json!("auto")),
            (json!("none"), json!("none")),
            (json!("required"), json!("required")),
            (function("b"), chat("b")),
            (custom("p"), chat("p")),
            (function("d"), chat("n__d")),
            (function("n__d"), chat("n__d")),
            (
                allowed("required", function("b")),
                json!({ "type": "allowed_tools", "allowed_tools": { "mode": "required", "tools": [chat("b")] } }),
            ),
            (
                json!({ "type": "allowed_tools", "mode": "auto", "tools": [search, custom("p")] }),
                json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [chat("p")] } }),
            ),
        ] {
            assert_eq!(chat_choice(&choice, &tools).unwrap(), expected);
        }
        let space =
            |name: &str| json!({ "type": "namespace", "name": name, "tools": [function("d")] });
        let both = read_tools(vec![space("n"), space("m")]).unwrap();
        let mut named = function("d");
        assert_eq!(
            chat_choice(&named, &both).unwrap_err().param.as_deref(),
            Some("tool_choice.namespace")
        );
        named["namespace"] = json!("n");
        assert_eq!(chat_choice(&named, &both).unwrap(), chat("n__d"));
        named["namespace"] = json!("o");
        assert!(chat_choice(&named, &both).is_err());
        for (choice, param) in [
            (json!("any"), "tool_choice"),
            (json!(5), "tool_choice"),
            (json!({ "type": "web_search" }), "tool_choice.type"),
            (json!({}), "tool_choice.type"),
            (function("c"), "tool_choice.name"),
            (function("p"), "tool_choice.name"),
            (custom("a"), "tool_choice.name"),
            (chat("a"), "tool_choice.name"),
            (allowed("none", function("a")), "tool_choice.mode"),
            (allowed("auto", function("c")), "tool_choice.tools[0].name"),
            (
                allowed("auto", json!({ "type": "odd", "name": "a" })),
                "tool_choice.tools[0].type",
            ),
            (
                allowed("auto", json!({ "type": "mcp", "server_label": "a" })),
                "tool_choice.tools",
            ),
            (
                json!({ "type": "allowed_tools", "mode": "auto" }),
                "tool_choice.tools",
            ),
        ] {
            let error = chat_choice(&choice, &tools).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{choice}");
        }
        assert!(chat_choice(&json!("required"), &Tools::default()).is_err());
        assert!(chat_choice(&json!("auto"), &Tools::default()).is_ok());
    }
}
