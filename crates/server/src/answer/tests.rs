//! Whole answers, and every way to cut them.

mod cuts;
mod functions;
mod long;

use serde_json::json;

use super::*;

fn tools() -> Arc<[Tool]> {
    let tool = |name: &str, properties: Value| Tool {
        index: 0,
        name: name.to_owned(),
        parameters: json!({ "type": "object", "properties": properties, "$defs": { "size": { "type": "integer" } } }),
        strict: false,
    };
    Arc::new([
        tool("now", json!({})),
        tool(
            "find",
            json!({ "text": { "type": "string" }, "num": { "type": "integer" }, "ratio": { "type": "number" },
                "deep": { "type": "boolean" }, "tags": { "type": "array" }, "near": { "anyOf": [{ "type": "null" }, { "type": "object" }] },
                "maybe": { "type": ["string", "null"] }, "size": { "$ref": "#/$defs/size" }, "kind": { "enum": [1, 2] } }),
        ),
    ])
}

fn options(reasoning: ReasoningStart) -> AnswerOptions {
    AnswerOptions {
        reasoning,
        think_ids: [Some(1), Some(2)],
        calls: Some(CallOptions {
            tools: tools(),
            bare_functions: true,
            only_these: false,
            only_one: false,
        }),
    }
}

/// The parts of a text that comes in these pieces, with ids that are the calls' indices.
fn parts_of(options: &AnswerOptions, pieces: &[&str]) -> Vec<Part> {
    let mut parser = AnswerParser::new(options.clone());
    let mut parts = Vec::new();
    let mut pieces: Vec<Part> = pieces
        .iter()
        .flat_map(|piece| parser.push(piece, &[]))
        .collect();
    pieces.extend(parser.finish());
    for mut part in pieces {
        if let Part::Call { index, id, .. } = &mut part {
            assert!(id.starts_with("call_") && id.len() == 29, "{id}");
            *id = index.to_string();
        }
        push(&mut parts, part);
    }
    parts
}

/// Parts in short: reasoning in parentheses, calls as `name{…}.`, content in quotes.
fn shown(parts: &[Part]) -> String {
    let show = |part: &Part| match part {
        Part::Reasoning(text) => format!("({text})"),
        Part::Content(text) => format!("'{text}'"),
        Part::Call { name, .. } => name.clone(),
        Part::Arguments { text, .. } => text.clone(),
        Part::CallEnd { .. } => ".".to_owned(),
    };
    parts.iter().map(show).collect()
}

/// Asserts the parts of a text, whether it comes whole, in characters, or in two pieces.
#[track_caller]
fn check_with(options: &AnswerOptions, text: &str, expected: &str) {
    let whole = parts_of(options, &[text]);
    assert_eq!(shown(&whole), expected, "{text:?}");
    let places: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
    let ends = places.iter().copied().skip(1).chain([text.len()]);
    let characters: Vec<&str> = places
        .iter()
        .zip(ends)
        .map(|(&i, end)| &text[i..end])
        .collect();
    assert_eq!(
        parts_of(options, &characters),
        whole,
        "{text:?} in characters"
    );
    for &at in &places {
        let (a, b) = text.split_at(at);
        assert_eq!(parts_of(options, &[a, b]), whole, "{a:?} {b:?}");
    }
}

#[track_caller]
fn check(text: &str, expected: &str) {
    check_with(&options(ReasoningStart::Tag), text, expected);
}

#[test]
fn reasoning_is_between_its_tags() {
    check("<think>\na < b\n</think>\n\nYes.", "(\na < b\n)'\n\nYes.'");
    check("\n<think></think>Yes.", "'Yes.'");
    check("Yes. <think>no</think>", "'Yes. <think>no</think>'");
    check("<think>never ends </thin", "(never ends </thin)");
    check("<thin", "'<thin'");
    check("", "");
    let open = options(ReasoningStart::Prompt);
    check_with(&open, "I see.\n</think>\n\nYes.", "(I see.\n)'\n\nYes.'");
    check_with(&open, "<think>again</think>Yes.", "(again)'Yes.'");
    check_with(&open, "no end", "(no end)");
    check_with(&open, "</think></think>", "'</think>'");
    let none = AnswerOptions::default();
    check_with(
        &none,
        "<think>a</think><tool_call>",
        "'<think>a</think><tool_call>'",
    );
}

