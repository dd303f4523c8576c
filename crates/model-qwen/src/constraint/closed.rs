//! Objects that have no properties besides those that their schema lists.

use std::collections::HashSet;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::subschemas::{for_each_mut, for_each_of};

/// Keywords that list properties.
const LISTS: [&str; 2] = ["properties", "patternProperties"];
/// Keywords whose schemas say more of the value that the schema around them is about.
const OF_SAME_VALUE: [&str; 8] = [
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
    "if",
    "then",
    "else",
    "dependentSchemas",
];
/// Other keywords that say something of an object's properties.
const SAY_MORE: [&str; 5] = [
    "required",
    "minProperties",
    "propertyNames",
    "additionalProperties",
    "unevaluatedProperties",
];

/// Closes each object of a schema that lists properties, says nothing of other ones, and is the only schema of its value: one of
/// several may list properties for each other. Where that cannot be told, nothing is closed.
pub(super) fn close(schema: &mut Value) {
    let Some(parts) = parts(schema) else {
        return;
    };
    // From the inside: what is added to a schema moves the ones inside of it.
    for_each_mut(schema, &mut |object| {
        if !parts.contains(&address(object)) && lists_all(object) {
            object.insert("additionalProperties".to_owned(), false.into());
        }
    });
}

/// What tells one schema of a document from another one, as long as the document stays as it is.
fn address(object: &Map<String, Value>) -> usize {
    std::ptr::from_ref(object).addr()
}

/// The schemas that are one of several of a value, and those inside of them; `None` if a reference of one is no path that leads
/// somewhere.
fn parts(root: &Value) -> Option<HashSet<usize>> {
    let (mut parts, mut seen) = (HashSet::new(), HashSet::new());
    let mut open = vec![(root, false)];
    while let Some((schema, is_part)) = open.pop() {
        let Value::Object(object) = schema else {
            continue;
        };
        if !seen.insert((address(object), is_part)) {
            continue;
        }
        if is_part {
            parts.insert(address(object));
        }
        let holds_parts = is_part || has_several(object);
        if let Some(Value::String(reference)) = object.get("$ref")
            && holds_parts
        {
            let place = percent_decode_str(reference.strip_prefix('#')?).decode_utf8_lossy();
            let is_path = place.is_empty() || place.starts_with('/');
            open.push((root.pointer(&place).filter(|_| is_path)?, true));
        }
        for (keyword, value) in object {
            let is_part = is_part || (holds_parts && OF_SAME_VALUE.contains(&keyword.as_str()));
            for_each_of(keyword, value, |schema| open.push((schema, is_part)));
        }
    }
    Some(parts)
}

/// Whether several schemas say something of the properties of a value.
fn has_several(object: &Map<String, Value>) -> bool {
    let of_same_value = OF_SAME_VALUE.iter().filter_map(|keyword| {
        Some(match (*keyword, object.get(*keyword)?) {
            ("allOf", Value::Array(schemas)) => schemas.len(),
            _ => 1,
        })
    });
    let num = of_same_value.sum::<usize>();
    let says_something = LISTS
        .iter()
        .chain(&SAY_MORE)
        .any(|key| object.contains_key(*key));
    num + usize::from(says_something) > 1
}

/// Whether a schema lists the properties of an object, those that it needs among them, and says nothing of other ones.
fn lists_all(schema: &Map<String, Value>) -> bool {
    let list = |key: &str| schema.get(key).and_then(Value::as_object);
    let says_more = [
        "additionalProperties",
        "unevaluatedProperties",
        "propertyNames",
    ]
    .iter()
    .chain(&OF_SAME_VALUE)
    .any(|key| schema.contains_key(*key));
    let listed = list("properties");
    let is_listed = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        listed.is_some_and(|properties| properties.contains_key(name))
    };
    let needed = schema.get("required").and_then(Value::as_array);
    let mut needed = needed.into_iter().flatten();
    let least = schema.get("minProperties").and_then(Value::as_f64);
    let has_enough = least.is_none_or(|least| least <= listed.map_or(0, Map::len) as f64);
    let lists_some = listed.is_some() || list("patternProperties").is_some();
    lists_some && !says_more && has_enough && needed.all(is_listed)
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
            json!({"allOf": [{"$ref": "#/$defs/P"}, b], "$defs": {"P": {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]},
                "A": a, "B": {"$ref": "#/$defs/A"}}}),
            json!({"allOf": [{"$ref": "#/$defs/A%3Cb%3E"}, b], "$defs": {"A<b>": a}}),
            json!({"allOf": [{"properties": {"m": a}}, {"properties": {"m": b}}]}),
            json!({"required": ["id"], "anyOf": [a, b]}),
            json!({"$ref": "#/$defs/A", "required": ["b"], "$defs": {"A": a}}),
            json!({"properties": {"a": {}}, "minProperties": 2}),
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}, "required": ["a", "b"]}),
            // A name that leads nowhere may be that of anything.
            json!({"properties": {"a": a}, "allOf": [{"$ref": "#anchor"}, b]}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
        // Another use of a name does not make it a part.
        let schema = json!({"items": {"$ref": "#/$defs/A"}, "$defs": {"A": a}});
        assert_eq!(closed(schema)["$defs"]["A"]["additionalProperties"], false);
        // As pydantic writes a field with a description.
        let schema = json!({"properties": {"x": {"allOf": [{"$ref": "#/$defs/A"}], "description": "d"}}, "$defs": {"A": a}});
        let schema = closed(schema);
        assert_eq!(schema["$defs"]["A"]["additionalProperties"], false);
        assert_eq!(schema["additionalProperties"], false);
        let schema = json!({"anyOf": [a, b]});
        assert_eq!(closed(schema)["anyOf"][1]["additionalProperties"], false);
    }
}
