//! `$ref` in JSON Schemas: every place of a document that one can name.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::grammar_error::{GrammarError, invalid};
use super::subschemas::{Holds, for_each_inside, for_each_mut, holds};

/// The schema with references that llguidance finds: `#/…` whose keys have no escapes, to places where keywords have schemas. What
/// others name gets such a name, too.
///
/// # Errors
/// For a reference to another document, or to nothing, and if more than `max_bytes` get another name.
pub(super) fn resolved(mut schema: Value, max_bytes: usize) -> Result<Value, GrammarError> {
    let base = schema.get("$id").and_then(Value::as_str).map(str::to_owned);
    let root = schema.clone();
    let mut odd = odd_references(&mut schema, base.as_deref(), &root);
    if odd.is_empty() {
        return Ok(schema);
    }
    let mut names = BTreeMap::new();
    let mut targets = Map::new();
    let mut num_bytes = 0;
    while let Some(reference) = odd.pop_first() {
        if names.contains_key(&reference) {
            continue;
        }
        let mut target = target(&root, &reference)?.clone();
        num_bytes += target.to_string().len();
        if num_bytes > max_bytes {
            return Err(GrammarError::TooLarge(format!(
                "`$ref`: expected at most {max_bytes} bytes behind references with escapes or to odd places"
            )));
        }
        odd.append(&mut odd_references(&mut target, base.as_deref(), &root));
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

/// The references of a schema that get another name. References to the document itself lose its name.
fn odd_references(schema: &mut Value, base: Option<&str>, root: &Value) -> BTreeSet<String> {
    let mut odd = BTreeSet::new();
    for_each_mut(schema, &mut |object| {
        let Some(Value::String(reference)) = object.get_mut("$ref") else {
            return;
        };
        if let Some(base) = base
            && let Some(rest) = reference.strip_prefix(base.trim_end_matches('#'))
            && (rest.is_empty() || rest.starts_with('#'))
        {
            *reference = if rest.is_empty() { "#" } else { rest }.to_owned();
        }
        if !is_plain(reference) || !is_place(reference, root) {
            odd.insert(reference.clone());
        }
    });
    odd
}

/// Whether a plain reference leads only through keywords that have schemas: no others are read.
fn is_place(reference: &str, root: &Value) -> bool {
    let mut keys = reference.split('/').skip(1);
    let mut schema = root;
    while let Some(keyword) = keys.next() {
        let Some(value) = schema.get(keyword) else {
            return false;
        };
        let inside = match (holds(keyword), value) {
            (Holds::Schemas, Value::Array(_)) => {
                keys.next().and_then(|i| value.pointer(&format!("/{i}")))
            }
            (Holds::Schemas, _) => Some(value),
            (Holds::Map, Value::Object(schemas)) => keys.next().and_then(|key| schemas.get(key)),
            (Holds::Map | Holds::Nothing, _) => None,
        };
        match inside {
            Some(inside) => schema = inside,
            None => return false,
        }
    }
    true
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
