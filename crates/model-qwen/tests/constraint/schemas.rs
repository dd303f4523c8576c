//! JSON Schemas.

use model_qwen::Grammar;
use serde_json::{Value, json};

use crate::check;

#[track_caller]
fn schema(schema: Value, good: &[&str], bad: &[&str]) {
    check(&Grammar::JsonSchema(schema), good, bad);
}

#[test]
fn types_enumerations_and_bounds() {
    schema(
        json!({"type": ["integer", "null"]}),
        &["5", "-7", "null"],
        &["5.5", "true", "\"5\""],
    );
    schema(
        json!({"enum": ["a", 1, null, {"x": [true]}]}),
        &["\"a\"", "1", "null", "{\"x\": [true]}"],
        &["\"b\"", "2"],
    );
    schema(json!({"const": "a\"b"}), &["\"a\\\"b\""], &["\"a\""]);
    schema(
        json!({"type": "integer", "minimum": 3, "exclusiveMaximum": 12}),
        &["3", "11"],
        &["2", "12"],
    );
    schema(
        json!({"type": "number", "minimum": -1.5, "maximum": 2}),
        &["-1.5", "0.25", "2"],
        &["-1.6", "2.1"],
    );
    schema(
        json!({"type": "integer", "multipleOf": 5}),
        &["0", "25"],
        &["7"],
    );
    schema(
        json!({"type": "string", "minLength": 2, "maxLength": 3}),
        &["\"ab\"", "\"éüß\""],
        &["\"a\"", "\"abcd\""],
    );
    schema(
        json!({"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}),
        &["\"AB12\""],
        &["\"Ab12\"", "\"AB12x\""],
    );
    schema(json!(true), &["1", "[{}]"], &["", "x"]);
    schema(json!({}), &["1", "\"x\""], &["x"]);
}

#[test]
fn formats() {
    schema(
        json!({"type": "string", "format": "date-time"}),
        &["\"2024-02-29T10:00:00Z\""],
        &["\"2024-13-01T10:00:00Z\"", "\"now\""],
    );
    schema(
        json!({"type": "string", "format": "uuid"}),
        &["\"123e4567-e89b-12d3-a456-426614174000\""],
        &["\"123\""],
    );
    schema(
        json!({"type": "string", "format": "ipv4"}),
        &["\"10.0.0.255\""],
        &["\"10.0.0.256\""],
    );
    // JSON Schema knows none of these: nothing is checked.
    schema(
        json!({"type": "string", "format": "password"}),
        &["\"anything\""],
        &["5"],
    );
    schema(
        json!({"type": "integer", "format": "int32"}),
        &["5"],
        &["\"5\""],
    );
}

#[test]
fn objects_and_arrays() {
    let person = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name"], "additionalProperties": false});
    schema(
        person,
        &["{\"name\": \"Ada\"}", "{\"name\": \"Ada\", \"age\": 36}"],
        &[
            "{}",
            "{\"age\": 36}",
            "{\"name\": \"Ada\", \"x\": 1}",
            "{\"name\": 5}",
        ],
    );
    schema(
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}),
        &["[true]", "[true, false, true]"],
        &["[]", "[1]", "[true,true,true,true]"],
    );
    schema(
        json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": false}),
        &["[\"a\", 1]"],
        &["[1, \"a\"]", "[\"a\", 1, 2]"],
    );
    schema(
        json!({"type": "object", "patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": false}),
        &["{\"x_a\": 1}", "{}"],
        &["{\"y\": 1}", "{\"x_a\": \"1\"}"],
    );
    schema(
        json!({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "integer"}}),
        &["{\"abc\": 1}", "{}"],
        &["{\"A\": 1}", "{\"abc\": null}"],
    );
    schema(
        json!({"type": "object", "propertyNames": {"enum": ["a", "b"]}}),
        &["{\"a\": 1}", "{\"a\": 1, \"b\": []}"],
        &["{\"c\": 1}"],
    );
    schema(
        json!({"type": "object", "propertyNames": {"maxLength": 2}}),
        &["{\"ab\": 1}"],
        &["{\"abc\": 1}"],
    );
    schema(
        json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": false}),
        &["[1,1]"],
        &["[\"1\"]"],
    );
}

