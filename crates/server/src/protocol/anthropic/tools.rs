//! Tools with an `input_schema` as OpenAI's functions.

use model_qwen::json_type;
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// Reads the list `tools`.
pub(super) fn read(tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let tools = tools.into_iter().enumerate();
    tools.map(|(i, tool)| one(i, tool)).collect()
}

fn one(i: usize, tool: Value) -> Result<Value, ApiError> {
    let place = format!("tools[{i}]");
    let Value::Object(mut tool) = tool else {
        return Err(ApiError::expected(place, "an object", json_type(&tool)));
    };
    match tool.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "custom" => {}
        Some(Value::String(kind)) => {
            let expected = "`custom` (the server runs no tools, and the model knows none of Anthropic's: \
                give a tool with an `input_schema`)";
            let place = format!("{place}.type");
            return Err(ApiError::expected(place, expected, &format!("`{kind}`")));
        }
        Some(other) => {
            let place = format!("{place}.type");
            return Err(ApiError::expected(place, "a string", json_type(other)));
        }
    }
    let Some(Value::String(name)) = tool.shift_remove("name").filter(|name| name != "") else {
        return Err(ApiError::expected(
            format!("{place}.name"),
            "a name",
            "none",
        ));
    };
    let mut schema = match tool.shift_remove("input_schema") {
        Some(Value::Object(schema)) => schema,
        other => {
            let found = other.as_ref().map_or("nothing", json_type);
            let place = format!("{place}.input_schema");
            let expected = "an object, a JSON schema";
            return Err(ApiError::expected(place, expected, found));
        }
    };
    schema.entry("type").or_insert_with(|| json!("object"));
    let mut function = Map::new();
    function.insert("name".to_owned(), Value::String(name));
    for field in ["description", "strict"] {
        if let Some(value) = tool.shift_remove(field).filter(|value| !value.is_null()) {
            function.insert(field.to_owned(), value);
        }
    }
    function.insert("parameters".to_owned(), Value::Object(schema));
    Ok(json!({ "type": "function", "function": function }))
}
