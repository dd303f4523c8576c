//! What of a turn, or beside it, would be changed or left out in silence.

use super::*;

/// The refusal of one record by the bundled model, or by one whose template writes tool calls.
#[track_caller]
fn refused(record: &Value, flags: &[&str]) -> String {
    let said = preview(std::slice::from_ref(record), flags);
    assert!(!said.is_success(), "{record}: {}", said.out);
    said.err
}

fn answer(message: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "go"}, message]})
}

#[test]
fn what_a_turn_would_lose_is_named() {
    let tools = with_tools();
    let model = ["--model", text_of(tools.path())];
    let part = |part: Value| answer(json!({"role": "assistant", "content": [part]}));
    let said =
        |key: &str, value: Value| answer(json!({"role": "assistant", "content": "ok", key: value}));
    let call =
        |call: Value| answer(json!({"role": "assistant", "content": "", "tool_calls": [call]}));
    let wide = "123456789012345678901234567890";
    let in_text =
        call(json!({"function": {"name": "look", "arguments": format!("{{\"n\": {wide}}}")}}));
    let mut thinks = call(json!({"function": {"name": "look", "arguments": {}}}));
    thinks["messages"][1]["reasoning_content"] = "I look.".into();
    let mut two = said("reasoning", json!("deep"));
    two["messages"][1]["thinking"] = "other".into();
    let function = json!([{"type": "function", "function": {"name": "look"}}]);
    let rendered = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n";
    for (record, expected) in [
        (
            part(json!({"type": "text", "text": "x", "weight": 0})),
            "field `messages[1].content[0].weight`: expected no mark on a part of a turn",
        ),
        (
            part(json!({"type": "text", "text": "x", "image_url": "a.png"})),
            "field `messages[1].content[0].image_url`: expected no pictures or sounds",
        ),
        (
            said("reasoning_content", json!(["I look."])),
            "field `messages[1].reasoning_content`: expected text, found a list",
        ),
        (
            two,
            "field `messages[1].thinking`: expected no second reasoning",
        ),
        (
            call(json!({"function": {"name": "look"}, "arguments": {"n": 1}})),
            "field `messages[1].tool_calls[0].arguments`: expected nothing but",
        ),
        (
            in_text,
            "field `messages[1].tool_calls[0].function.arguments`: expected whole numbers of at most 64 bits",
        ),
        (
            thinks,
            "field `messages[1]`: the model's chat template does not write reasoning before tool calls",
        ),
        (
            json!({"prompt": rendered, "completion": "x", "tools": function}),
            "field `tools`: expected none, since the prompt has been rendered already",
        ),
    ] {
        let error = refused(&record, &model);
        assert!(error.contains(expected), "{record}: {error}");
    }
    let null = part(json!({"type": "text", "text": null, "value": "y"}));
    assert_eq!(learnt(&preview(&[null], &model)), ["y<|im_end|>"]);
}

/// Such a number is another one once it is parsed.
#[test]
fn whole_numbers_of_more_than_64_bits_are_refused_where_they_are_learnt() {
    let tools = with_tools();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.jsonl");
    let read = |arguments: &str, id: &str| {
        let record = format!(
            "{{\"id\": {id}, \"messages\": [{{\"role\": \"user\", \"content\": \"go\"}}, {{\"role\": \"assistant\", \
             \"content\": \"\", \"tool_calls\": [{{\"function\": {{\"name\": \"look\", \"arguments\": {arguments}}}}}]}}]}}\n"
        );
        fs::write(&path, record).unwrap();
        program(&[
            "--data",
            text_of(&path),
            "--preview",
            "--model",
            text_of(tools.path()),
        ])
    };
    let wide = "123456789012345678901234567890";
    let said = read(&format!("{{\"n\": {wide}}}"), "1");
    let expected = format!(
        "field `messages[1].tool_calls[0].function.arguments.n`: expected whole numbers of at most 64 bits; write a longer \
         one as a text, found the number {wide}"
    );
    assert!(
        !said.is_success() && said.err.contains(&expected),
        "{}",
        said.err
    );
    // Nobody reads it.
    let record = format!(
        r#"{{"prompt": "Hi?", "completion": "Yes.", "meta": {{"tools": [{{"id": {wide}}}]}}}}"#
    );
    fs::write(&path, record).unwrap();
    let said = program(&["--data", text_of(&path), "--preview"]);
    assert!(said.is_success(), "{}", said.err);
    let said = read("{\"n\": 18446744073709551615, \"f\": 1e22}", wide);
    assert!(
        learnt(&said)[0]
            .replace(['|', '·'], "")
            .contains("18446744073709551615"),
        "{}",
        said.out
    );
}