#[test]
fn names_of_properties() {
    let both = json!({"type": "object", "properties": {"ab": {"type": "integer"}, "LONG": {"type": "integer"}}, "required": ["ab"],
        "propertyNames": {"pattern": "^[a-z]{1,3}$"}});
    let closed = json!({"type": "object", "properties": {"ab": {"type": "integer"}, "abcd": {"type": "integer"}},
        "propertyNames": {"maxLength": 3}, "additionalProperties": false});
    schema(
        both,
        &["{\"ab\": 1}", "{\"ab\": 1, \"xyz\": null}"],
        &["{\"ab\": 1, \"LONG\": 2}", "{\"ab\": 1, \"wxyz\": 2}", "{}"],
    );
    schema(
        closed,
        &["{}", "{\"ab\": 1}"],
        &["{\"abcd\": 1}", "{\"x\": 1}"],
    );
    let these = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "propertyNames": {"enum": ["a", "b"]}});
    schema(
        these,
        &["{\"a\": 1, \"b\": []}"],
        &["{\"a\": []}", "{\"c\": 1}"],
    );
}

#[test]
fn combinations_and_references() {
    schema(
        json!({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}),
        &["5", "\"a\""],
        &["\"ab\"", "null"],
    );
    schema(
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}),
        &["3", "5"],
        &["2", "6"],
    );
    let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object",
        "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "required": ["value"], "additionalProperties": false}}});
    schema(
        tree,
        &[
            "{\"value\": 1}",
            "{\"value\": 1, \"children\": [{\"value\": 2, \"children\": []}]}",
        ],
        &["{\"children\": []}"],
    );
    // Keys with signs of JSON pointers, anchors, and the document's own name.
    let odd = json!({"$id": "https://example.com/s", "$defs": {"a/b": {"type": "integer"}, "c d": {"$anchor": "text", "type": "string"},
        "loop~": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/loop~0"}}]}},
        "type": "object", "properties": {"i": {"$ref": "#/$defs/a~1b"}, "t": {"$ref": "#text"}, "p": {"$ref": "#/$defs/c%20d"},
        "u": {"$ref": "https://example.com/s#/$defs/a~1b"}, "l": {"$ref": "#/$defs/loop~0"}}, "additionalProperties": false});
    schema(
        odd,
        &["{\"i\": 1, \"t\": \"x\", \"p\": \"y\", \"u\": 2, \"l\": [[null], []]}"],
        &["{\"i\": \"1\"}", "{\"t\": 1}", "{\"l\": [1]}"],
    );
    // One of several kinds of object, as pydantic writes it.
    let pets = json!({"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "discriminator": {"propertyName": "kind"}, "$defs": {
        "Cat": {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind", "lives"]},
        "Dog": {"type": "object", "properties": {"kind": {"const": "dog", "type": "string"}}, "required": ["kind"]}}});
    schema(
        pets,
        &["{\"kind\": \"cat\", \"lives\": 9}", "{\"kind\": \"dog\"}"],
        &["{\"kind\": \"cat\"}", "{\"kind\": \"cow\"}"],
    );
    // Objects that have a property that the others may not have.
    let one = |name: &str| {
        json!({"type": "object", "properties": {name: {"type": "integer"}}, "required": [name],
        "additionalProperties": false})
    };
    schema(
        json!({"oneOf": [one("length"), one("radius"), {"type": "null"}]}),
        &["{\"length\": 9}", "{\"radius\": 9}", "null"],
        &["{\"length\": 9, \"radius\": 9}", "{}", "{\"area\": 9}"],
    );
    schema(
        json!({"oneOf": [{"type": "integer"}, {"type": "string"}, {"enum": [null]}]}),
        &["1", "\"a\"", "null"],
        &["true"],
    );
}

