//! Objects that have no properties besides those that their schema lists.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::json_schema::{for_each_of, for_each_of_mut};

/// Keywords whose schemas say more of the value that the schema around them is about.
const OF_SAME_VALUE: [&str; 6] = ["allOf", "anyOf", "oneOf", "if", "then", "else"];
/// Keywords that list properties.
const LISTS: [&str; 2] = ["properties", "patternProperties"];

/// Closes each object of a schema that lists properties, says nothing of other ones, and is not one of several schemas of a
/// value, which may list properties for each other.
pub(super) fn close(schema: &mut Value) {
    let mut open = BTreeSet::new();
    find_open(schema, false, &mut open);
    close_within(schema, false, "#", &open);
}

/// Whether schemas inside of this one, about the same value, are parts of a whole.
fn is_whole_of_parts(schema: &Map<String, Value>, is_part: bool) -> bool {
    let has = |key: &&str| schema.contains_key(*key);
    is_part || LISTS.iter().any(has) || schema.contains_key("allOf")
}

/// Collects the references of parts: what they name stays open.
fn find_open(schema: &Value, is_part: bool, open: &mut BTreeSet<String>) {
    let Value::Object(object) = schema else {
        return;
    };
    let holds_parts = is_whole_of_parts(object, is_part);
    if let Some(Value::String(reference)) = object.get("$ref")
        && holds_parts
    {
        open.insert(reference.clone());
    }
    for (keyword, value) in object {
        let is_part = OF_SAME_VALUE.contains(&keyword.as_str()) && holds_parts;
        for_each_of(keyword, value, |schema| find_open(schema, is_part, open));
    }
}

fn close_within(schema: &mut Value, is_part: bool, place: &str, open: &BTreeSet<String>) {
    let Value::Object(object) = schema else {
        return;
    };
    let is_part = is_part || open.contains(place);
    let holds_parts = is_whole_of_parts(object, is_part);
    for (keyword, value) in object.iter_mut() {
        let is_part = OF_SAME_VALUE.contains(&keyword.as_str()) && holds_parts;
        let place = format!("{place}/{keyword}");
        for_each_of_mut(keyword, value, |name, schema| {
            let name = name.replace('~', "~0").replace('/', "~1");
            let place = match name.is_empty() {
                true => place.clone(),
                false => format!("{place}/{name}"),
            };
            close_within(schema, is_part, &place, open);
        });
    }
    if !is_part && lists_all(object) {
        object.insert("additionalProperties".to_owned(), false.into());
    }
}

/// Whether a schema lists the properties of an object, those that it needs among them, and says nothing of other ones.
fn lists_all(schema: &Map<String, Value>) -> bool {
    let list = |key: &str| schema.get(key).and_then(Value::as_object);
    let says_more = ["additionalProperties", "unevaluatedProperties", "$ref"]
        .into_iter()
        .chain(OF_SAME_VALUE)
        .any(|key| schema.contains_key(key));
    let has_patterns = list("patternProperties").is_some();
    let is_listed = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        list("properties").is_some_and(|properties| properties.contains_key(name))
    };
    let mut needed = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let lists_some = has_patterns || list("properties").is_some();
    lists_some && !says_more && (has_patterns || needed.all(is_listed))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(schema: Value) -> Value {
        let mut schema = schema;
        close(&mut schema);
        schema
    }

    #[test]
    fn objects_that_list_properties_are_closed() {
        let inner = json!({"properties": {"b": {}}, "required": ["b"]});
        let schema = json!({"properties": {"a": inner}, "items": {"patternProperties": {"x": {}}},
            "$defs": {"D": {"properties": {"c": {"anyOf": [inner, {"type": "null"}]}}}}});
        let mut inner = inner;
        inner["additionalProperties"] = false.into();
        let mut expected = json!({"properties": {"a": inner}, "items": {"patternProperties": {"x": {}}},
            "$defs": {"D": {"properties": {"c": {"anyOf": [inner, {"type": "null"}]}}}}});
        expected["additionalProperties"] = false.into();
        expected["items"]["additionalProperties"] = false.into();
        expected["$defs"]["D"]["additionalProperties"] = false.into();
        assert_eq!(closed(schema), expected);
    }

    #[test]
    fn parts_and_objects_that_say_more_stay_open() {
        let (a, b) = (
            json!({"properties": {"a": {}}}),
            json!({"properties": {"b": {}}}),
        );
        for schema in [
            json!({"type": "object"}),
            json!({"allOf": [a, b]}),
            json!({"properties": {"a": {}}, "anyOf": [b, {"properties": {"c": {}}}]}),
            json!({"properties": {"a": {}}, "required": ["a", "b"]}),
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            json!({"properties": {"a": {}}, "unevaluatedProperties": {}}),
            json!({"allOf": [{"$ref": "#/$defs/A"}, b], "$defs": {"A": a}}),
            json!({"properties": {"x": {}}, "$ref": "#/definitions/A", "definitions": {"A": a}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
        // Another use of a name does not make it a part.
        let schema = json!({"items": {"$ref": "#/$defs/A"}, "$defs": {"A": a}});
        assert_eq!(closed(schema)["$defs"]["A"]["additionalProperties"], false);
        let schema = json!({"anyOf": [a, b]});
        assert_eq!(closed(schema)["anyOf"][1]["additionalProperties"], false);
    }
}
