//! Strict calls in the form of Qwen3-Coder, `<function=NAME><parameter=P>VALUE</parameter></function>`. The form has no quotes:
//! what [`Tool::value`] makes of a parameter's text has to follow its schema.

use serde_json::{Map, Value, json};

use super::closed_schema::closed_schema;
use crate::answer::{OPEN_FUNCTION, Tool, is_null};
use crate::error::ApiError;

const CLOSE_FUNCTION: &str = "</function>";
const CLOSE_PARAMETER: &str = "</parameter>";
/// Bytes of a name of a tool or of a parameter, at most. The parser has room for a few more, with the tag.
const MAX_NAME: usize = 240;
/// References and alternatives of one parameter inside one another.
const MAX_DEPTH: usize = 8;
/// Keys of a schema that say nothing of its values.
const NOTES: [&str; 8] = [
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
];
/// Keys of arguments that are understood, besides [`NOTES`].
const OF_ARGUMENTS: [&str; 8] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "$id",
];

/// The texts of a parameter.
#[derive(Debug, PartialEq)]
enum Texts {
    Any,
    /// One of these.
    Listed(Vec<String>),
}

/// The tags of all tools. Parameters of strict ones follow their schemas; behind the name of another one anything may come.
///
/// # Errors
/// 400 with the tool whose schema this form cannot keep to.
pub(super) fn tags(tools: &[Tool]) -> Result<Vec<Value>, ApiError> {
    let tags = tools.iter().map(|tool| {
        let refused = |reason: String| {
            let param = format!("tools[{}].function.strict", tool.index);
            let message = format!(
                "`{param}` is not supported for `{}` by this --tool-call-parser, whose calls have the form `<function=…>`: {reason}.",
                tool.name
            );
            ApiError::bad_request(param, message)
        };
        let name = &tool.name;
        match (is_name(name), tool.strict) {
            (true, true) => strict_tag(tool).map(Some).map_err(refused),
            (true, false) => {
                let rest = json!({ "type": "const_string", "value": "" });
                Ok(Some(tag(format!("{OPEN_FUNCTION}{name}>"), rest, "")))
            }
            (false, true) => Err(refused("its name cannot be written so".to_owned())),
            (false, false) => Ok(None),
        }
    });
    let tags = tags.collect::<Result<Vec<_>, ApiError>>()?;
    Ok(tags.into_iter().flatten().collect())
}

fn tag(begin: String, content: Value, end: &str) -> Value {
    json!({ "type": "tag", "begin": begin, "content": content, "end": end })
}

/// Whether a tag can hold a name.
fn is_name(name: &str) -> bool {
    let is_plain = name.trim() == name && !name.contains(['>', '<', '\n', '"', '\'']);
    is_plain && (1..=MAX_NAME).contains(&name.len())
}

fn strict_tag(tool: &Tool) -> Result<Value, String> {
    let unknown = tool.parameters.as_object().into_iter().flat_map(Map::keys);
    let mut unknown = unknown.filter(|key| !is_note(key) && !OF_ARGUMENTS.contains(&key.as_str()));
    if let Some(key) = unknown.next() {
        return Err(format!("it cannot keep to `{key}`"));
    }
    let empty = Map::new();
    let properties = tool.parameters.get("properties");
    let properties = properties.and_then(Value::as_object).unwrap_or(&empty);
    let required = tool.parameters.get("required").and_then(Value::as_array);
    let required: Vec<&str> = required
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if let Some(name) = required
        .iter()
        .find(|name| !properties.contains_key(**name))
    {
        return Err(format!(
            "`required` names `{name}`, of which there is no schema"
        ));
    }
    let mut elements = Vec::new();
    for (name, schema) in properties {
        if !is_name(name) {
            return Err(format!("the parameter `{name}` cannot be written so"));
        }
        let begin = format!("\n<parameter={name}>");
        let parameter = parameter(tool, schema, begin)
            .map_err(|reason| format!("the parameter `{name}` {reason}"))?;
        elements.push(match required.contains(&name.as_str()) {
            true => parameter,
            false => json!({ "type": "tags_with_separator", "tags": [parameter], "separator": "",
                "stop_after_first": true }),
        });
    }
    elements.push(json!({ "type": "const_string", "value": format!("\n{CLOSE_FUNCTION}") }));
    let content = json!({ "type": "sequence", "elements": elements });
    Ok(tag(format!("{OPEN_FUNCTION}{}>", tool.name), content, ""))
}