#[test]
fn white_space_has_an_end() {
    let list = json!({"type": "array", "items": {"type": "integer"}});
    let with = |spaces: &[&str]| -> Vec<String> {
        let lists = spaces.iter().map(|space| format!("[1,{space}2]"));
        lists.collect()
    };
    let indented = format!("\r\n\n{}", " ".repeat(32));
    let short = with(&["", " ", "\n", "\n\t\t", &indented]);
    let long = with(&["  ", "\t", "\n\n\n", "\n  \n  ", &format!("{indented} ")]);
    let short: Vec<&str> = short.iter().map(String::as_str).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    schema(list.clone(), &short, &long);
    schema(json!(true), &short, &long);
    let mut free = list;
    free["x-guidance"] = json!({"whitespace_pattern": "[ \r\n\t]+"});
    schema(free, &[&short[..], &long].concat(), &[]);
}

#[test]
fn days_are_those_of_the_calendar() {
    for more in [
        json!({}),
        json!({"pattern": "^[12]"}),
        json!({"pattern": "^[12]", "allOf": [{"minLength": 10}]}),
    ] {
        let of = |format: &str| {
            let mut schema = json!({"type": ["string", "null"], "format": format});
            for (key, value) in more.as_object().into_iter().flatten() {
                schema[key] = value.clone();
            }
            schema
        };
        let good = [
            "\"2024-02-29\"",
            "\"2000-02-29\"",
            "\"1999-12-31\"",
            "\"2023-02-28\"",
            "null",
        ];
        let bad = [
            "\"2023-02-29\"",
            "\"1900-02-29\"",
            "\"2023-04-31\"",
            "\"2023-13-01\"",
        ];
        schema(of("date"), &good, &bad);
        schema(
            of("date-time"),
            &[
                "\"2024-02-29T10:00:00Z\"",
                "\"2023-03-29T10:00:00.5+01:00\"",
            ],
            &["\"2023-02-29T10:00:00Z\"", "\"2024-02-29\""],
        );
    }
}

#[test]
fn seconds_and_hostnames_have_their_bounds() {
    schema(
        json!({"format": "time", "type": "string"}),
        &["\"23:59:60Z\"", "\"10:00:59.5+01:00\""],
        &["\"10:00:60Z\"", "\"23:59:60+01:00\""],
    );
    let date = |time: &str| format!("\"2024-12-31T{time}\"");
    schema(
        json!({"format": "date-time"}),
        &[&date("23:59:60Z"), &date("22:00:00Z"), "5"],
        &[&date("22:00:60Z"), &date("24:00:00Z")],
    );
    let host = |num_labels: usize| format!("\"{}ab\"", "abcd.".repeat(num_labels));
    let name = json!({"type": "string", "format": "hostname"});
    schema(name, &[&host(50)], &[&host(51)]);
}

#[test]
fn a_reference_may_name_a_place_that_no_keyword_has() {
    let odd = json!({"$ref": "#/colors/warm", "colors": {"warm": {"anyOf": [{"$ref": "#/colors/red"}, {"type": "null"}]},
        "red": {"type": "string", "format": "color", "propertyNames": true, "maxLength": 3}}});
    schema(odd, &["\"red\"", "null"], &["\"blue\"", "1"]);
}

#[test]
fn numbers_may_have_the_bounds_of_integers() {
    for kind in ["integer", "number"] {
        schema(
            json!({"type": kind, "minimum": i64::MIN, "maximum": u64::MAX}),
            &["0", "-9007199254740993"],
            &["true"],
        );
    }
}

#[test]
fn a_keyword_that_is_null_says_nothing() {
    let object = json!({
        "type": "object", "title": null, "required": null, "description": null, "$defs": null,
        "properties": {"a": {"type": "integer", "enum": null, "minimum": null}, "b": {"const": null}},
        "additionalProperties": false,
    });
    let good = [r#"{"a": 5, "b": null}"#, "{}"];
    schema(object, &good, &[r#"{"a": "x"}"#, r#"{"b": 1}"#]);
}
