//! The schema of the arguments of a call.

use model_qwen::{Grammar, JsonStyle};
use serde_json::{Value, json};

/// A schema with no properties besides those that it names; none at all where it says nothing of any.
pub(super) fn closed_schema(schema: &Value, space: &str) -> Value {
    const SAY_NOTHING: [&str; 5] = ["type", "title", "description", "$schema", "required"];
    let mut schema = schema.clone();
    if let Value::Object(object) = &mut schema
        && object.keys().all(|key| SAY_NOTHING.contains(&key.as_str()))
        && !object
            .get("required")
            .is_some_and(|names| *names != json!([]))
    {
        object.insert("properties".to_owned(), json!({}));
    }
    let style = JsonStyle {
        compact: false,
        whitespace_pattern: Some(space.to_owned()),
        closed_objects: true,
    };
    match Grammar::JsonSchema(schema).styled(&style) {
        Grammar::JsonSchema(schema) => schema,
        _ => Value::Bool(false),
    }
}
