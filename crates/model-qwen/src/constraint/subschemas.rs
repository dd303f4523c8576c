//! The schemas inside a JSON Schema: which keywords hold them, and how one comes to each.

use std::fmt;

use serde_json::{Map, Value};

/// Where a keyword has schemas.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Its value is a schema, or a list of schemas.
    Schemas,
    /// The values of its object are schemas.
    Map,
    /// It has none.
    Nothing,
}

/// What a keyword holds.
pub(super) fn holds(keyword: &str) -> Holds {
    match keyword {
        "additionalItems"
        | "additionalProperties"
        | "allOf"
        | "anyOf"
        | "contains"
        | "else"
        | "if"
        | "items"
        | "not"
        | "oneOf"
        | "prefixItems"
        | "propertyNames"
        | "then"
        | "unevaluatedItems"
        | "unevaluatedProperties"
        | "contentSchema" => Holds::Schemas,
        "$defs" | "definitions" | "dependencies" | "dependentSchemas" | "patternProperties"
        | "properties" => Holds::Map,
        _ => Holds::Nothing,
    }
}

/// A step from a schema to one directly inside it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    /// The schema of a keyword.
    Keyword(&'a str),
    /// One of a keyword's list.
    Item(&'a str, usize),
    /// The one that has a name there.
    Name(&'a str, &'a str),
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyword(keyword) => out.write_str(keyword),
            Self::Item(keyword, index) => write!(out, "{keyword}[{index}]"),
            Self::Name(keyword, name) => write!(out, "{keyword}.{name}"),
        }
    }
}

/// The schemas of a keyword.
fn children_of<'a>(keyword: &'a str, value: &'a Value) -> Vec<(Step<'a>, &'a Value)> {
    match (holds(keyword), value) {
        (Holds::Schemas, Value::Array(schemas)) => {
            let schemas = schemas.iter().enumerate();
            schemas
                .map(|(index, schema)| (Step::Item(keyword, index), schema))
                .collect()
        }
        (Holds::Schemas, schema) => vec![(Step::Keyword(keyword), schema)],
        (Holds::Map, Value::Object(schemas)) => {
            let schemas = schemas.iter();
            schemas
                .map(|(name, schema)| (Step::Name(keyword, name), schema))
                .collect()
        }
        (Holds::Map | Holds::Nothing, _) => Vec::new(),
    }
}

/// The schemas directly inside `schema`, and how one comes there.
fn children<'a>(schema: &'a Map<String, Value>) -> impl Iterator<Item = (Step<'a>, &'a Value)> {
    schema
        .iter()
        .flat_map(|(keyword, value)| children_of(keyword, value))
}

/// Calls `visit` for each schema directly inside `schema`.
pub(super) fn for_each_inside<'a>(
    schema: &'a Map<String, Value>,
    mut visit: impl FnMut(&'a Value),
) {
    for (_, schema) in children(schema) {
        visit(schema);
    }
}

/// Calls `visit` for each schema of a keyword.
pub(super) fn for_each_of<'a>(
    keyword: &'a str,
    value: &'a Value,
    mut visit: impl FnMut(&'a Value),
) {
    for (_, schema) in children_of(keyword, value) {
        visit(schema);
    }
}

/// What `find` finds first in `schema` or a schema inside it, and the steps that lead there, the last one first.
pub(super) fn find_inside<'a, T>(
    schema: &'a Value,
    find: &mut impl FnMut(&'a Map<String, Value>) -> Option<T>,
) -> Option<(Vec<Step<'a>>, T)> {
    let Value::Object(object) = schema else {
        return None;
    };
    if let Some(found) = find(object) {
        return Some((Vec::new(), found));
    }
    children(object).find_map(|(step, inside)| {
        let (mut steps, found) = find_inside(inside, find)?;
        steps.push(step);
        Some((steps, found))
    })
}

/// Calls `change` for each schema inside `schema` and for itself, the inner ones first.
pub(super) fn for_each_mut(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(object) = schema else {
        return;
    };
    for (keyword, value) in object.iter_mut() {
        match (holds(keyword), value) {
            (Holds::Schemas, Value::Array(schemas)) => {
                schemas
                    .iter_mut()
                    .for_each(|schema| for_each_mut(schema, change));
            }
            (Holds::Schemas, schema) => for_each_mut(schema, change),
            (Holds::Map, Value::Object(schemas)) => {
                schemas
                    .values_mut()
                    .for_each(|schema| for_each_mut(schema, change));
            }
            (Holds::Map | Holds::Nothing, _) => {}
        }
    }
    change(object);
}
