//! What can't be used is refused, with a reason, soon.

use std::time::{Duration, Instant};

use model_qwen::Grammar;
use serde_json::{Value, json};

use crate::FACTORY;

/// Checks that a grammar is refused with a reason that has `part`.
#[track_caller]
fn refused(grammar: Grammar, part: &str) {
    let start = Instant::now();
    let error = FACTORY
        .compile(&grammar, None)
        .expect_err("a refusal")
        .to_string();
    assert!(error.contains(part), "{error:?}, expected {part:?}");
    assert!(
        error.len() < 2000 && !error.contains("backtrace"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(30), "{part}");
}

#[test]
fn what_is_no_grammar_is_refused() {
    let regex = |source: &str| Grammar::Regex(source.to_owned());
    refused(regex(""), "empty");
    // Reasons are about the client's own expression, not about the grammar that is made of it.
    for (source, reason) in [
        ("(a", "unclosed group at character 1: `(`"),
        (
            "(?=a)b",
            "look-around, including look-ahead and look-behind, is not supported at character 1: `(?=`",
        ),
        (
            "ab\\",
            "incomplete escape sequence, reached end of pattern prematurely at character 3: `\\`",
        ),
        (
            r"a\bc",
            "it matches the whole text, so anchors inside of it and word boundaries are not supported",
        ),
    ] {
        let error = FACTORY
            .compile(&regex(source), None)
            .expect_err("a refusal");
        assert_eq!(error.to_string(), reason);
    }
    let property = |regex: &str| {
        let text = json!({"type": "string", "pattern": regex});
        Grammar::JsonSchema(json!({"type": "object", "properties": {"a": text}}))
    };
    refused(
        property("(a"),
        "properties.a.pattern: unclosed group at character 1",
    );
    let tag = json!({"type": "structural_tag", "format": {"type": "regex", "pattern": "[b-a]"}});
    refused(Grammar::StructuralTag(tag), "at character 2: `b-a`");
    refused(Grammar::Choice(Vec::new()), "at least one choice");
    refused(
        Grammar::Choice(vec!["a".to_owned(), String::new()]),
        "empty",
    );
    refused(Grammar::Lark("start: a b".to_owned()), "");
    refused(Grammar::Lark("nothing".to_owned()), "");
    refused(
        Grammar::Lark("start: <nothing>".to_owned()),
        "special token",
    );
    refused(Grammar::Ebnf("a ::= \"b\"".to_owned()), "`root`");
    refused(Grammar::Ebnf("root ::= other".to_owned()), "`other`");
    refused(
        Grammar::Ebnf("root ::= (\"a\"".to_owned()),
        "line 1, column 14: expected `)`",
    );
    refused(
        Grammar::Ebnf("root ::= \"a\"\nroot ::= \"b\"".to_owned()),
        "line 2, column 1",
    );
    refused(Grammar::Ebnf("root ::= [b-a]".to_owned()), "range");
    refused(
        Grammar::Ebnf(format!("root ::= {}", "(".repeat(100_000))),
        "groups",
    );
    refused(
        Grammar::Ebnf(format!("root ::= \"a\"{}", "?".repeat(100_000))),
        "operators",
    );
}

#[test]
fn tags_that_are_not_known_are_refused_by_name() {
    let tag =
        |format: Value| Grammar::StructuralTag(json!({"type": "structural_tag", "format": format}));
    refused(
        tag(json!({"type": "qwen_xml_parameter", "json_schema": {}})),
        "`qwen_xml_parameter`",
    );
    refused(
        tag(json!({"type": "any_text", "excludes": [5]})),
        "`excludes`",
    );
    let number = json!({"type": "regex", "pattern": "[0-9]"});
    for (format, reason) in [
        (json!({"type": "star"}), "`content`"),
        (
            json!({"type": "repeat", "min": 1, "max": 2, "content": {"type": "any_text"}}),
            "must not end in any text",
        ),
        (
            json!({"type": "repeat", "min": 3, "max": 2, "content": number}),
            "`min` <= `max`",
        ),
        (
            json!({"type": "repeat", "min": 1, "max": 1e9 as i64, "content": number}),
            "10000",
        ),
        (
            json!({"type": "repeat", "max": 2, "content": number}),
            "`min`",
        ),
        (json!({"type": "token", "token": "word"}), "special token"),
        (json!({"type": "token", "token": -1}), "an id"),
        (
            json!({"type": "dispatch", "rules": [["a"]]}),
            "a text and a format",
        ),
        (json!({"type": "dispatch", "rules": []}), "`rules`"),
        (json!({"type": "any_tokens"}), "any_tokens"),
        (
            json!({"type": "grammar", "grammar": "a", "syntax": "peg"}),
            "`syntax`",
        ),
    ] {
        refused(tag(format), reason);
    }
    refused(
        tag(json!({"type": "any_text", "excludes": ["x", ""]})),
        "`excludes`",
    );
    refused(tag(json!(5)), "a number");
    refused(
        Grammar::StructuralTag(json!({"type": "structural_tag"})),
        "`format`",
    );
    refused(
        Grammar::StructuralTag(json!({"structures": [], "triggers": ["a"]})),
        "at least one",
    );
    let other =
        json!({"structures": [{"begin": "b", "schema": {}, "end": "c"}], "triggers": ["a"]});
    refused(Grammar::StructuralTag(other), "no trigger");
    let mut deep = json!({"type": "any_text"});
    for _ in 0..200 {
        deep = json!({"type": "sequence", "elements": [deep]});
    }
    refused(tag(deep), "deeper");
}

#[test]
fn schemas_that_can_not_be_kept_to_are_refused_by_name() {
    let schema = |schema: Value| Grammar::JsonSchema(schema);
    refused(
        schema(json!({"type": "array", "uniqueItems": true})),
        "uniqueItems",
    );
    refused(schema(json!({"not": {"type": "null"}})), "not");
    refused(
        schema(json!({"type": "string", "format": "idn-email"})),
        "idn-email",
    );
    refused(schema(json!({"type": "what"})), "type: expected null");
    let inside = |part: Value| json!({"type": "object", "properties": {"o": part}});
    refused(
        schema(inside(json!({"type": "object", "required": "a"}))),
        "properties.o.required: expected a list of texts, found a string",
    );
    refused(
        schema(inside(json!({"enum": 3}))),
        "properties.o.enum: expected a list, found a number",
    );
    refused(
        schema(inside(json!({"type": "array", "uniqueItems": true}))),
        "properties.o.uniqueItems: ",
    );
    refused(
        schema(inside(json!({"type": "object", "properties": {"p": null}}))),
        "properties.o.properties.p: expected a schema, found null",
    );
    for (part, expected) in [
        (
            json!({"anyOf": [{"type": "string"}, null]}),
            "properties.o.anyOf[1]: expected a schema, found null",
        ),
        (
            json!({"type": "array", "prefixItems": ["string"]}),
            "properties.o.prefixItems[0]: expected a schema, found a string",
        ),
        (
            json!({"allOf": [5]}),
            "properties.o.allOf[0]: expected a schema, found a number",
        ),
        (
            json!({"type": "object", "properties": []}),
            "properties.o.properties: expected an object of schemas, found a list",
        ),
        (
            json!({"type": ["string", null]}),
            "properties.o.type[1]: expected null, boolean, object, array, number, string, integer, found null",
        ),
    ] {
        refused(schema(inside(part)), expected);
    }
    refused(
        schema(json!({"$ref": "https://example.com/other"})),
        "another document",
    );
    refused(schema(json!({"$ref": "#/$defs/missing"})), "missing");
    refused(schema(json!({"$ref": "#/a~1b"})), "names nothing");
    refused(
        schema(json!({"type": "integer", "minimum": 5, "maximum": 3})),
        "nsatisfiable",
    );
    refused(
        schema(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})),
        "oneOf",
    );
    refused(schema(json!({"const": i64::MIN})), "const");
    let lark = format!("start: \"x\" %json {{\"const\": {}}}", i64::MIN);
    refused(Grammar::Lark(lark), "%json");
    refused(
        schema(json!({"$ref": "#/x", "x": {"enum": [i64::MIN]}})),
        "enum",
    );
    refused(
        schema(json!({"type": "integer", "minimum": -1e30, "maximum": -1e20})),
        "maximum",
    );
    refused(schema(json!({"type": "string", "pattern": "(?!a)b"})), "");
    refused(schema(json!(false)), "false");
    refused(schema(json!("text")), "object");
}