/// What a tokenizer puts after every text is none of an answer's beginning, and ends a text once.
#[test]
fn an_end_that_the_tokenizer_adds_is_written_once() {
    let folder = TempDir::new().unwrap();
    copy_model(folder.path());
    let end = "<|endoftext|>";
    edit(folder.path(), "tokenizer.json", |file| {
        file["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}}});
    });
    edit(folder.path(), "tokenizer_config.json", |file| {
        file.remove("chat_template");
        file.insert("eos_token".into(), end.into());
    });
    for name in ["config.json", "generation_config.json"] {
        edit(folder.path(), name, |file| {
            file.insert("eos_token_id".into(), 0.into());
        });
    }
    let records = [
        json!({"text": "Once upon"}),
        json!({"prompt": "Once", "completion": " upon"}),
        json!({"text": "Once upon<|endoftext|>"}),
    ];
    let said = preview(&records, &["--model", text_of(folder.path())]);
    assert!(said.is_success(), "{}", said.err);
    assert_eq!(said.out.matches(end).count(), 3, "{}", said.out);
}

/// Functions without the wrapper of tools get it, in a list and as JSON.
#[test]
fn bare_functions_are_tools() {
    let tools = with_tools();
    let model = ["--model", text_of(tools.path())];
    let bare = json!({"name": "look", "parameters": {"type": "object", "properties": {}}});
    let whole = json!({"type": "function", "function": bare});
    let mut record = messages(&[("user", "Hi?"), ("assistant", "Yes.")]);
    let mut with = |key: &str, tools: Value| {
        let fields = record.as_object_mut().unwrap();
        fields.remove("tools");
        fields.remove("functions");
        record[key] = tools;
        let said = preview(std::slice::from_ref(&record), &model);
        assert!(said.is_success(), "{}", said.err);
        // Not the name of the file.
        let lines = said.out.lines().filter(|line| !line.starts_with("── "));
        lines.collect::<String>()
    };
    let expected = with("tools", json!([whole]));
    for (key, tools) in [
        ("tools", json!([bare])),
        ("tools", json!(json!([bare]).to_string())),
        ("tools", json!([bare.to_string()])),
        ("functions", json!([bare])),
        ("functions", json!([whole])),
    ] {
        assert_eq!(with(key, tools.clone()), expected, "{key}: {tools}");
    }
}

/// The model says them in one turn, with one end.
#[test]
fn calls_in_turns_of_their_own_belong_to_the_turn_before_them() {
    let tools = with_tools();
    let model = ["--model", text_of(tools.path())];
    let call = |on: bool| format!("{{\"name\": \"light\", \"arguments\": {{\"on\": {on}}}}}");
    let (on, off) = (call(true), call(false));
    let written = format!("<tool_call>⏎{on}⏎</tool_call>⏎<tool_call>⏎{off}⏎</tool_call><|im_end|>");
    let swift = messages(&[("user", "Go"), ("tool_call", &on), ("tool_call", &off)]);
    let gpt = [
        ("human", "Go"),
        ("gpt", "Look."),
        ("function_call", &on),
        ("function_call", &off),
    ];
    let said = preview(&[swift, sharegpt(&gpt)], &model);
    assert_eq!(learnt(&said), [written.clone(), format!("Look.⏎{written}")]);
    assert_eq!(said.out.matches("<|im_end|>").count(), 6, "{}", said.out);
    // One that is not learnt stays apart from one that is.
    let marked = json!({"messages": [{"role": "user", "content": "Go"},
        {"role": "tool_call", "content": on, "loss": false}, {"role": "tool_call", "content": off}]});
    let said = preview(&[marked], &model);
    let expected = format!("<tool_call>⏎{off}⏎</tool_call><|im_end|>");
    assert_eq!(learnt(&said), [expected]);
    // A prompt ends before the whole of an answer.
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.jsonl");
    fs::write(&path, format!("{}\n", sharegpt(&gpt))).unwrap();
    let flags = ["--method", "grpo", "--reward", "json"];
    let said = program(&[&["check", text_of(&path)], &model[..], &flags].concat());
    assert!(
        said.is_success() && !said.out.contains("Look"),
        "{}",
        said.err
    );
}

/// As in hermes-function-calling: the template writes the same around each result.
#[test]
fn results_of_tools_are_wrapped_once() {
    let tools = with_tools();
    let model = ["--model", text_of(tools.path())];
    let of = |results: &[&str]| {
        let mut turns = vec![
            ("human", "Weather?"),
            ("function_call", "{\"name\": \"look\", \"arguments\": {}}"),
        ];
        turns.extend(results.iter().map(|result| ("tool", *result)));
        turns.push(("gpt", "Sun."));
        let said = preview(&[sharegpt(&turns)], &model);
        assert!(said.is_success(), "{}", said.err);
        let lines = said.out.lines().filter(|line| !line.starts_with("── "));
        lines.collect::<String>()
    };
    let expected = of(&["{}"]);
    assert_eq!(of(&["<tool_response>\n{}\n</tool_response>"]), expected);
    let expected = of(&["{}", "[]"]);
    let both = "<tool_response>\n{}\n</tool_response>\n<tool_response>\n[]\n</tool_response>";
    assert_eq!(of(&[both]), expected);
}
