//! `$ref` in JSON Schemas: every place of a document that one can name.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::grammar::{GrammarError, invalid};
use super::json_schema::{for_each_inside, for_each_mut};

/// The schema with references that llguidance finds: `#/…` whose keys have no escapes. What others name gets such a name, too.
///
/// # Errors
/// For a reference to another document, or to nothing.
pub(super) fn resolved(mut schema: Value) -> Result<Value, GrammarError> {
    let mut odd = BTreeSet::new();
    let base = schema.get("$id").and_then(Value::as_str).map(str::to_owned);
    for_each_mut(&mut schema, &mut |object| {
        let Some(Value::String(reference)) = object.get_mut("$ref") else {
            return;
        };
        // The document may name itself.
        if let Some(base) = &base
            && let Some(rest) = reference.strip_prefix(base.trim_end_matches('#'))
            && (rest.is_empty() || rest.starts_with('#'))
        {
            *reference = if rest.is_empty() { "#" } else { rest }.to_owned();
        }
        if !is_plain(reference) {
            odd.insert(reference.clone());
        }
    });
    if odd.is_empty() {
        return Ok(schema);
    }
    let mut names = BTreeMap::new();
    let mut targets = Map::new();
    for reference in odd {
        let target = target(&schema, &reference)?.clone();
        let name = free_name(&schema, targets.len());
        names.insert(reference, format!("#/$defs/{name}"));
        targets.insert(name, target);
    }
    let mut rename = |object: &mut Map<String, Value>| {
        if let Some(Value::String(reference)) = object.get_mut("$ref")
            && let Some(name) = names.get(reference)
        {
            reference.clone_from(name);
        }
    };
    for_each_mut(&mut schema, &mut rename);
    for target in targets.values_mut() {
        for_each_mut(target, &mut rename);
    }
    if let Value::Object(root) = &mut schema {
        let definitions = root.entry("$defs").or_insert_with(|| Map::new().into());
        match definitions {
            Value::Object(definitions) => definitions.extend(targets),
            _ => return invalid("`$defs`: expected an object"),
        }
    }
    Ok(schema)
}

/// A key that `$defs` does not have.
fn free_name(schema: &Value, num: usize) -> String {
    let is_taken = |name: &String| schema.pointer(&format!("/$defs/{name}")).is_some();
    let mut names = (0..).map(|suffix| format!("referenced_{num}_{suffix}"));
    names.find(|name| !is_taken(name)).unwrap_or_default()
}

/// Whether llguidance finds what is meant.
fn is_plain(reference: &str) -> bool {
    let keys = reference.strip_prefix("#/");
    reference == "#" || keys.is_some_and(|keys| !keys.contains(['~', '%']) && !keys.is_empty())
}

/// What a reference names.
fn target<'a>(schema: &'a Value, reference: &str) -> Result<&'a Value, GrammarError> {
    let Some(fragment) = reference.strip_prefix('#') else {
        return invalid(format!(
            "`$ref`: {reference:?} names another document, expected a place in this one (`#/…`)"
        ));
    };
    let fragment = percent_decode_str(fragment).decode_utf8_lossy();
    let found = match fragment.is_empty() || fragment.starts_with('/') {
        true => schema.pointer(&fragment),
        false => anchor(schema, &fragment),
    };
    match found {
        Some(target) => Ok(target),
        None => invalid(format!("`$ref`: {reference:?} names nothing in the schema")),
    }
}

/// The schema that calls itself `name`.
fn anchor<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let mut waiting = vec![schema];
    while let Some(schema) = waiting.pop() {
        let Value::Object(object) = schema else {
            continue;
        };
        let is_name =
            |value: &Value| value.as_str().map(|id| id.trim_start_matches('#')) == Some(name);
        if object.get("$anchor").is_some_and(is_name) || object.get("$id").is_some_and(is_name) {
            return Some(schema);
        }
        for_each_inside(object, |inside| waiting.push(inside));
    }
    None
}
