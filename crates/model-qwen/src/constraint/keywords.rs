//! Keywords without a value, and with a wrong one.

use serde_json::{Map, Value};

use super::subschemas::{Holds, Step, find_inside, for_each_mut, holds};
use crate::json_file::json_type;

/// How llguidance begins the list of keywords that it does not know.
const UNIMPLEMENTED: &str = "Unimplemented keys";

/// Leaves out keywords that are null, as clients write what they have no value for. `const` and `default` may be null, and what a
/// property is called is no keyword.
pub fn drop_null_keywords(schema: &mut Value) {
    for_each_mut(schema, &mut |schema| {
        schema
            .retain(|keyword, value| !value.is_null() || matches!(&**keyword, "const" | "default"));
    });
}

/// The reason for which llguidance refuses a schema, with the place of the keyword that it is about.
pub(super) fn with_place(schema: &Value, reason: String) -> String {
    if let Some((place, keyword, what)) = mistyped(schema)
        && names(&reason, keyword)
    {
        return format!("{place}: {what}");
    }
    if !reason.contains(UNIMPLEMENTED) {
        return reason;
    }
    let found = find_inside(schema, &mut |schema: &Map<String, Value>| {
        let mut keywords = schema.keys();
        keywords.find(|keyword| reason.contains(&format!("{keyword:?}")))
    });
    match found {
        Some((steps, keyword)) if !steps.is_empty() => {
            format!("{}: {reason}", place(&steps, keyword))
        }
        _ => reason,
    }
}

/// Whether a reason is about a keyword: `Expected array for 'required'`, `enum must be an array`, `Invalid type`.
fn names(reason: &str, keyword: &str) -> bool {
    let forms = [format!("'{keyword}'"), format!("{keyword} must be")];
    let is_type = keyword == "type" && reason.starts_with("Invalid type");
    let is_schema = reason.contains("schema must be") && holds(keyword) != Holds::Nothing;
    is_type || is_schema || forms.iter().any(|form| reason.contains(form))
}

