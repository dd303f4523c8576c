//! JSON Schemas, brought into the part of the language that llguidance reads.
//!
//! llguidance refuses by name what it does not know. Here it gets the same schema in other words where it would refuse one that
//! can be said otherwise: references to any place of the document, `propertyNames`, a `oneOf` whose options exclude each other,
//! and formats that JSON Schema does not define, which are annotations.

use serde_json::{Map, Value, json};

use super::grammar_error::{GrammarError, invalid};
use super::json_style::JsonStyle;
use super::keywords::drop_null_keywords;
use super::subschemas::for_each_mut;
use super::{closed, endless, formats, numbers, one_of, property_names, references};

/// Values inside one another.
const MAX_DEPTH: usize = 256;
/// Bytes of a schema as text.
const MAX_BYTES: usize = 4 << 20;
/// White space between two signs of JSON, unless a style says otherwise: a space, or a line's end (or two) and an indentation of up
/// to eight levels of four spaces. Weak models go on and on writing it where they may, and never come to the next sign.
const WHITE_SPACE: &str = r"( |(\r?\n){1,2}[ \t]{0,32})";

/// The schema with llguidance's settings for a style.
pub(super) fn styled(mut schema: Value, style: &JsonStyle) -> Value {
    // What is too deep or too large is refused later.
    if style.closed_objects && depth(&schema, 0).is_ok() && schema.to_string().len() <= MAX_BYTES {
        drop_null_keywords(&mut schema);
        closed::close(&mut schema);
    }
    if let Value::Bool(accepts) = schema {
        schema = match accepts {
            true => json!({}),
            false => return schema,
        };
    }
    let Value::Object(object) = &mut schema else {
        return schema;
    };
    let mut settings = Map::new();
    if style.compact {
        settings.insert("whitespace_flexible".to_owned(), false.into());
    }
    if let Some(pattern) = &style.whitespace_pattern {
        settings.insert("whitespace_pattern".to_owned(), pattern.as_str().into());
    }
    match object.get("x-guidance") {
        None => {}
        Some(Value::Object(given)) => settings.extend(given.clone()),
        // llguidance says what is wrong with it.
        Some(_) => return schema,
    }
    if !settings.is_empty() {
        object.insert("x-guidance".to_owned(), settings.into());
    }
    schema
}

/// The schema as llguidance takes it.
///
/// # Errors
/// If it is no schema, or too deep.
pub(super) fn prepared(schema: &Value) -> Result<Value, GrammarError> {
    match schema {
        Value::Object(_) => {}
        Value::Bool(true) => return Ok(spaced(Map::new())),
        Value::Bool(false) => return Ok(schema.clone()),
        _ => return invalid("a JSON schema: expected an object, found something else"),
    }
    depth(schema, 0)?;
    let num_bytes = schema.to_string().len();
    if num_bytes > MAX_BYTES {
        return Err(GrammarError::TooLarge(format!(
            "expected a schema of at most {MAX_BYTES} bytes, found {num_bytes}"
        )));
    }
    let mut schema = schema.clone();
    drop_null_keywords(&mut schema);
    let mut schema = references::resolved(schema, MAX_BYTES)?;
    endless::check(&schema)?;
    numbers::bounded(&mut schema)?;
    let root = schema.clone();
    for_each_mut(&mut schema, &mut |schema| {
        drop_annotations(schema);
        formats::complete(schema);
        property_names::without(schema);
        one_of::to_any_of(schema, &root);
    });
    Ok(match schema {
        Value::Object(schema) => spaced(schema),
        other => other,
    })
}

/// The schema with a bound of white space, unless it has settings of white space.
fn spaced(mut schema: Map<String, Value>) -> Value {
    let settings = schema
        .entry("x-guidance")
        .or_insert_with(|| Map::new().into());
    // llguidance says what is wrong with settings of another type.
    if let Value::Object(settings) = settings
        && settings.get("whitespace_flexible") != Some(&Value::Bool(false))
    {
        let pattern = settings.entry("whitespace_pattern");
        pattern.or_insert_with(|| WHITE_SPACE.into());
    }
    schema.into()
}

/// Checks how deep the value is, as whoever reads it goes down as deep.
fn depth(value: &Value, level: usize) -> Result<(), GrammarError> {
    if level > MAX_DEPTH {
        return Err(GrammarError::TooLarge(format!(
            "the schema is deeper than {MAX_DEPTH} levels"
        )));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| depth(item, level + 1)),
        Value::Object(items) => items.values().try_for_each(|item| depth(item, level + 1)),
        _ => Ok(()),
    }
}

/// Formats that JSON Schema defines. All others are annotations: nothing is checked by them.
const FORMATS: [&str; 19] = [
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "idn-email",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "iri",
    "iri-reference",
    "json-pointer",
    "regex",
    "relative-json-pointer",
    "time",
    "uri",
    "uri-reference",
    "uri-template",
    "uuid",
];

/// Leaves out keywords that accept everything.
fn drop_annotations(schema: &mut Map<String, Value>) {
    let is_annotation = |schema: &Map<String, Value>, key: &str| match (key, schema.get(key)) {
        ("format", Some(Value::String(format))) => !FORMATS.contains(&format.as_str()),
        ("uniqueItems", Some(value)) => *value == Value::Bool(false),
        ("unevaluatedItems" | "unevaluatedProperties", Some(value)) => *value == Value::Bool(true),
        ("dependentRequired" | "dependentSchemas" | "dependencies", Some(Value::Object(rules))) => {
            rules.is_empty()
        }
        _ => false,
    };
    for key in [
        "format",
        "uniqueItems",
        "unevaluatedItems",
        "unevaluatedProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
    ] {
        if is_annotation(schema, key) {
            schema.shift_remove(key);
        }
    }
}
