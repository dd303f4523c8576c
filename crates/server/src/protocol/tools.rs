//! `tools` and `tool_choice`.

use model_qwen::{drop_null_keywords, json_type};
use serde_json::{Map, Value, json};

use super::switches::switch;
use crate::answer::Tool;
use crate::error::ApiError;

/// Which tools an answer may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// None.
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// Reads the list `tools`.
///
/// # Errors
/// 400 with the field of a tool that is no function.
pub fn read_tools(tools: &[Value]) -> Result<Vec<Tool>, ApiError> {
    let tools = tools.iter().enumerate();
    tools.map(|(i, tool)| read_tool(i, tool)).collect()
}

fn read_tool(i: usize, tool: &Value) -> Result<Tool, ApiError> {
    let place = format!("tools[{i}]");
    let Value::Object(tool) = tool else {
        return Err(ApiError::expected(&place, "an object", json_type(tool)));
    };
    match tool.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "function" => {}
        Some(other) => {
            let expected = "`function` (the server has no tools of its own)";
            return Err(ApiError::expected(
                format!("{place}.type"),
                expected,
                &shown(other),
            ));
        }
    }
    let place = format!("{place}.function");
    let function = match tool.get("function") {
        Some(Value::Object(function)) => function,
        other => {
            return Err(ApiError::expected(
                &place,
                "an object",
                other.map_or("nothing", json_type),
            ));
        }
    };
    let name = match function.get("name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(Value::String(_)) => {
            return Err(ApiError::expected(
                format!("{place}.name"),
                "a name",
                "an empty one",
            ));
        }
        other => {
            let found = other.map_or("nothing", json_type);
            return Err(ApiError::expected(
                format!("{place}.name"),
                "a string",
                found,
            ));
        }
    };
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => json!({ "type": "object", "properties": {} }),
        Some(Value::Object(schema)) => of_object(&place, schema)?,
        Some(other) => {
            let expected = "an object, a JSON schema";
            return Err(ApiError::expected(
                format!("{place}.parameters"),
                expected,
                json_type(other),
            ));
        }
    };
    let strict = function.get("strict").or_else(|| tool.get("strict"));
    let strict = switch(&format!("{place}.strict"), strict)?.unwrap_or(false);
    Ok(Tool {
        index: i,
        name,
        parameters,
        strict,
    })
}