fn place(steps: &[Step<'_>], keyword: &str) -> String {
    let steps = steps.iter().rev().map(|step| format!("{step}."));
    steps.chain([keyword.to_owned()]).collect()
}

/// The first keyword whose value has a wrong type: its place, itself, and what is wrong.
fn mistyped(schema: &Value) -> Option<(String, &str, String)> {
    let (steps, (keyword, what)) = find_inside(schema, &mut |schema: &Map<String, Value>| {
        schema.iter().find_map(|(keyword, value)| {
            let (entry, what) = wrong(keyword, value)?;
            Some((keyword.as_str(), (entry, what)))
        })
    })?;
    let (entry, what) = what;
    Some((place(&steps, keyword) + &entry, keyword, what))
}

/// What is wrong in a keyword's value, and in which entry of it: the first one of an object or a list that is no schema or no type,
/// otherwise the value itself.
fn wrong(keyword: &str, value: &Value) -> Option<(String, String)> {
    let schema = |value| format!("expected a schema, found {}", json_type(value));
    let entry = match (holds(keyword), value) {
        (Holds::Map, Value::Object(schemas)) => {
            let wrong = schemas.iter().find(|(_, value)| !is_schema(value));
            wrong.map(|(name, value)| (format!(".{name}"), schema(value)))
        }
        (Holds::Schemas, Value::Array(schemas)) => {
            let is_wrong = |value: &Value| !value.is_object() && !value.is_boolean();
            let wrong = schemas.iter().position(is_wrong);
            wrong.map(|index| (format!("[{index}]"), schema(&schemas[index])))
        }
        (Holds::Nothing, Value::Array(types)) if keyword == "type" => {
            let wrong = types.iter().position(|value| !is_type(value));
            wrong.map(|index| {
                let what = format!("expected {}, found {}", TYPES.join(", "), types[index]);
                (format!("[{index}]"), what)
            })
        }
        _ => None,
    };
    entry.or_else(|| {
        let expected = expected(keyword, value)?;
        let what = format!("expected {expected}, found {}", json_type(value));
        Some((String::new(), what))
    })
}

/// What `type` may name.
const TYPES: [&str; 7] = [
    "null", "boolean", "object", "array", "number", "string", "integer",
];

fn is_type(value: &Value) -> bool {
    value.as_str().is_some_and(|name| TYPES.contains(&name))
}

/// Lists are what `dependencies` may have.
fn is_schema(value: &Value) -> bool {
    value.is_object() || value.is_boolean() || value.is_array()
}

/// What a keyword should have, if it has something else.
fn expected(keyword: &str, value: &Value) -> Option<&'static str> {
    let (fits, expected) = match keyword {
        "required" => {
            let names = value.as_array();
            let fits = names.is_some_and(|names| names.iter().all(Value::is_string));
            (fits, "a list of texts")
        }
        "enum" | "allOf" | "anyOf" | "oneOf" | "prefixItems" => (value.is_array(), "a list"),
        "type" => {
            let expected =
                "null, boolean, object, array, number, string, integer, or a list of them";
            (is_type(value) || value.is_array(), expected)
        }
        "$ref" | "pattern" | "format" => (value.is_string(), "a text"),
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
            (value.is_number(), "a number")
        }
        "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
            (value.is_u64(), "a whole number of 0 or more")
        }
        _ if holds(keyword) == Holds::Nothing => return None,
        _ if holds(keyword) == Holds::Map => (value.is_object(), "an object of schemas"),
        _ => (is_schema(value), "a schema"),
    };
    (!fits).then_some(expected)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_no_value_but_of_what_may_be_null() {
        let mut schema = json!({
            "type": "object", "title": null, "required": null, "enum": null,
            "properties": {
                "required": { "const": null, "default": null, "minLength": null },
                "a": { "anyOf": [{ "items": null, "examples": [null] }], "enum": [null, "x"] },
            },
            "$defs": { "d": { "pattern": null } },
        });
        drop_null_keywords(&mut schema);
        let expected = json!({
            "type": "object",
            "properties": {
                "required": { "const": null, "default": null },
                "a": { "anyOf": [{ "examples": [null] }], "enum": [null, "x"] },
            },
            "$defs": { "d": {} },
        });
        assert_eq!(schema, expected);
    }

    #[test]
    fn a_wrong_keyword_has_its_place() {
        let inside = |schema: Value| json!({ "properties": { "o": schema } });
        for (schema, reason, expected) in [
            (
                json!({ "required": "a" }),
                "Expected array for 'required', got \"a\"",
                "properties.o.required: expected a list of texts, found a string",
            ),
            (
                json!({ "enum": 5 }),
                "enum must be an array",
                "properties.o.enum: expected a list, found a number",
            ),
            (
                json!({ "properties": { "p": null } }),
                "schema must be an object or boolean",
                "properties.o.properties.p: expected a schema, found null",
            ),
            (
                json!({ "uniqueItems": true }),
                "Unimplemented keys: [\"uniqueItems\"]",
                "properties.o.uniqueItems: Unimplemented keys: [\"uniqueItems\"]",
            ),
            (
                json!({ "properties": [] }),
                "properties must be an object",
                "properties.o.properties: expected an object of schemas, found a list",
            ),
            (
                json!({ "anyOf": [{ "type": "string" }, null] }),
                "schema must be an object or boolean",
                "properties.o.anyOf[1]: expected a schema, found null",
            ),
            (
                json!({ "type": ["string", null] }),
                "type must be a string",
                "properties.o.type[1]: expected null, boolean, object, array, number, string, integer, found null",
            ),
            // What is wrong beside the reason is not said in its place.
            (
                json!({ "minLength": "x" }),
                "Unsatisfiable schema",
                "Unsatisfiable schema",
            ),
        ] {
            assert_eq!(with_place(&inside(schema), reason.to_owned()), expected);
        }
    }
}
