//! `tools` and `tool_choice`, which have less depth here than in a chat.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::protocol::body::kind;

/// Keys of a function tool.
const KEYS: [&str; 5] = ["type", "name", "description", "parameters", "strict"];

/// Reads the list `tools` and gives it in the form that answers show.
///
/// # Errors
/// 400 with the field of a tool that is no function.
pub fn read_tools(tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let tools = tools.into_iter().enumerate();
    tools
        .map(|(i, tool)| read_tool(&format!("tools[{i}]"), tool))
        .collect()
}

fn read_tool(place: &str, tool: Value) -> Result<Value, ApiError> {
    let tool = match tool {
        Value::Object(tool) => tool,
        other => return Err(ApiError::expected(place, "an object", kind(&other))),
    };
    let get = |key: &str| tool.get(key).cloned().unwrap_or_default();
    let refuse = |key: &str, expected: &str, found: &str| {
        Err(ApiError::expected(
            format!("{place}.{key}"),
            expected,
            found,
        ))
    };
    match get("type") {
        Value::String(of_type) if of_type == "function" => {}
        Value::String(of_type) => {
            let expected = "`function` (the server has no tools of its own)";
            return refuse("type", expected, &format!("`{of_type}`"));
        }
        other => return refuse("type", "`function`", kind(&other)),
    }
    match get("name") {
        Value::String(name) if !name.is_empty() => {}
        Value::String(_) => return refuse("name", "a name", "an empty one"),
        other => return refuse("name", "a string", kind(&other)),
    }
    if let other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) =
        get("description")
    {
        return refuse("description", "a string", kind(&other));
    }
    match get("parameters") {
        Value::Null | Value::Object(_) => {}
        other => return refuse("parameters", "an object, a JSON schema", kind(&other)),
    }
    match get("strict") {
        Value::Null | Value::Bool(_) => {}
        other => return refuse("strict", "a boolean", kind(&other)),
    }
    for (key, value) in tool.iter().filter(|(key, _)| !KEYS.contains(&key.as_str())) {
        let says_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            // The model calls functions directly.
            value => key == "allowed_callers" && *value == json!(["direct"]),
        };
        if !says_nothing {
            return refuse(key, "none (tools have no such setting)", kind(value));
        }
    }
    let keys = KEYS.map(|key| (key.to_owned(), get(key)));
    Ok(Value::Object(keys.into_iter().collect()))
}

/// A tool as in a chat.
pub fn chat_tool(tool: &Value) -> Value {
    let mut function = Map::new();
    for key in ["name", "description", "parameters", "strict"] {
        let value = tool.get(key).unwrap_or(&Value::Null);
        // The model reads what is here.
        if !matches!(value, Value::Null | Value::Bool(false)) {
            function.insert(key.to_owned(), value.clone());
        }
    }
    json!({ "type": "function", "function": function })
}

