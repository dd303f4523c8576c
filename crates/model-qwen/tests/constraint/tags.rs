//! Structural tags: formats of xgrammar's, and vLLM's older form.

use model_qwen::Grammar;
use serde_json::{Value, json};

use super::{FACTORY, check};

#[test]
fn structural_tags_constrain_parts_of_a_text() {
    let schema = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false});
    let older = json!({"type": "structural_tag", "triggers": ["<function="], "structures": [
        {"begin": "<function=f>", "schema": schema, "end": "</function>"},
        {"begin": "<function=g>", "schema": {"type": "array"}, "end": "</function>"}]});
    let call = "So: <function=f>{\"x\": 1}</function>";
    let both = format!("{call} and <function=g>[1]</function>.");
    check(
        &Grammar::StructuralTag(older),
        &["", "Any < text.", call, &both],
        &[
            "<function=h>{}</function>",
            "<function=f>{\"x\": 1.5}</function>",
            "<function=f>{\"x\": 1}",
        ],
    );

    let tag = json!({"type": "tag", "begin": "<tool_call>", "content": {"type": "json_schema", "json_schema": schema}, "end": "</tool_call>"});
    let format = |format: serde_json::Value| {
        Grammar::StructuralTag(json!({"type": "structural_tag", "format": format}))
    };
    let triggered = |at_least_one: bool, stop_after_first: bool| {
        format(
            json!({"type": "triggered_tags", "triggers": ["<tool_call>"],
        "tags": [tag], "at_least_one": at_least_one, "stop_after_first": stop_after_first}),
        )
    };
    let call = "<tool_call>{\"x\":1}</tool_call>";
    let (twice, before) = (call.repeat(2), format!("Well, {call}"));
    check(
        &triggered(false, false),
        &["", "text", call, &twice, &before],
        &["<tool_call>5"],
    );
    check(
        &triggered(true, false),
        &[call, &twice, &before],
        &["", "text"],
    );
    check(
        &triggered(true, true),
        &[call],
        &["", "text", &twice, &before],
    );
    check(
        &triggered(false, true),
        &["", "text", call, &before],
        &[&twice],
    );

    let separated = |at_least_one: bool| {
        format(
            json!({"type": "tags_with_separator", "tags": [tag], "separator": "\n", "at_least_one": at_least_one}),
        )
    };
    let two = format!("{call}\n{call}");
    check(&separated(false), &["", call, &two], &[&twice, "text"]);
    check(&separated(true), &[call, &two], &[""]);

    let thought = format(json!({"type": "sequence", "elements": [
        {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"},
        {"type": "or", "elements": [{"type": "const_string", "value": "yes"}, {"type": "regex", "pattern": "[0-9]+"}]},
        {"type": "any_text"}]}));
    check(
        &thought,
        &["<think>a < b</think>yes", "<think></think>42, say I"],
        &["yes", "<think>a</think>maybe"],
    );
    let grammar = format(json!({"type": "grammar", "grammar": "root ::= \"a\" root | \"b\""}));
    check(&grammar, &["b", "aab"], &["a"]);
    let ends = format(
        json!({"type": "tag", "begin": "(", "content": {"type": "any_text"}, "end": [")", "]"]}),
    );
    check(&ends, &["(x)", "(x]"], &["(x", "(x)y"]);
    let without = format(json!({"type": "sequence", "elements": [
        {"type": "tag", "begin": "(", "content": {"type": "any_text", "excludes": ["</a>", "b.c"]}, "end": ")"},
        {"type": "any_text", "excludes": ["</a>"]}]}));
    check(
        &without,
        &["(x\n</b>)", "()", "(bxc)b.c", "(</a)</a"],
        &["(</a>)", "(x b.c)", "(x", "()x</a>y"],
    );
}

#[test]
fn formats_of_structural_tags_repeat() {
    let format =
        |format: Value| Grammar::StructuralTag(json!({"type": "structural_tag", "format": format}));
    let number = json!({"type": "regex", "pattern": "[0-9];"});
    let of = |name: &str| {
        format(json!({"type": "sequence", "elements": [
            {"type": name, "content": number}, {"type": "const_string", "value": "."}]}))
    };
    check(&of("optional"), &[".", "1;."], &["1;2;.", "1;"]);
    check(&of("star"), &[".", "1;.", "1;2;3;."], &["12;."]);
    check(&of("plus"), &["1;.", "1;2;3;."], &["."]);
    let repeat = |min: i64, max: i64| {
        format(json!({"type": "repeat", "min": min, "max": max, "content": number}))
    };
    check(&repeat(2, 3), &["1;2;", "1;2;3;"], &["1;", "1;2;3;4;"]);
    check(&repeat(2, -1), &["1;2;", "1;2;3;4;5;6;"], &["1;"]);
    check(&repeat(0, 1), &["", "1;"], &["1;2;"]);
    let lark = json!({"type": "grammar", "syntax": "lark", "grammar": "start: \"a\" | \"b\""});
    check(
        &format(json!({"type": "plus", "content": lark})),
        &["a", "abba"],
        &["", "c"],
    );
}

