//! Whether a request fits its schema in `/openapi.json`, by the keywords that the document has.
//!
//! The server takes some forms besides those of the document: numbers and switches as texts, switches as numbers, and empty
//! values of fields, which say nothing.

use serde_json::Value;

/// What is wrong with the body of a `POST` to this path; `None` where the document has no schema for it.
pub(crate) fn error(document: &Value, path: &str, body: &Value) -> Option<String> {
    let path = path.trim_end_matches('/');
    let content = &document["paths"][path]["post"]["requestBody"]["content"];
    let schema = content["application/json"].get("schema")?;
    let forms = schema["oneOf"].as_array().into_iter().flatten();
    let required = forms
        .chain([schema])
        .filter_map(|form| form["required"].as_array());
    let required: Vec<&str> = required.flatten().filter_map(Value::as_str).collect();
    let mut body = body.clone();
    if let Value::Object(fields) = &mut body {
        fields.retain(|name, value| required.contains(&name.as_str()) || !is_empty(value));
    }
    check(schema, &body, "").err()
}

fn check(schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let schema = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(schema) => schema,
        other => return Err(format!("{place}: the schema is {other}")),
    };
    let wrong = |what: &str| Err(format!("{place}: {what}, found {value}"));
    for (keyword, of) in schema {
        let holds = match keyword.as_str() {
            "description" => true,
            "type" => match of {
                Value::Array(kinds) => kinds.iter().any(|kind| is(kind, value)),
                kind => is(kind, value),
            },
            "enum" => of.as_array().unwrap().contains(value),
            "const" => of == value,
            "not" => check(of, value, place).is_err(),
            "anyOf" | "oneOf" => {
                let all = of.as_array().unwrap().iter();
                let errors: Vec<String> = all
                    .clone()
                    .filter_map(|schema| check(schema, value, place).err())
                    .collect();
                let num = all.len() - errors.len();
                if num == 0 {
                    return Err(errors.join("\n"));
                }
                num == 1 || keyword == "anyOf"
            }
            "minimum" => value.as_f64().is_none_or(|it| it >= of.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|it| it > of.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|it| it <= of.as_f64().unwrap()),
            "minLength" => length(value).is_none_or(|len| len >= of.as_u64().unwrap()),
            "maxLength" => length(value).is_none_or(|len| len <= of.as_u64().unwrap()),
            "pattern" => value.as_str().is_none_or(|text| {
                let pattern = fancy_regex::Regex::new(of.as_str().unwrap()).unwrap();
                pattern.is_match(text).unwrap()
            }),
            "items" | "minItems" | "maxItems" => {
                let Value::Array(items) = value else { continue };
                match keyword.as_str() {
                    "items" => {
                        for (i, item) in items.iter().enumerate() {
                            check(of, item, &format!("{place}[{i}]"))?;
                        }
                        true
                    }
                    "minItems" => items.len() as u64 >= of.as_u64().unwrap(),
                    _ => items.len() as u64 <= of.as_u64().unwrap(),
                }
            }
            "required"
            | "properties"
            | "additionalProperties"
            | "propertyNames"
            | "maxProperties" => {
                let Value::Object(object) = value else {
                    continue;
                };
                match keyword.as_str() {
                    "required" => {
                        let mut required = of.as_array().unwrap().iter();
                        required.all(|key| object.contains_key(key.as_str().unwrap()))
                    }
                    "maxProperties" => object.len() as u64 <= of.as_u64().unwrap(),
                    "propertyNames" => {
                        for key in object.keys() {
                            check(of, &Value::from(key.as_str()), &format!("{place}.{key}"))?;
                        }
                        true
                    }
                    _ => {
                        for (key, value) in object {
                            let own = schema.get("properties").and_then(|own| own.get(key));
                            let of = own.or(schema.get("additionalProperties"));
                            let place = format!("{place}.{key}");
                            if of == Some(&Value::Bool(false)) {
                                return Err(format!("{place}: no such property"));
                            }
                            of.map_or(Ok(()), |of| check(of, value, &place))?;
                        }
                        true
                    }
                }
            }
            unknown => panic!("{place}: the schema has `{unknown}`, which is not checked here"),
        };
        if !holds {
            return wrong(&format!("{keyword} {of}"));
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn is(kind: &Value, value: &Value) -> bool {
    let text = value.as_str();
    let is_number = text.is_some_and(|text| text.parse::<f64>().is_ok()) || value.is_boolean();
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean() || value.is_u64() || matches!(text, Some("true" | "yes")),
        "number" | "integer" if is_number => true,
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("the type {other}"),
    }
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}