#[test]
fn a_call_may_follow_reasoning_without_its_end() {
    let open = options(ReasoningStart::Prompt);
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    check_with(
        &open,
        &format!("Let me see.\n{call}"),
        "(Let me see.\n)now{}.",
    );
    check_with(
        &open,
        "I could use <tool_call> here</think>Yes",
        "(I could use <tool_call> here)'Yes'",
    );
    check_with(
        &open,
        "Well <tool_call>\n<function=now></function>",
        "(Well )now{}.",
    );
}

#[test]
fn calls_in_tags() {
    let call = |arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"find\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    for arguments in [
        "{}",
        r#"{"text": "a } ] { \" </tool_call> \\"}"#,
        r#"{"near": {"a": [{"b": [1, {}]}]}, "text": "ü 😀 \u00e9"}"#,
        "{\n  \"num\": 1\n}",
    ] {
        check(&call(arguments), &format!("find{arguments}."));
        let text = format!("First this.\n\n{0}\n{0}\nThen that.", call(arguments));
        check(
            &text,
            &format!("'First this.'find{arguments}.find{arguments}.'Then that.'"),
        );
    }
    check(&format!("\n\n{}\n", call("{}")), "find{}.");
    check(&format!("{}<|im_end|>", call("{}")), "find{}.'<|im_end|>'");
    // A line's end in a string.
    check(
        &call("{\"text\": \"a\nb\t\"}"),
        "find{\"text\": \"a\\nb\\t\"}.",
    );
    // An unknown tool is for the client to refuse.
    check(
        "<tool_call>{\"name\":\"other\",\"arguments\":{}}</tool_call>",
        "other{}.",
    );
}