#[test]
fn patterns_in_free_text_say_what_follows() {
    let dispatch = |more: Value| {
        let mut format = json!({"type": "dispatch", "rules": [
            ["call:", {"type": "json_schema", "json_schema": {"type": "integer"}}],
            ["say:", {"type": "regex", "pattern": "[a-z]+;"}]]});
        format
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        Grammar::StructuralTag(json!({"type": "structural_tag", "format": format}))
    };
    check(
        &dispatch(json!({})),
        &["", "free", "a call:5 b say:hi; c", "call:1call:2"],
        &["call:x", "a say:5;", "say:hi"],
    );
    check(
        &dispatch(json!({"loop": false})),
        &["free", "a call:5"],
        &["call:x", "a say:hi; b"],
    );
    check(
        &dispatch(json!({"excludes": ["stop"]})),
        &["sto", "a call:5 b"],
        &["stop", "a stop call:5", "call:5 stop"],
    );
    let tag = json!({"type": "tag", "begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</n>"});
    let triggered = Grammar::StructuralTag(json!({"type": "structural_tag", "format":
        {"type": "triggered_tags", "triggers": ["<n"], "tags": [tag], "excludes": ["no"]}}));
    check(
        &triggered,
        &["a<n>5</n>b", "n o"],
        &["no", "a no <n>5</n>", "<n>x</n>"],
    );
}

/// Whatever comes before any text, the end of a tag ends it.
#[test]
fn a_tag_ends_where_its_end_first_comes() {
    let tag = |content: Value| {
        let tag = json!({"type": "tag", "begin": "<", "content": content, "end": ">"});
        Grammar::StructuralTag(json!({"type": "structural_tag", "format": tag}))
    };
    let any = json!({"type": "any_text"});
    let inner = json!({"type": "tag", "begin": "[", "content": any, "end": "]"});
    let triggered = |more: Value| {
        let mut format = json!({"type": "triggered_tags", "triggers": ["["], "tags": [inner]});
        let more = more.as_object().unwrap().clone();
        format.as_object_mut().unwrap().extend(more);
        tag(format)
    };
    let bad = ["<a", "<a>b", "<a>b>"];
    check(&tag(any.clone()), &["<a>", "<>"], &bad);
    check(
        &triggered(json!({})),
        &["<a>", "<>", "<a[b]c>", "<[>]>", "<[b][c]>"],
        &[&bad[..], &["<[b>", "<[b]>c>"]].concat(),
    );
    check(
        &triggered(json!({"at_least_one": true})),
        &["<a[b]c>", "<[b]>"],
        &["<a>", "<[b]>c>"],
    );
    check(
        &triggered(json!({"stop_after_first": true})),
        &["<a>", "<a[b]>"],
        &["<a[b]c>", "<a>b>"],
    );
    let either = json!({"type": "or", "elements": [{"type": "const_string", "value": "7"}, any]});
    check(&tag(either), &["<7>", "<a>", "<>"], &bad);
    let sequence =
        json!({"type": "sequence", "elements": [{"type": "const_string", "value": "7"}, any]});
    check(&tag(sequence), &["<7>", "<7a>"], &["<a>", "<7a>b>"]);
    let dispatch =
        json!({"type": "dispatch", "rules": [["[", {"type": "regex", "pattern": "[0-9]\\]"}]]});
    check(&tag(dispatch), &["<a>", "<a[1]b>"], &["<a[x]>", "<a>b>"]);
    let optional = json!({"type": "optional", "content": any});
    check(&tag(optional), &["<a>", "<>"], &bad);
}

/// xgrammar's own programs write every key, also those that say nothing.
#[test]
fn keys_of_formats_that_say_nothing_are_as_if_they_were_absent() {
    let format =
        |format: Value| Grammar::StructuralTag(json!({"type": "structural_tag", "format": format}));
    let text = json!({"type": "any_text", "excludes": [], "max_tokens": null, "max_chars": null});
    check(&format(text), &["a", ""], &[]);
    let number = json!({"type": "json_schema", "json_schema": {"type": "integer"}, "style": "json", "any_order": false});
    check(&format(number), &["5"], &["a"]);
    let limited = format(json!({"type": "any_text", "max_tokens": 5}));
    assert!(FACTORY.compile(&limited, None).is_err());
}

#[test]
fn patterns_may_be_equal_or_begin_one_another() {
    let rule =
        |pattern: &str, value: &str| json!([pattern, {"type": "const_string", "value": value}]);
    let rules = [
        rule("<a", "1"),
        rule("<ab", "2"),
        rule(",", "x"),
        rule(",", "y"),
    ];
    let dispatch = json!({"type": "dispatch", "rules": rules});
    check(
        &Grammar::StructuralTag(json!({"type": "structural_tag", "format": dispatch})),
        &["<a1", "<ab2", "a,x", "a,y<a1"],
        &["<a2", "<ab1", "a,z"],
    );
}

#[test]
fn a_token_is_one_of_the_vocabulary() {
    let format =
        |format: Value| Grammar::StructuralTag(json!({"type": "structural_tag", "format": format}));
    let start = json!({"type": "token", "token": "<|im_start|>"});
    let content = json!({"type": "regex", "pattern": "[a-z]+"});
    let by_name = json!({"type": "sequence", "elements": [{"type": "const_string", "value": "x"}, start, content]});
    check(
        &format(by_name),
        &["x<|im_start|>user"],
        &["xuser", "x<|im_start|>5"],
    );
    let mut by_id = start.clone();
    by_id["token"] = json!(1);
    let tag = json!({"type": "tag", "begin": by_id, "content": {"type": "any_text"}, "end": start});
    check(
        &format(tag),
        &["<|im_start|>any text<|im_start|>"],
        &[
            "any text",
            "<|im_start|>any text",
            "<|im_start|>a<|im_start|>b",
        ],
    );
}
