//! Each kind of grammar, and how sequences go through it.

use model_qwen::{Grammar, JsonStyle};
use serde_json::json;

use crate::{
    ENDS, FACTORY, TOKENIZER, accepts, check, compiled, must_stop, parsed, random_text, vocab_size,
};

fn id_of(text: &str) -> u32 {
    let ids = TOKENIZER.encode(text, false).unwrap();
    assert_eq!(ids.len(), 1, "{text}");
    ids[0]
}

#[test]
fn a_choice_is_one_of_the_texts() {
    let choice =
        |texts: &[&str]| Grammar::Choice(texts.iter().map(|text| (*text).to_owned()).collect());
    check(
        &choice(&["yes", "no", "yes, please"]),
        &["yes", "no", "yes, please"],
        &["y", "yess", "maybe", ""],
    );
    let odd = [
        "a|b",
        "(x)",
        "[1]",
        "\\d",
        "/",
        "\n",
        "é ü",
        "a.c",
        "<|im_end|>",
        "{}",
        "\"",
        "^$",
        "<tool_call>",
    ];
    for text in odd {
        // The tokenizer takes the name of a special token for the token.
        if text != "<|im_end|>" {
            check(&choice(&[text]), &[text], &["abc", ""]);
        }
        let (written, finished) = random_text(compiled(&choice(&[text])), 1, 50);
        assert!(
            finished && written == text,
            "{written:?}, expected {text:?}"
        );
    }
}

#[test]
fn a_regex_matches_all_of_the_text() {
    let regex = |regex: &str| Grammar::Regex(regex.to_owned());
    check(
        &regex("[0-9]{3}-[a-z]+"),
        &["123-abc"],
        &["12-abc", "123-", "x123-abc", "123-abc "],
    );
    check(
        &regex("^(a|b/c)+$"),
        &["a", "b/c", "ab/ca"],
        &["", "b", "^a$"],
    );
    check(&regex(r"\d\d:\d\d"), &["12:34"], &["1:23"]);
    check(&regex(r"(?i:yes)\.?"), &["YES", "yes."], &["yes!"]);
    check(&regex("[一-龥]+。"), &["你好。"], &["hello。"]);
}

#[test]
fn lark_and_ebnf_are_told_apart() {
    let lark = Grammar::from_source("start: \"a\" B\nB: /[0-9]+/".to_owned());
    assert!(matches!(lark, Grammar::Lark(_)));
    check(&lark, &["a1", "a123"], &["a", "b1"]);
    // The example of vLLM's documentation, in both.
    let lark = "?start: select_statement\n?select_statement: \"SELECT \" column_list \" FROM \" table_name\n\
        ?column_list: column_name (\",\" column_name)*\n?table_name: identifier\n?column_name: identifier\n\
        ?identifier: /[a-zA-Z_][a-zA-Z0-9_]*/\n";
    check(
        &Grammar::from_source(lark.to_owned()),
        &["SELECT a,b FROM users"],
        &["SELECT FROM users"],
    );
    let ebnf = "root ::= select_statement\n\nselect_statement ::= \"SELECT \" column \" from \" table \" where \" condition\n\n\
        column ::= \"col_1 \" | \"col_2 \"\n\ntable ::= \"table_1 \" | \"table_2 \"\n\ncondition ::= column \"= \" number\n\n\
        number ::= \"1 \" | \"2 \"\n";
    let ebnf = Grammar::from_source(ebnf.to_owned());
    assert!(matches!(ebnf, Grammar::Ebnf(_)));
    check(
        &ebnf,
        &["SELECT col_1  from table_2  where col_2 = 1 "],
        &["SELECT col_3  from table_1  where col_2 = 1 "],
    );
}

#[test]
fn ebnf_has_recursion_classes_and_bounds() {
    let ebnf = |source: &str| Grammar::Ebnf(source.to_owned());
    let sums = "# sums\nroot  ::= sum\nsum   ::= Term (\"+\" Term)*\nTerm  ::= number | \"(\" sum \")\" # nested\nnumber ::= [0-9]+";
    check(
        &ebnf(sums),
        &["1", "1+23", "(1+2)+3", "((4))"],
        &["", "1+", "(1", "1 + 2"],
    );
    let odd = r#"root ::= [^"\\\x00-\x1f]{2,3} "\"" ("\u00e9" | [\]a-]) .? "#;
    check(
        &ebnf(odd),
        &["xy\"é", "a/b\"-", "ab\"]\n"],
        &["x\"é", "xyzw\"a", "xy\"b"],
    );
    // A rule that ends where the next one begins: no terminal takes more than its part.
    check(
        &ebnf("root ::= word \"a\"\nword ::= [a-z]+"),
        &["ba", "aaa"],
        &["a", "ab"],
    );
    check(
        &ebnf("root ::=\n  \"a\" |\n  \"b\"\n  | \"c\"\n"),
        &["a", "b", "c"],
        &["d"],
    );
    // Space, and in a group a new line, may stand before an operator.
    check(
        &ebnf("root ::= \"a\" {2} [b-c] * (\"d\"\n +) \"e\" ?"),
        &["aad", "aabcbdde"],
        &["ad", "aa", "aadee"],
    );
    // Nothing, however often.
    check(
        &ebnf("root ::= [a-z]{0}\"x\" (word{0})* \"\"+\nword ::= \"y\""),
        &["x"],
        &["", "ax", "xy"],
    );
}