/// The schema of arguments, which are an object.
fn of_object(place: &str, schema: &Map<String, Value>) -> Result<Value, ApiError> {
    let allows = |kind: &Value| match kind {
        Value::String(kind) => kind == "object",
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "object"),
        _ => false,
    };
    let mut schema = Value::Object(schema.clone());
    drop_null_keywords(&mut schema);
    let Value::Object(mut schema) = schema else {
        return Ok(schema);
    };
    if let Some(kind) = schema.get("type").filter(|kind| !allows(kind)) {
        return Err(ApiError::expected(
            format!("{place}.parameters.type"),
            "`object`",
            &shown(kind),
        ));
    }
    // What it refers to says it.
    if !schema.contains_key("$ref") {
        schema.insert("type".to_owned(), Value::from("object"));
    }
    Ok(Value::Object(schema))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{}`", text.chars().take(64).collect::<String>()),
        other => json_type(other).to_owned(),
    }
}

/// `tool_choice`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedTools {
    /// Which tools an answer may or must call.
    pub tool_choice: ToolChoice,
    /// Names of the only tools that may be called; `None` = all.
    pub allowed: Option<Vec<String>>,
}

impl From<ToolChoice> for AllowedTools {
    fn from(tool_choice: ToolChoice) -> Self {
        let allowed = None;
        Self {
            tool_choice,
            allowed,
        }
    }
}

impl AllowedTools {
    /// Whether a tool of this name may be called.
    pub fn allows(&self, name: &str) -> bool {
        let allowed = self.allowed.as_ref();
        allowed.is_none_or(|allowed| allowed.iter().any(|allowed| allowed == name))
    }
}

/// Reads `tool_choice`.
///
/// # Errors
/// 400 if it is no choice, or one among tools that are not there.
pub fn read_choice(
    choice: Option<&Value>,
    tools: Option<&[Value]>,
) -> Result<AllowedTools, ApiError> {
    const PARAM: &str = "tool_choice";
    const EXPECTED: &str = "`none`, `auto`, `required`, {\"type\": \"function\", \"function\": {\"name\": …}} or {\"type\": \"allowed_tools\", …}";
    let choice = match choice {
        None | Some(Value::Null) => return Ok(AllowedTools::default()),
        Some(choice) => choice,
    };
    let tools = tools.unwrap_or_default();
    let choice = match choice {
        Value::String(mode) => {
            let mode = mode_of(mode);
            mode.ok_or_else(|| ApiError::expected(PARAM, EXPECTED, &shown(choice)))?
                .into()
        }
        Value::Object(object) => match object.get("type").and_then(Value::as_str) {
            Some("function") | None => {
                let name = function_name(object).ok_or_else(|| {
                    ApiError::expected("tool_choice.function.name", "a name", "none")
                })?;
                ToolChoice::Named(name.to_owned()).into()
            }
            Some("allowed_tools") => allowed(object, tools)?,
            Some(other) => {
                return Err(ApiError::expected(
                    "tool_choice.type",
                    "`function` or `allowed_tools`",
                    &format!("`{other}`"),
                ));
            }
        },
        other => return Err(ApiError::expected(PARAM, EXPECTED, json_type(other))),
    };
    let mut names = tools.iter().filter_map(name_of);
    match &choice.tool_choice {
        ToolChoice::Required
            if tools.is_empty() || choice.allowed.as_ref().is_some_and(Vec::is_empty) =>
        {
            Err(ApiError::expected(PARAM, "`tools` with it", "none"))
        }
        ToolChoice::Named(name) if !names.any(|known| known == name) => {
            let param = "tool_choice.function.name";
            Err(ApiError::expected(
                param,
                "the name of one of `tools`",
                &format!("`{name}`"),
            ))
        }
        _ => Ok(choice),
    }
}

fn mode_of(mode: &str) -> Option<ToolChoice> {
    match mode {
        "none" => Some(ToolChoice::None),
        "auto" => Some(ToolChoice::Auto),
        "required" => Some(ToolChoice::Required),
        _ => None,
    }
}

fn function_name(object: &Map<String, Value>) -> Option<&str> {
    let name = object.get("function")?.get("name")?.as_str()?;
    (!name.is_empty()).then_some(name)
}

/// The name of a tool.
pub fn name_of(tool: &Value) -> Option<&str> {
    function_name(tool.as_object()?)
}

/// OpenAI's list of the only tools that may be called; the model reads of all.
fn allowed(object: &Map<String, Value>, tools: &[Value]) -> Result<AllowedTools, ApiError> {
    const PLACE: &str = "tool_choice.allowed_tools";
    let allowed = object.get("allowed_tools").and_then(Value::as_object);
    let allowed = allowed.ok_or_else(|| ApiError::expected(PLACE, "an object", "none"))?;
    let tool_choice = match allowed.get("mode").and_then(Value::as_str) {
        Some("auto") | None => ToolChoice::Auto,
        Some("required") => ToolChoice::Required,
        Some(other) => {
            let found = format!("`{other}`");
            return Err(ApiError::expected(
                format!("{PLACE}.mode"),
                "`auto` or `required`",
                &found,
            ));
        }
    };
    let list = allowed.get("tools").and_then(Value::as_array);
    let list =
        list.ok_or_else(|| ApiError::expected(format!("{PLACE}.tools"), "a list", "none"))?;
    let known = |name: &&str| tools.iter().any(|tool| name_of(tool) == Some(name));
    let names = list.iter().enumerate().map(|(i, entry)| {
        let name = name_of(entry);
        name.filter(known).map(str::to_owned).ok_or_else(|| {
            let found = name.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
            let place = format!("{PLACE}.tools[{i}].function.name");
            ApiError::expected(&place, "the name of one of `tools`", &found)
        })
    });
    Ok(AllowedTools {
        tool_choice,
        allowed: Some(names.collect::<Result<_, _>>()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str) -> Value {
        json!({ "type": "function", "function": { "name": name } })
    }

    #[test]
    fn tools_are_functions() {
        let parameters = json!({ "type": "object", "properties": { "a": {} } });
        let full = json!({ "type": "function", "function": { "name": "f", "parameters": parameters, "strict": true } });
        let bare = json!({ "function": { "name": "g", "parameters": null, "strict": null } });
        let tools = read_tools(&[full, bare]).unwrap();
        assert_eq!((tools[0].name.as_str(), tools[0].strict), ("f", true));
        assert_eq!(tools[0].parameters, parameters);
        assert_eq!((tools[1].name.as_str(), tools[1].strict), ("g", false));
        // A keyword without a value is none.
        let parameters =
            json!({ "type": null, "required": null, "properties": { "a": { "enum": null } } });
        let tool = json!({ "function": { "name": "f", "parameters": parameters } });
        let expected = json!({ "properties": { "a": {} }, "type": "object" });
        assert_eq!(read_tools(&[tool]).unwrap()[0].parameters, expected);
        for strict in [json!("true"), json!(1), json!("on")] {
            let tool = json!({ "function": { "name": "f", "strict": strict } });
            assert!(read_tools(&[tool]).unwrap()[0].strict, "{strict}");
        }
        // Arguments are an object, whether or not the schema says so.
        for parameters in [json!({}), json!({ "type": ["object", "string"] })] {
            let tool = json!({ "function": { "name": "f", "parameters": parameters } });
            assert_eq!(read_tools(&[tool]).unwrap()[0].parameters["type"], "object");
        }
        for (tool, param) in [
            (json!("f"), "tools[0]"),
            (json!({ "type": "custom", "custom": {} }), "tools[0].type"),
            (
                json!({ "type": "function", "name": "f" }),
                "tools[0].function",
            ),
            (json!({ "function": {} }), "tools[0].function.name"),
            (
                json!({ "function": { "name": "" } }),
                "tools[0].function.name",
            ),
            (
                json!({ "function": { "name": "f", "parameters": "{}" } }),
                "tools[0].function.parameters",
            ),
            (
                json!({ "function": { "name": "f", "strict": "maybe" } }),
                "tools[0].function.strict",
            ),
            (
                json!({ "function": { "name": "f", "parameters": { "type": "array" } } }),
                "tools[0].function.parameters.type",
            ),
        ] {
            let error = read_tools(&[tool]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.contains("expected"));
        }
    }

    #[test]
    fn choices_are_among_the_tools() {
        let read = |choice: Value, names: &[&str]| {
            let tools: Vec<Value> = names.iter().map(|name| function(name)).collect();
            let choice = read_choice(Some(&choice), Some(&tools))?;
            let num_allowed = names.iter().filter(|name| choice.allows(name)).count();
            Ok::<_, ApiError>((choice.tool_choice, num_allowed))
        };
        for (choice, expected) in [
            (json!(null), ToolChoice::Auto),
            (json!("auto"), ToolChoice::Auto),
            (json!("none"), ToolChoice::None),
            (json!("required"), ToolChoice::Required),
            (function("b"), ToolChoice::Named("b".to_owned())),
        ] {
            assert_eq!(read(choice, &["a", "b"]).unwrap(), (expected, 2));
        }
        let some = |mode: &str, name: &str| json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": [function(name)] } });
        assert_eq!(
            read(some("auto", "b"), &["a", "b"]).unwrap(),
            (ToolChoice::Auto, 1)
        );
        assert_eq!(
            read(some("required", "b"), &["a", "b"]).unwrap(),
            (ToolChoice::Required, 1)
        );
        for (choice, param) in [
            (json!("any"), "tool_choice"),
            (json!(5), "tool_choice"),
            (json!({ "type": "custom" }), "tool_choice.type"),
            (json!({ "type": "function" }), "tool_choice.function.name"),
            (function("c"), "tool_choice.function.name"),
            (
                some("auto", "c"),
                "tool_choice.allowed_tools.tools[0].function.name",
            ),
            (some("maybe", "a"), "tool_choice.allowed_tools.mode"),
        ] {
            let error = read(choice, &["a", "b"]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
        for choice in [json!("required"), function("a")] {
            assert!(read(choice, &[]).is_err());
        }
        for choice in [json!("auto"), json!("none")] {
            assert!(read_choice(Some(&choice), None).is_ok());
        }
    }
}