/// A parameter whose value follows its schema.
fn parameter(tool: &Tool, schema: &Value, begin: String) -> Result<Value, String> {
    if let Some(texts) = texts(tool, schema, MAX_DEPTH)? {
        let Texts::Listed(texts) = texts else {
            let any = json!({ "type": "any_text", "excludes": [CLOSE_FUNCTION] });
            return Ok(tag(begin, any, CLOSE_PARAMETER));
        };
        let ends = [CLOSE_PARAMETER, CLOSE_FUNCTION];
        if texts
            .iter()
            .any(|text| ends.iter().any(|end| text.contains(end)))
        {
            return Err("has a value with a tag that ends it".to_owned());
        }
        let reads_null = |text: &String| text != "null" && is_null(text.trim());
        if tool.types(schema).contains(&"null") && texts.iter().any(reads_null) {
            return Err("has a value that is read as null".to_owned());
        }
        let texts = texts
            .iter()
            .map(|text| json!({ "type": "const_string", "value": format!("\n{text}\n") }));
        let texts: Vec<Value> = texts.collect();
        let one = json!({ "type": "or", "elements": texts });
        return Ok(tag(begin, one, CLOSE_PARAMETER));
    }
    let mut schema = schema.clone();
    if let Value::Object(schema) = &mut schema {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = tool.parameters.get(key) {
                schema.insert(key.to_owned(), definitions.clone());
            }
        }
    }
    if refers_elsewhere(&schema) {
        return Err("has a `$ref` to another place than `$defs`".to_owned());
    }
    let json = json!({ "type": "json_schema", "json_schema": closed_schema(&schema, " ?") });
    Ok(tag(begin + "\n", json, &format!("\n{CLOSE_PARAMETER}")))
}

/// Whether a schema refers to what a parameter by itself does not have.
fn refers_elsewhere(schema: &Value) -> bool {
    let is_within = |path: &str| path.starts_with("#/$defs/") || path.starts_with("#/definitions/");
    match schema {
        Value::Object(keys) => keys.iter().any(|(key, value)| match value {
            Value::String(path) => key == "$ref" && !is_within(path),
            value => refers_elsewhere(value),
        }),
        Value::Array(values) => values.iter().any(refers_elsewhere),
        _ => false,
    }
}

/// The texts of a parameter that is a text; `None` if it is written as JSON.
fn texts(tool: &Tool, schema: &Value, depth: usize) -> Result<Option<Texts>, String> {
    let kinds = tool.types(schema);
    let mut kinds: Vec<&str> = kinds.into_iter().filter(|kind| *kind != "null").collect();
    kinds.sort_unstable();
    kinds.dedup();
    match kinds.as_slice() {
        ["string"] => listed(tool, schema, depth).map(Some),
        // Without a type the value is a text.
        [] if is_empty(schema) => Ok(Some(Texts::Any)),
        [] if schema.get("type").is_some() => Ok(None),
        [] => Err("has a schema without `type`".to_owned()),
        [_] | ["array", "object"] => Ok(None),
        _ => Err(format!("may have several types ({})", kinds.join(", "))),
    }
}

/// The texts that a schema of texts lists.
fn listed(tool: &Tool, schema: &Value, depth: usize) -> Result<Texts, String> {
    let too_deep = || "has a schema that is too deep".to_owned();
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    let empty = Map::new();
    let keys = schema.as_object().unwrap_or(&empty);
    let says = keys.keys().map(String::as_str);
    let mut says: Vec<&str> = says.filter(|key| !is_note(key)).collect();
    says.sort_unstable();
    match says.as_slice() {
        [] | ["type"] => match schema.get("type").and_then(Value::as_str) {
            Some("null") => Ok(Texts::Listed(vec!["null".to_owned()])),
            _ => Ok(Texts::Any),
        },
        ["$ref"] => {
            let path = schema["$ref"]
                .as_str()
                .and_then(|path| path.strip_prefix('#'));
            let target = path.and_then(|path| tool.parameters.pointer(path));
            let target = target.ok_or_else(|| "has a `$ref` to nothing".to_owned())?;
            listed(tool, target, depth)
        }
        [key @ ("anyOf" | "oneOf")] => {
            let branches = schema[*key].as_array().map_or(&[][..], Vec::as_slice);
            let mut all = Vec::new();
            for branch in branches {
                match listed(tool, branch, depth)? {
                    Texts::Any => return Ok(Texts::Any),
                    Texts::Listed(texts) => all.extend(texts),
                }
            }
            Ok(Texts::Listed(all))
        }
        ["const" | "enum"] | ["const" | "enum", "type"] => values(tool, schema),
        other => {
            let known = ["type", "enum", "const"];
            let key = other.iter().find(|key| !known.contains(key));
            Err(format!(
                "is a text that cannot keep to `{}`",
                key.unwrap_or(&"enum")
            ))
        }
    }
}

/// The texts of `enum` or `const`, which also stand for null where it is one.
fn values(tool: &Tool, schema: &Value) -> Result<Texts, String> {
    let values = schema.get("enum").and_then(Value::as_array);
    let values = values.into_iter().flatten().chain(schema.get("const"));
    let may_be_null = tool.types(schema).contains(&"null");
    let texts = values.filter_map(|value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Null if may_be_null => Some("null".to_owned()),
        // The type excludes it.
        _ => None,
    });
    let texts: Vec<String> = texts.collect();
    match texts.is_empty() {
        true => Err("has no value".to_owned()),
        false => Ok(Texts::Listed(texts)),
    }
}

/// Whether a schema allows everything.
fn is_empty(schema: &Value) -> bool {
    match schema {
        Value::Bool(all) => *all,
        Value::Object(keys) => keys.keys().all(|key| is_note(key)),
        _ => false,
    }
}

fn is_note(key: &str) -> bool {
    NOTES.contains(&key)
}