#[test]
fn calls_in_other_orders_and_forms() {
    for body in [
        r#"{"arguments": {"num": 1}, "name": "find"}"#,
        r#"{"name": "find", "arguments": "{\"num\":1}"}"#,
        r#"{"name": "find", "parameters": {"num":1}}"#,
        r#"{"type": "function", "function": {"name": "find", "arguments": {"num": 1}}}"#,
        "[{\"name\": \"find\", \"arguments\": {\"num\": 1}}]",
        "```json\n{\"name\": \"find\", \"id\": 1, \"arguments\": {\"num\": 1}}\n```",
    ] {
        let text = format!("<tool_call>{body}</tool_call>");
        check(&text, "find{\"num\":1}.");
    }
    check(r#"<tool_call>{"name": "now"}</tool_call>"#, "now{}.");
    check(r#"<tool_call>{"name": "now", "arguments": null}"#, "now{}.");
}

#[test]
fn brackets_and_ends_that_a_model_forgot() {
    let begin = r#"<tool_call>{"name": "find", "arguments": {"near": {"a": [1"#;
    check(
        &format!("{begin}]}}}}\n</tool_call> ok"),
        "find{\"near\": {\"a\": [1]}}.'ok'",
    );
    check(
        &format!("{begin}</tool_call>"),
        "find{\"near\": {\"a\": [1]}}.",
    );
    check(&format!("{begin}]}}}}}}"), "find{\"near\": {\"a\": [1]}}.");
    check(
        &format!("{begin}]}}}}}}\n<tool_call>{{\"name\": \"now\", \"arguments\": {{}}}}"),
        "find{\"near\": {\"a\": [1]}}.now{}.",
    );
    // Cut off.
    check(begin, "find{\"near\": {\"a\": [1.");
    check(
        &format!("{begin}, \"x </tool"),
        "find{\"near\": {\"a\": [1, \"x </tool.",
    );
}

#[test]
fn what_only_looks_like_a_call_is_content() {
    for text in [
        "<tool_call>",
        "<tool_cal",
        "a <tool_call> b",
        "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"find\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"find\" oh}</tool_call> what?",
        "<tool_call>{\"nom\"",
        "<tool_call>{}</tool_call>",
        "a </tool_call> b",
        "x < y <",
        "<function=",
        "<function=now",
        "<function=>",
        "<tool_call>\n<function=no\nw></function>",
        "text \n\n ",
        "{\"name\": \"other\", \"arguments\": {}}",
        "{\"name\": \"now\", \"arguments\": {}",
        "{\"name\": \"now\", \"arguments\": 1} and on",
        "say {\"name\": \"now\", \"arguments\": {}}",
        "```json\n{\"a\": 1}\n```\n",
        "```json\n{\"name\": \"now\"",
        "```\ncode\n```",
        "[1, 2]",
        "{}\n[]\n``",
    ] {
        check(text, &format!("'{text}'"));
    }
}

#[test]
fn calls_without_tags() {
    let call = r#"{"name": "find", "arguments": {"text": "} \" {", "num": 1}}"#;
    let expected = r#"find{"text":"} \" {","num":1}."#;
    check(call, expected);
    check(&format!("```json\n{call}\n```"), expected);
    check(&format!("```\n{call}"), expected);
    check(
        &format!("Sure:\n\n```json\n{call}\n```\nDone."),
        &format!("'Sure:'{expected}'Done.'"),
    );
    check(&format!("{call}\n{call}"), &expected.repeat(2));
    check(&format!("[{call}, {call}]"), &expected.repeat(2));
    check(
        &format!("{call}\n</tool_call>\nDone."),
        &format!("{expected}'Done.'"),
    );
    check(
        &format!("```json\n{call}\n{call}\n```"),
        &expected.repeat(2),
    );
    check(
        &format!("```json\n{call}\n```\n```python\nprint(1)\n```"),
        &format!("{expected}'```python\nprint(1)\n```'"),
    );
    // A tool that takes nothing needs no arguments, and `id` and `type` are no others.
    check("{\"name\": \"now\"}", "now{}.");
    check(
        "{\"name\": \"find\", \"parameters\": {\"num\": 1}, \"id\": \"a\", \"type\": \"function\"}",
        "find{\"num\":1}.",
    );
    // Other JSON has the name of a tool, too.
    for text in [
        "{\"name\": \"find\", \"version\": \"1.0.0\", \"private\": true}",
        "{\"name\": \"now\", \"description\": \"the time\"}",
        "{\"name\": \"find\", \"arguments\": {\"num\": 1}, \"kind\": 2}",
        "{\"name\": \"find\"}",
        "[{\"name\": \"now\"}, {\"name\": \"find\", \"description\": \"d\"}]",
        "{\"name\": \"find\", \"parameters\": {\"type\": \"object\", \"properties\": {\"num\": {\"type\": \"integer\"}}}}",
    ] {
        check(text, &format!("'{text}'"));
        check(
            &format!("Here:\n```json\n{text}\n```\nDone."),
            &format!("'Here:\n```json\n{text}\n```\nDone.'"),
        );
    }
    // Between the tags of the list of tools.
    check(&format!("<tools>\n{call}\n</tools>"), expected);
    check(
        &format!("Sure:\n<tools>{call}\n{call}</tools>\nDone."),
        &format!("'Sure:'{}'Done.'", expected.repeat(2)),
    );
    for text in [
        "<tools>\nfind\n</tools>",
        "<tools>\n{\"name\": \"other\"}",
        "</tools>",
    ] {
        check(text, &format!("'{text}'"));
    }
}

#[test]
fn strict_tools_have_arguments_by_one_name() {
    let mut options = options(ReasoningStart::Tag);
    let calls = options.calls.as_mut().unwrap();
    let strict = |tool: &Tool| Tool {
        strict: true,
        ..tool.clone()
    };
    calls.tools = calls.tools.iter().map(strict).collect();
    let call = "{\"name\": \"find\", \"arguments\": {\"num\": 1}}";
    let other = call.replace("arguments", "parameters");
    let first = "{\"arguments\": {\"num\": 1}, \"name\": \"find\"}";
    let between = "{\"name\": \"find\", \"id\": 1, \"arguments\": {\"num\": 1}}";
    let without = "{\"name\": \"find\"}";
    let tagged = |call: &str| format!("<tool_call>\n{call}\n</tool_call>");
    for (text, expected) in [
        (call.to_owned(), "find{\"num\":1}.".to_owned()),
        (tagged(call), "find{\"num\": 1}.".to_owned()),
        (other.clone(), format!("'{other}'")),
        (tagged(&other), format!("'{}'", tagged(&other))),
        // What the grammar has not seen.
        (tagged(first), format!("'{}'", tagged(first))),
        (tagged(between), format!("'{}'", tagged(between))),
        (tagged(without), format!("'{}'", tagged(without))),
        (tagged("{\"name\": \"now\"}"), "now{}.".to_owned()),
    ] {
        check_with(&options, &text, &expected);
    }
}

#[test]
fn a_tag_that_is_cut_off_behind_a_call_is_no_content() {
    let json = "<tool_call>{\"name\": \"now\", \"arguments\": {}";
    let list = "<tool_call>[{\"name\": \"now\", \"arguments\": {}}]\n";
    let function = "<tool_call><function=find>";
    let value = format!("{function}<parameter=num>1");
    let closed = format!("{value}</parameter>\n");
    for cut in ["<", "</", "</tool_cal"] {
        check(&format!("{json}}}\n{cut}"), "now{}.");
        check(&format!("{json}{cut}"), "now{}.");
        check(&format!("{list}{cut}"), "now{}.");
        let text = format!("{closed}</function>\n{cut}");
        check(&text, "find{\"num\": 1}.");
    }
    for cut in ["<", "<parame", "<parameter=", "<parameter=na", "</func"] {
        check(&format!("{function}{cut}"), "find{.");
        check(&format!("{closed}{cut}"), "find{\"num\": 1.");
    }
    for cut in ["<", "</param", "</parameter"] {
        check(&format!("{value}{cut}"), "find{\"num\": \"1.");
    }
    check(&format!("{json}}}\n< 5"), "now{}.'< 5'");
}

#[test]
fn calls_of_tools_that_are_not_allowed_are_text() {
    let mut options = options(ReasoningStart::Tag);
    options.calls.as_mut().unwrap().only_these = true;
    let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    check_with(&options, call, "now{}.");
    for text in [
        "<tool_call>\n{\"name\": \"gone\", \"arguments\": {}}\n</tool_call>",
        "So:\n\n<tool_call>{\"name\": \"gone\", \"arguments\": {\"a\": [1]}}</tool_call>",
        "<tool_call>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"gone\"}]</tool_call>",
        "<tool_call>\n<function=gone>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "<function=gone></function>",
        "{\"name\": \"gone\", \"arguments\": {}}",
    ] {
        check_with(&options, text, &format!("'{text}'"));
    }
}

#[test]
fn calls_after_the_first_are_left_out_on_request() {
    let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    let mut options = options(ReasoningStart::Tag);
    options.calls.as_mut().unwrap().only_one = true;
    check_with(&options, &format!("{call}\n{call}"), "now{}.");
    let mut parser = AnswerParser::new(options);
    parser.push(&format!("{call}\n{call}"), &[]);
    assert_eq!(parser.num_calls(), 1);
}

#[test]
fn tokens_of_reasoning_are_counted() {
    let count = |reasoning, pieces: &[(&str, &[u32])]| {
        let mut parser = AnswerParser::new(options(reasoning));
        for (text, ids) in pieces {
            parser.push(text, ids);
        }
        parser.finish();
        parser.num_reasoning_tokens()
    };
    let tail: &[(&str, &[u32])] = &[("a", &[7]), ("b", &[8]), ("</think>", &[2]), ("c", &[9])];
    assert_eq!(count(ReasoningStart::Prompt, tail), 2);
    let all = [&[("<think>", &[1][..])], tail].concat();
    assert_eq!(count(ReasoningStart::Tag, &all), 2);
    assert_eq!(count(ReasoningStart::Tag, tail), 0);
    // A stop has cut the tag off.
    assert_eq!(count(ReasoningStart::Prompt, &[("a", &[7]), ("", &[2])]), 1);
    assert_eq!(count(ReasoningStart::None, &all), 0);
    assert_eq!(
        count(ReasoningStart::Prompt, &[("ab</think>c", &[7, 8, 2, 9])]),
        2
    );
    assert_eq!(
        count(
            ReasoningStart::Tag,
            &[("<think>ab</think>c", &[1, 7, 8, 2, 9])]
        ),
        2
    );
    assert_eq!(count(ReasoningStart::Prompt, &[("ab", &[7, 8])]), 2);
    // Without ids of tags.
    let mut parser = AnswerParser::new(AnswerOptions {
        reasoning: ReasoningStart::Prompt,
        ..AnswerOptions::default()
    });
    for piece in ["a", "b", "</think>", "c"] {
        parser.push(piece, &[5]);
    }
    assert_eq!(parser.num_reasoning_tokens(), 2);
}

#[test]
fn arguments_that_are_no_object_are_kept() {
    assert_eq!(arguments_object(""), Map::new());
    assert_eq!(arguments_object("{\"x\": 1}")["x"], 1);
    assert_eq!(arguments_object("{\"x\": ")[INVALID_JSON], "{\"x\": ");
    assert_eq!(arguments_object("[1]")[INVALID_JSON], "[1]");
}