/// Schemas that are made to take long, or much.
mod too_much {
    use super::*;

    #[test]
    fn each_option_with_each_other_one() {
        let options: Vec<Value> = (0..12)
            .map(|i| json!({"type": "string", "pattern": format!("a{i}")}))
            .collect();
        let product: Vec<Value> = (0..12).map(|_| json!({"anyOf": options})).collect();
        refused(Grammar::JsonSchema(json!({"allOf": product})), "too large");
    }

    #[test]
    fn a_chain_of_references() {
        let chain = |num: usize| {
            let mut definitions = serde_json::Map::new();
            for i in 0..num {
                let next = format!("#/$defs/d{}", i + 1);
                let object = json!({"type": "object", "properties": {"n": {"$ref": next}}});
                definitions.insert(format!("d{i}"), object);
            }
            definitions.insert(format!("d{num}"), json!({"type": "null"}));
            Grammar::JsonSchema(json!({"$ref": "#/$defs/d0", "$defs": definitions}))
        };
        assert!(FACTORY.compile(&chain(2_000), None).is_ok());
        // As long as they may be, and longer.
        let _ = FACTORY.compile(&chain(15_000), None);
        refused(chain(60_000), "too large");
    }

    #[test]
    fn schemas_inside_one_another() {
        let nested = |levels: usize| {
            (0..levels).fold(
                json!({"type": "null"}),
                |inside, _| json!({"type": "array", "items": inside}),
            )
        };
        refused(Grammar::JsonSchema(nested(500)), "deeper than");
        assert!(
            FACTORY
                .compile(&Grammar::JsonSchema(nested(100)), None)
                .is_ok()
        );
    }