#[test]
fn only_tags_that_end_a_text_end_it() {
    let mut constraint = compiled(&Grammar::Choice(vec!["yes".to_owned()]));
    let mask = constraint.mask().unwrap();
    assert!(ENDS.iter().all(|id| !mask.allows(*id)));
    let unknown = TOKENIZER.vocab_size() as u32..vocab_size() as u32;
    assert!(unknown.clone().all(|id| !mask.allows(id)));
    assert!(!constraint.may_stop() && !must_stop(&mut constraint));
    for id in TOKENIZER.encode("yes", false).unwrap() {
        constraint.consume(id);
    }
    assert!(constraint.may_stop() && must_stop(&mut constraint) && !constraint.is_finished());
    let mask = constraint.mask().unwrap();
    assert_eq!(mask.ids().collect::<Vec<u32>>(), {
        let mut ends = ENDS.clone();
        ends.sort_unstable();
        ends
    });
    constraint.consume(ENDS[0]);
    assert!(constraint.is_finished() && constraint.mask().is_none());
}

#[test]
fn without_an_early_end_a_text_goes_on_as_long_as_it_may() {
    let digits = Grammar::Regex("[0-9]{1,3}".to_owned());
    let mut constraint = compiled(&digits);
    constraint.consume(id_of("1"));
    assert!(constraint.may_stop() && !must_stop(&mut constraint));
    let mut constraint = compiled(&digits).without_early_end();
    for _ in 0..3 {
        assert!(!constraint.may_stop());
        constraint.consume(id_of("1"));
    }
    assert!(must_stop(&mut constraint));
}

#[test]
fn a_model_without_such_tokens_ends_where_nothing_may_follow() {
    let factory = model_qwen::ConstraintFactory::new(&TOKENIZER, vocab_size(), &[]).unwrap();
    let mut constraint = factory
        .compile(&Grammar::Regex("[0-9]{2}".to_owned()), None)
        .unwrap();
    for _ in 0..2 {
        assert!(!constraint.is_finished());
        constraint.consume(id_of("7"));
    }
    assert!(constraint.is_finished() && constraint.error().is_none());
}

#[test]
fn before_the_grammar_any_token_may_come_and_an_end_ends_the_free_text() {
    let after = id_of("x");
    let mut constraint = FACTORY.compile(&Grammar::JsonObject, Some(after)).unwrap();
    for id in [id_of("a"), id_of("}")] {
        assert!(!constraint.is_active() && constraint.mask().is_none());
        assert!(!constraint.may_stop() && !must_stop(&mut constraint) && !constraint.is_finished());
        assert_eq!(constraint.instead_of(id), id);
        assert!(ENDS.iter().all(|&end| constraint.instead_of(end) == after));
        constraint.consume(id);
    }
    constraint.consume(after);
    let mask = constraint.mask().unwrap();
    assert!(mask.allows(id_of("{")) && !mask.allows(id_of("a")));
    assert_eq!(constraint.instead_of(ENDS[0]), ENDS[0]);
}

#[test]
fn a_clone_goes_its_own_way() {
    let mut one = compiled(&Grammar::Choice(vec!["ab".to_owned(), "xy".to_owned()]));
    let mut two = one.clone();
    one.consume(id_of("a"));
    two.consume(id_of("x"));
    assert_eq!(one.mask().unwrap().only(), Some(id_of("b")));
    assert_eq!(two.mask().unwrap().only(), Some(id_of("y")));
    assert_eq!(one.clone().mask(), one.mask());
}

#[test]
fn a_token_that_may_not_come_is_an_error() {
    let mut constraint = compiled(&Grammar::JsonObject);
    constraint.consume(id_of("x"));
    assert!(constraint.error().is_some() && constraint.mask().is_none());
    assert!(!constraint.is_active() && !constraint.is_finished());
}

#[test]
fn json_is_written_in_the_style_that_was_asked_for() {
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let styled = |style: JsonStyle| Grammar::JsonSchema(schema.clone()).styled(&style);
    let plain = styled(JsonStyle::default());
    check(&plain, &["{\"a\": 1}", "{\n\"a\":1, \"b\": null}"], &[]);
    let compact = styled(JsonStyle {
        compact: true,
        ..JsonStyle::default()
    });
    check(
        &compact,
        &["{\"a\":1}", "{\"a\":1,\"b\":[1,2]}"],
        &["{\"a\": 1}"],
    );
    let pattern = styled(JsonStyle {
        whitespace_pattern: Some(" ?".to_owned()),
        ..JsonStyle::default()
    });
    check(
        &pattern,
        &["{\"a\": 1}", "{\"a\":1}"],
        &["{\"a\":  1}", "{\n\"a\":1}"],
    );
    let closed = styled(JsonStyle {
        closed_objects: true,
        ..JsonStyle::default()
    });
    check(&closed, &["{\"a\": 1}"], &["{\"a\":1, \"b\": null}"]);
    let object = Grammar::JsonObject.styled(&JsonStyle {
        compact: true,
        ..JsonStyle::default()
    });
    check(&object, &["{}", "{\"x\":[]}"], &["{ }", "[]", "1"]);
}

#[test]
fn any_object_is_an_object() {
    check(
        &Grammar::JsonObject,
        &["{}", "{\"a\": {\"b\": [1, null, \"é\"]}}"],
        &["[]", "1", "{", "{'a': 1}", "{} "],
    );
    for seed in 0..20 {
        let (text, finished) = random_text(compiled(&Grammar::JsonObject), seed, 300);
        assert!(!finished || parsed(&text).is_object());
    }
    assert!(accepts(
        &Grammar::JsonObject,
        "{\"<tool_call>\": \"</think>\"}"
    ));
}
