//! The keywords of schemas.

use serde_json::Value;

/// Keywords that decide nothing.
pub(super) const NOTES: [&str; 13] = [
    "$schema",
    "$id",
    "$comment",
    "$anchor",
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
];
/// Keywords whose value is a schema.
pub(super) const ONE: [&str; 4] = ["items", "additionalProperties", "not", "propertyNames"];
/// Keywords whose value is a list of schemas.
pub(super) const SOME: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
/// Keywords whose value is an object of schemas.
pub(super) const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keywords whose value is a number.
pub(super) const NUMBERS: [&str; 11] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
];
const TYPES: [&str; 7] = [
    "object", "array", "string", "number", "integer", "boolean", "null",
];

/// Checks the value of a keyword without schemas in it; what is expected otherwise.
pub(super) fn check_plain(name: &str, value: &Value) -> Result<(), &'static str> {
    let is_type = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let list = value.as_array();
    let (is_right, expected) = match name {
        "enum" => (list.is_some(), "a list of values"),
        "uniqueItems" => (value.is_boolean(), "true or false"),
        "required" => (
            list.is_some_and(|list| list.iter().all(Value::is_string)),
            "a list of names",
        ),
        "type" => (
            is_type(value) || list.is_some_and(|list| list.iter().all(is_type)),
            "object, array, string, number, integer, boolean, null, or a list of these",
        ),
        _ => (true, ""),
    };
    if is_right { Ok(()) } else { Err(expected) }
}