    #[test]
    fn many_properties() {
        let many = |num: usize| {
            let properties =
                (0..num).map(|i| (format!("p{i}"), json!({"type": "integer", "maximum": i})));
            let properties: serde_json::Map<String, Value> = properties.collect();
            Grammar::JsonSchema(json!({"type": "object", "properties": properties}))
        };
        refused(many(60_000), "too large");
        // As many as are let through.
        let _ = FACTORY.compile(&many(20_000), None);
    }

    #[test]
    fn many_values() {
        let many = |num: usize| {
            let values: Vec<String> = (0..num).map(|i| format!("value {i}")).collect();
            Grammar::JsonSchema(json!({"enum": values}))
        };
        let _ = FACTORY.compile(&many(50_000), None);
        refused(many(500_000), "too large");
    }

    /// They are refused, or where a text goes too far into them, or they are not too much.
    fn takes(regex: &str) {
        let start = Instant::now();
        if let Ok(mut constraint) = FACTORY.compile(&Grammar::Regex(regex.to_owned()), None) {
            for id in crate::TOKENIZER.encode(&"ab".repeat(100), false).unwrap() {
                constraint.mask();
                constraint.consume(id);
            }
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{regex}");
    }

    #[test]
    fn a_pattern_of_many_states() {
        takes("(a|b)*a(a|b){5000}");
    }

    #[test]
    fn repetitions_of_repetitions() {
        takes("((((a{100}){100}){100}){100}){100}");
    }

    #[test]
    fn repetitions_of_anything() {
        takes("(.*a){3000}");
    }

    #[test]
    fn a_long_pattern() {
        takes(&"(a|b)".repeat(20_000));
    }

    #[test]
    fn a_deep_pattern() {
        takes(&format!("{}a{}", "(".repeat(200), "b)?".repeat(200)));
    }

    #[test]
    fn many_choices() {
        let choices: Vec<String> = (0..20_000).map(|i| format!("choice number {i}")).collect();
        let _ = FACTORY.compile(&Grammar::Choice(choices), None);
    }

    #[test]
    fn a_grammar_of_many_rules() {
        let rules = (0..20_000).map(|i| format!("r{i}: \"a\" r{} | \"b\"\n", i + 1));
        let lark = format!("start: r0\n{}r20000: \"c\"\n", rules.collect::<String>());
        let _ = FACTORY.compile(&Grammar::Lark(lark), None);
    }

    #[test]
    fn groups_in_groups() {
        let lark = format!("start: {}\"a\"{}\n", "(".repeat(50_000), ")".repeat(50_000));
        let _ = FACTORY.compile(&Grammar::Lark(lark), None);
    }
}
