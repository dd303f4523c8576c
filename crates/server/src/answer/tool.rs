//! Tools, and values of their parameters that are written without JSON.

use serde_json::value::RawValue;
use serde_json::{Number, Value};

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its place in the request's list.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// Whether calls have to follow the schema.
    pub strict: bool,
}

/// How deep schemas of one parameter may refer to others.
const MAX_DEPTH: usize = 8;

/// Whether a text without white space around it stands for null, where null may be.
pub(crate) fn is_null(text: &str) -> bool {
    matches!(text, "null" | "None" | "none" | "NULL")
}

impl Tool {
    /// A parameter's value from its text, as JSON: of the type that the schema says, or the text itself.
    pub(super) fn value(&self, parameter: &str, text: &str) -> String {
        let types = self.types_of(parameter);
        let trimmed = text.trim();
        let is_null = is_null(trimmed);
        let first = types.iter().find(|kind| **kind != "null");
        let value = match first.copied() {
            _ if is_null && types.contains(&"null") => Some(Value::Null),
            None | Some("string") => None,
            _ if is_null => Some(Value::Null),
            Some("integer") => trimmed
                .parse()
                .map(|n: i64| n.into())
                .or_else(|_| trimmed.parse().map(|n: u64| n.into()))
                .ok(),
            Some("number") => serde_json::from_str::<Number>(trimmed)
                .map(Value::Number)
                .ok(),
            Some("boolean") => match trimmed.to_ascii_lowercase().as_str() {
                "true" => Some(true.into()),
                "false" => Some(false.into()),
                _ => None,
            },
            Some(_) => serde_json::from_str(trimmed).ok(),
        };
        match (value, first) {
            (Some(value), _) => value.to_string(),
            (None, Some(kind)) if is_large(kind, trimmed) => trimmed.to_owned(),
            _ => Value::from(text).to_string(),
        }
    }

    /// Whether a parameter is a list or an object, whose texts may have any tag in them.
    pub(super) fn nests(&self, parameter: &str) -> bool {
        let types = self.types_of(parameter);
        let mut types = types.into_iter().filter(|kind| *kind != "null");
        types
            .next()
            .is_some_and(|kind| matches!(kind, "array" | "object"))
    }

    /// Whether it takes any argument, as far as its schema says.
    pub(super) fn has_parameters(&self) -> bool {
        let known = self.parameters.get("properties").and_then(Value::as_object);
        match known {
            Some(properties) => !properties.is_empty(),
            // A schema may say it in another way.
            None => (self.parameters.as_object())
                .is_some_and(|schema| schema.keys().any(|key| key != "type")),
        }
    }

    /// Whether an argument of this name is in its schema.
    pub(super) fn has_parameter(&self, name: &str) -> bool {
        let properties = self.parameters.get("properties");
        properties.is_some_and(|properties| properties.get(name).is_some())
    }

    /// The types of a parameter, in the order of its schema.
    fn types_of(&self, parameter: &str) -> Vec<&str> {
        let schemas = self.parameters.pointer("/properties");
        let schema = schemas.and_then(|schemas| schemas.get(parameter));
        schema.map_or_else(Vec::new, |schema| self.types(schema))
    }

    /// The types that a schema in the parameters names, in its order.
    pub(crate) fn types<'a>(&'a self, schema: &'a Value) -> Vec<&'a str> {
        let mut types = Vec::new();
        self.add_types(schema, MAX_DEPTH, &mut types);
        types
    }

    fn add_types<'a>(&'a self, schema: &'a Value, depth: usize, types: &mut Vec<&'a str>) {
        if depth == 0 {
            return;
        }
        let reference = schema.get("$ref").and_then(Value::as_str);
        if let Some(path) = reference.and_then(|reference| reference.strip_prefix('#'))
            && let Some(schema) = self.parameters.pointer(path)
        {
            self.add_types(schema, depth - 1, types);
        }
        match schema.get("type") {
            Some(Value::String(kind)) => types.push(kind),
            Some(Value::Array(kinds)) => types.extend(kinds.iter().filter_map(Value::as_str)),
            _ => {}
        }
        for field in ["anyOf", "oneOf", "allOf"] {
            for schema in schema
                .get(field)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                self.add_types(schema, depth - 1, types);
            }
        }
        let values = schema.get("enum").and_then(Value::as_array);
        if types.is_empty() {
            let values = values.into_iter().flatten().chain(schema.get("const"));
            types.extend(values.map(|value| match value {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "number",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            }));
        }
    }
}

/// Whether a text is JSON of a type, with a number that has no room in a [`Number`].
fn is_large(kind: &str, text: &str) -> bool {
    let is_digit = |byte: u8| byte == b'-' || byte.is_ascii_digit();
    let may_be = match kind {
        "integer" => text.bytes().all(is_digit),
        "number" => text.bytes().next().is_some_and(is_digit),
        "object" | "array" => text.starts_with(['{', '[']),
        _ => false,
    };
    may_be && is_json(text)
}

/// Whether a text is JSON, with space around it or without.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}