/// `tool_choice` as in a chat; the tools are those of the request.
///
/// # Errors
/// 400 if it is no choice, or one among tools that are not there.
pub fn chat_choice(choice: &Value, tools: &[Value]) -> Result<Value, ApiError> {
    const EXPECTED: &str = "`none`, `auto`, `required`, {\"type\": \"function\", \"name\": …} or {\"type\": \"allowed_tools\", …}";
    let choice = match choice {
        Value::Null => return Ok(Value::from("auto")),
        Value::String(mode) => {
            return match mode.as_str() {
                "required" if tools.is_empty() => Err(ApiError::expected(
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
        other => return Err(ApiError::expected("tool_choice", EXPECTED, kind(other))),
    };
    match choice.get("type").and_then(Value::as_str) {
        Some("function") => chat_function("tool_choice", choice, tools),
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
            let allowed = allowed.iter().enumerate().map(|(i, tool)| {
                let place = format!("tool_choice.tools[{i}]");
                match tool {
                    Value::Object(tool) => chat_function(&place, tool, tools),
                    other => Err(ApiError::expected(&place, "an object", kind(other))),
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
                "`function` or `allowed_tools`",
                &found,
            ))
        }
    }
}

/// `{"type": "function", "name": …}` as in a chat.
fn chat_function(
    place: &str,
    function: &Map<String, Value>,
    tools: &[Value],
) -> Result<Value, ApiError> {
    match function.get("type").and_then(Value::as_str) {
        Some("function") | None => {}
        Some(other) => {
            let found = format!("`{other}`");
            return Err(ApiError::expected(
                format!("{place}.type"),
                "`function`",
                &found,
            ));
        }
    }
    let name = function.get("name").and_then(Value::as_str);
    let is_known = |name: &&str| tools.iter().any(|tool| tool["name"] == **name);
    match name.filter(is_known) {
        Some(name) => Ok(json!({ "type": "function", "function": { "name": name } })),
        None => {
            let found = name.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
            let expected = "the name of one of `tools`";
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

    fn function(name: &str) -> Value {
        json!({ "type": "function", "name": name })
    }

    #[test]
    fn tools_are_functions() {
        let parameters = json!({ "type": "object", "properties": { "a": {} } });
        let full = json!({ "type": "function", "name": "f", "description": "d", "parameters": parameters, "strict": true });
        let bare = json!({ "type": "function", "name": "g", "strict": null, "defer_loading": false, "allowed_callers": ["direct"] });
        let tools = read_tools(vec![full.clone(), bare]).unwrap();
        assert_eq!(tools[0], full);
        assert_eq!(
            tools[1],
            json!({ "type": "function", "name": "g", "description": null, "parameters": null, "strict": null })
        );
        assert_eq!(
            chat_tool(&tools[0]),
            json!({ "type": "function", "function": { "name": "f", "description": "d", "parameters": parameters, "strict": true } })
        );
        assert_eq!(
            chat_tool(&tools[1]),
            json!({ "type": "function", "function": { "name": "g" } })
        );
        for (tool, param) in [
            (json!("f"), "tools[0]"),
            (json!({ "name": "f" }), "tools[0].type"),
            (json!({ "type": "web_search" }), "tools[0].type"),
            (json!({ "type": "custom", "name": "f" }), "tools[0].type"),
            (
                json!({ "type": "function", "function": { "name": "f" } }),
                "tools[0].name",
            ),
            (json!({ "type": "function", "name": "" }), "tools[0].name"),
            (
                json!({ "type": "function", "name": "f", "description": 1 }),
                "tools[0].description",
            ),
            (
                json!({ "type": "function", "name": "f", "parameters": "{}" }),
                "tools[0].parameters",
            ),
            (
                json!({ "type": "function", "name": "f", "strict": "yes" }),
                "tools[0].strict",
            ),
            (
                json!({ "type": "function", "name": "f", "defer_loading": true }),
                "tools[0].defer_loading",
            ),
        ] {
            let error = read_tools(vec![tool]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.contains("expected"));
        }
    }

    #[test]
    fn choices_are_among_the_tools() {
        let tools = read_tools(vec![function("a"), function("b")]).unwrap();
        let chat = |name: &str| json!({ "type": "function", "function": { "name": name } });
        let allowed = |mode: &str, tool: Value| json!({ "type": "allowed_tools", "mode": mode, "tools": [tool] });
        for (choice, expected) in [
            (json!(null), json!("auto")),
            (json!("none"), json!("none")),
            (json!("required"), json!("required")),
            (function("b"), chat("b")),
            (
                allowed("required", function("b")),
                json!({ "type": "allowed_tools", "allowed_tools": { "mode": "required", "tools": [chat("b")] } }),
            ),
        ] {
            assert_eq!(chat_choice(&choice, &tools).unwrap(), expected);
        }
        for (choice, param) in [
            (json!("any"), "tool_choice"),
            (json!(5), "tool_choice"),
            (json!({ "type": "web_search" }), "tool_choice.type"),
            (json!({}), "tool_choice.type"),
            (function("c"), "tool_choice.name"),
            (chat("a"), "tool_choice.name"),
            (allowed("none", function("a")), "tool_choice.mode"),
            (allowed("auto", function("c")), "tool_choice.tools[0].name"),
            (
                allowed("auto", json!({ "type": "mcp", "name": "a" })),
                "tool_choice.tools[0].type",
            ),
            (
                json!({ "type": "allowed_tools", "mode": "auto" }),
                "tool_choice.tools",
            ),
        ] {
            let error = chat_choice(&choice, &tools).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{choice}");
        }
        assert!(chat_choice(&json!("required"), &[]).is_err());
        assert!(chat_choice(&json!("auto"), &[]).is_ok());
    }
}
