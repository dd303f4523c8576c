//! Schemas that ask for a value without an end, such as a list that must have a list of its own kind in it.
//!
//! No value fits them, but a text could follow them forever.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};

use super::grammar_error::{GrammarError, invalid};
use super::subschemas::for_each_of;

/// Schemas that are looked at, at most: what is not known then counts as if it had an end.
const MAX_VISITS: usize = 4_000_000;

/// Checks that a value of the schema can end, and a value of each schema that it refers to.
///
/// # Errors
/// With the reference of which no value ends.
pub(super) fn check(root: &Value) -> Result<(), GrammarError> {
    let targets = targets(root);
    let mut known = Known::default();
    // A value that ends needs only values of which that is known.
    loop {
        let num = known.ending.len();
        for (reference, target) in &targets {
            if !known.ending.contains(reference) && known.ends(target) {
                known.ending.insert(reference);
            }
            if known.num_visits > MAX_VISITS {
                return Ok(());
            }
        }
        if known.ending.len() == num {
            break;
        }
    }
    let mut references = targets.keys();
    match references.find(|reference| !known.ending.contains(*reference)) {
        None => Ok(()),
        Some(reference) => invalid(format!(
            "`$ref`: {reference:?} has no end: each value of it needs another one"
        )),
    }
}

/// What the references of a schema name. A reference to nothing is the business of whoever follows it.
///
/// A definition counts only if something refers to it: a text never has a value of another one.
fn targets(root: &Value) -> BTreeMap<&str, &Value> {
    let mut targets = BTreeMap::new();
    let mut waiting = vec![root];
    let mut seen = HashSet::new();
    while let Some(schema) = waiting.pop() {
        let Value::Object(object) = schema else {
            continue;
        };
        if !seen.insert(std::ptr::from_ref(schema)) {
            continue;
        }
        if let Some(Value::String(reference)) = object.get("$ref")
            && let Some(pointer) = reference.strip_prefix('#')
            && let Some(target) = root.pointer(pointer)
        {
            targets.insert(reference.as_str(), target);
            waiting.push(target);
        }
        for (keyword, value) in object {
            if !matches!(keyword.as_str(), "$defs" | "definitions") {
                for_each_of(keyword, value, |inside| waiting.push(inside));
            }
        }
    }
    targets
}

/// What is known of the references of a schema.
#[derive(Default)]
struct Known<'a> {
    /// Values of these end.
    ending: BTreeSet<&'a str>,
    num_visits: usize,
}

impl Known<'_> {
    /// Whether it is known that a value of the schema ends. What is not understood counts as if it did.
    fn ends(&mut self, schema: &Value) -> bool {
        self.num_visits += 1;
        let Value::Object(schema) = schema else {
            return true;
        };
        if let Some(Value::String(reference)) = schema.get("$ref")
            && !self.ending.contains(reference.as_str())
        {
            return false;
        }
        let list = |key: &str| schema.get(key).and_then(Value::as_array);
        if list("allOf").is_some_and(|all| !all.iter().all(|one| self.ends(one))) {
            return false;
        }
        for key in ["anyOf", "oneOf"] {
            let any = list(key).filter(|any| !any.is_empty());
            if any.is_some_and(|any| !any.iter().any(|one| self.ends(one))) {
                return false;
            }
        }
        if schema.contains_key("const") || schema.contains_key("enum") {
            return true;
        }
        let types: Vec<&str> = match schema.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
            _ => return true,
        };
        types.iter().any(|name| match *name {
            "object" => self.object_ends(schema),
            "array" => self.array_ends(schema),
            _ => true,
        })
    }

    fn object_ends(&mut self, schema: &Map<String, Value>) -> bool {
        let properties = schema.get("properties").and_then(Value::as_object);
        let required = schema.get("required").and_then(Value::as_array);
        let mut required = required.into_iter().flatten().filter_map(Value::as_str);
        required.all(|name| {
            let property = properties.and_then(|properties| properties.get(name));
            // A pattern may match the name, which then is no additional one.
            let has_patterns = schema.contains_key("patternProperties");
            let other = schema.get("additionalProperties");
            let property = property.or(other.filter(|_| !has_patterns));
            property.is_none_or(|property| self.ends(property))
        })
    }

    fn array_ends(&mut self, schema: &Map<String, Value>) -> bool {
        let num = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let num = usize::try_from(num).unwrap_or(usize::MAX);
        let first = schema.get("prefixItems").and_then(Value::as_array);
        let first: &[Value] = first.map_or(&[], Vec::as_slice);
        let rest = schema.get("items").filter(|_| num > first.len());
        let mut needed = first.iter().take(num).chain(rest);
        needed.all(|item| self.ends(item))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn recursion_needs_an_exit() {
        let endless = [
            json!({"$ref": "#"}),
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
            json!({"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
            json!({"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2}),
            json!({"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}},
                "$defs": {"a": {"oneOf": [{"$ref": "#/$defs/a"}]}}}),
        ];
        for schema in endless {
            let error = check(&schema).map_err(|error| error.to_string());
            assert!(
                error.as_ref().is_err_and(|error| error.contains("no end")),
                "{schema}: {error:?}"
            );
        }
        let ending = [
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}}),
            json!({"type": "array", "items": {"$ref": "#"}}),
            json!({"type": ["array", "null"], "items": {"$ref": "#"}, "minItems": 1}),
            json!({"anyOf": [{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, {"type": "null"}]}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"const": 1}}}),
            json!({"$ref": "#/$defs/none"}),
            json!({"type": "integer", "$defs": {"unused": {"$ref": "#/$defs/unused"}}}),
            json!({"type": "object", "patternProperties": {"^a": {"type": "string"}}, "required": ["a1"],
                "additionalProperties": {"$ref": "#"}}),
            json!(true),
        ];
        for schema in ending {
            assert!(check(&schema).is_ok(), "{schema}");
        }
    }
}
