//! Whether a value fits a JSON Schema, for the keywords that the tests use.

use std::net::Ipv6Addr;

use fancy_regex::Regex;
use serde_json::Value;

/// Why `value` does not fit `schema`.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    fits(schema, value, schema)
}

fn fits(schema: &Value, value: &Value, root: &Value) -> Result<(), String> {
    let object = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(object) => object,
        _ => return Err(format!("{value}: no value fits {schema}")),
    };
    for (key, expected) in object {
        let fails = || Err(format!("{value}: {key} {expected}"));
        let ok = match key.as_str() {
            "type" => match expected {
                Value::Array(names) => names.iter().any(|name| is_a(value, name)),
                name => is_a(value, name),
            },
            "enum" => expected
                .as_array()
                .unwrap()
                .iter()
                .any(|one| equal(one, value)),
            "const" => equal(expected, value),
            "$ref" => {
                let place = expected.as_str().unwrap().trim_start_matches('#');
                fits(root.pointer(place).unwrap(), value, root)?;
                true
            }
            "anyOf" => number_of(expected, value, root) >= 1,
            "oneOf" => number_of(expected, value, root) == 1,
            "allOf" => number_of(expected, value, root) == expected.as_array().unwrap().len(),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => value
                .as_f64()
                .is_none_or(|number| bounds(key, number, expected.as_f64().unwrap())),
            "minLength" | "maxLength" => value
                .as_str()
                .is_none_or(|text| size(key, text.chars().count(), expected)),
            "pattern" => value.as_str().is_none_or(|text| matches(expected, text)),
            "format" => value.as_str().is_none_or(|text| has_format(expected, text)),
            "minItems" | "maxItems" => value
                .as_array()
                .is_none_or(|items| size(key, items.len(), expected)),
            "minProperties" | "maxProperties" => value
                .as_object()
                .is_none_or(|object| size(key, object.len(), expected)),
            "required" => value.as_object().is_none_or(|object| {
                expected
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|name| object.contains_key(name.as_str().unwrap()))
            }),
            // What items and properties keep to is checked below.
            "items"
            | "prefixItems"
            | "properties"
            | "patternProperties"
            | "additionalProperties"
            | "propertyNames"
            | "$defs" => true,
            other => panic!("the test knows no keyword {other}"),
        };
        if !ok {
            return fails();
        }
    }
    if let Value::Array(items) = value {
        let prefix = object.get("prefixItems").and_then(Value::as_array);
        let prefix = prefix.map_or(&[][..], Vec::as_slice);
        for (schema, item) in prefix.iter().zip(items) {
            fits(schema, item, root)?;
        }
        if let Some(schema) = object.get("items") {
            items
                .iter()
                .skip(prefix.len())
                .try_for_each(|item| fits(schema, item, root))?;
        }
    }
    if let Value::Object(values) = value {
        let in_map = |key: &str| object.get(key).and_then(Value::as_object);
        for (name, value) in values {
            let mut is_known = false;
            if let Some(schema) = in_map("properties").and_then(|properties| properties.get(name)) {
                is_known = true;
                fits(schema, value, root)?;
            }
            for (pattern, schema) in in_map("patternProperties").into_iter().flatten() {
                if matches(&Value::from(pattern.as_str()), name) {
                    is_known = true;
                    fits(schema, value, root)?;
                }
            }
            if let Some(schema) = object.get("additionalProperties").filter(|_| !is_known) {
                fits(schema, value, root).map_err(|error| format!("{name}: {error}"))?;
            }
            if let Some(schema) = object.get("propertyNames") {
                fits(schema, &Value::from(name.as_str()), root)?;
            }
        }
    }
    Ok(())
}

fn number_of(schemas: &Value, value: &Value, root: &Value) -> usize {
    let schemas = schemas.as_array().unwrap().iter();
    schemas
        .filter(|schema| fits(schema, value, root).is_ok())
        .count()
}

fn is_a(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        _ => value.is_object(),
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn bounds(key: &str, number: f64, bound: f64) -> bool {
    match key {
        "minimum" => number >= bound,
        "maximum" => number <= bound,
        "exclusiveMinimum" => number > bound,
        "exclusiveMaximum" => number < bound,
        _ => ((number / bound).round() * bound - number).abs() < 1e-6 * number.abs().max(1.0),
    }
}

fn size(key: &str, size: usize, bound: &Value) -> bool {
    let bound = bound.as_u64().unwrap() as usize;
    match key.starts_with("min") {
        true => size >= bound,
        false => size <= bound,
    }
}

fn matches(pattern: &Value, text: &str) -> bool {
    Regex::new(pattern.as_str().unwrap())
        .unwrap()
        .is_match(text)
        .unwrap()
}

fn has_format(format: &Value, text: &str) -> bool {
    let pattern = match format.as_str().unwrap() {
        "date" => r"^\d{4}-\d{2}-\d{2}$",
        "time" => r"^\d{2}:\d{2}:\d{2}(\.\d+)?([zZ]|[+-]\d{2}:\d{2})$",
        "date-time" => r"^\d{4}-\d{2}-\d{2}[tT]\d{2}:\d{2}:\d{2}(\.\d+)?([zZ]|[+-]\d{2}:\d{2})$",
        "uuid" => r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        "ipv4" => r"^((25[0-5]|2[0-4]\d|[01]?\d?\d)(\.(?!$)|$)){4}$",
        "ipv6" => return text.parse::<Ipv6Addr>().is_ok(),
        "email" | "idn-email" => r"^[^@]+@[^@]+$",
        "uri" => r"^[a-zA-Z][a-zA-Z0-9+.-]*:\S*$",
        "hostname" => {
            r"^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*$"
        }
        "duration" => r"^P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)$",
        // JSON Schema doesn't define it: any text has it.
        "int64" => "",
        other => panic!("the test knows no format {other}"),
    };
    Regex::new(pattern).unwrap().is_match(text).unwrap()
}
