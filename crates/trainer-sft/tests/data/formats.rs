//! Formats of files and what is wrong with them.

use super::*;

#[test]
fn every_format_is_recognised_by_its_keys() {
    let cases = [
        (
            chat(&[("user", "Hi"), ("assistant", "Ho")]),
            Format::Messages,
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}),
            Format::ShareGpt,
        ),
        (
            json!({"instruction": "Hi", "input": "", "output": "Ho", "text": "Hi Ho"}),
            Format::Alpaca,
        ),
        (
            json!({"prompt": "Hi", "completion": "Ho", "id": 3}),
            Format::PromptCompletion,
        ),
        (json!({"text": "Hi Ho"}), Format::Text),
    ];
    for (value, format) in cases {
        let record = record(value);
        assert_eq!(record.format, format);
        let rendered = Renderer::new(&tokenizer(), Some(&template(CHATML)), settings())
            .render(&record)
            .unwrap()
            .examples;
        let expected = if format == Format::Text {
            "i Ho<|endoftext|>"
        } else {
            "Ho<|im_end|>"
        };
        assert_eq!(learnt(&rendered[0]), [expected], "{format}");
    }
}

#[test]
fn what_is_proposed_for_data_of_another_kind_is_about_its_own_keys() {
    for (value, expected, other) in [
        (
            json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
            "--columns prompt=prompt,completion=chosen",
            "messages=",
        ),
        (
            json!({"chosen": [{"role": "user", "content": "a"}], "rejected": []}),
            "--columns messages=chosen",
            "prompt=",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": true}),
            "--columns messages=messages",
            "prompt=",
        ),
        (
            json!({"prompt": "a", "completion": "b", "label": true}),
            "--columns prompt=prompt,completion=completion",
            "messages=",
        ),
    ] {
        let refused = parse(value).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
        assert!(!refused.contains(other), "{refused}");
    }
    let columns = Columns::parse(&["prompt=foo".to_owned()]).unwrap();
    let value = json!({"question": "a", "answer": "b"});
    let refused = Record::parse(source(), value, &columns).unwrap_err();
    let expected = "`question`, `answer`; --columns prompt=foo names a field that is not there";
    assert!(refused.to_string().contains(expected), "{refused}");
}

#[test]
fn alpaca_joins_input_and_keeps_history_and_system() {
    let value = json!({"instruction": "Add", "input": "1 2", "output": "3", "system": "Sys", "history": [["a", "b"]]});
    let rendered = render(value, CHATML, settings()).unwrap();
    assert_eq!(
        text(&rendered.examples[0].tokens),
        "<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nAdd\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    );
    assert_eq!(
        learnt(&rendered.examples[0]),
        ["b<|im_end|>", "3<|im_end|>"]
    );
}

#[test]
fn tools_reach_the_template_and_arguments_are_objects() {
    let source = "{% if tools %}{{ tools[0].function.name }};{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}\
        {% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}\
        {% if add_generation_prompt %}assistant:{% endif %}";
    let value = json!({"tools": [{"type": "function", "function": {"name": "look"}}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "content": "sea"}, {"role": "assistant", "content": "Blue"}]});
    let example = render(value, source, settings())
        .unwrap()
        .examples
        .remove(0);
    assert!(
        text(&example.tokens).starts_with("look;user:Hi\nthere<|im_end|>assistant:"),
        "{}",
        text(&example.tokens)
    );
    assert_eq!(learnt(&example), ["{\"a\": 1}<|im_end|>", "Blue<|im_end|>"]);
}

#[test]
fn sharegpt_function_calls_become_tool_calls() {
    let record = record(json!({"system": "S", "conversations": [
        {"from": "human", "value": "Hi"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"},
        {"from": "observation", "value": "42"}, {"from": "gpt", "value": "It is 42"}]}));
    let Content::Chat(chat) = record.content else {
        panic!("not a chat")
    };
    assert_eq!(chat.messages[2]["tool_calls"][0]["function"]["name"], "f");
    let (prompt, answer) = (TurnKind::Prompt, TurnKind::Answer);
    assert_eq!(chat.kinds, [prompt, prompt, answer, prompt, answer]);
}

#[test]
fn blank_lines_bom_and_crlf_are_tolerated() {
    let records = records(
        "t.jsonl",
        "\u{FEFF}{\"text\": \"a\"}\r\n\r\n   \n{\"text\": \"b\"}\r\n",
    )
    .unwrap();
    let places: Vec<Place> = records.iter().map(|record| record.source.place).collect();
    assert_eq!(places, [Place::Line(1), Place::Line(4)]);
}

#[test]
fn json_arrays_have_element_places() {
    let message = error("t.json", "\u{FEFF}\n[{\"text\": \"a\"},\n {\"text\": 3}]");
    assert!(
        message.ends_with("t.json[1]: field `text`: expected text, found the number 3"),
        "{message}"
    );
    let message = error("t.json", "[{\"text\": \"a\"},\n {\"text\": ]");
    assert!(
        message.contains("t.json:2: invalid JSON: expected value"),
        "{message}"
    );
}

#[test]
fn errors_name_line_field_and_what_was_found() {
    let good = "{\"text\": \"a\"}\n";
    for (line, expected) in [
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"asistant\", \"content\": \"b\"}]}",
            "t.jsonl:2: field `messages[1].role`: expected one of system, user, assistant, tool, found \"asistant\"",
        ),
        (
            "{\"messages\": [{\"role\": \"user\"}]}",
            "t.jsonl:2: field `messages[0].content`: expected text, found nothing",
        ),
        ("{\"messages\": []}", "t.jsonl:2: `messages` is empty"),
        (
            "{\"messages\": [3]}",
            "t.jsonl:2: field `messages[0]`: expected an object with `role` and `content`, found the number 3",
        ),
        (
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}",
            "t.jsonl:2: `messages` has no question before the answer of the assistant",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
            "t.jsonl:2: `messages` has no answer of the assistant",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"  \"}]}",
            "every answer in `messages` is empty or is marked as not to be learnt",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
            "field `messages[0].content[0]`: expected a part of type `text`, found a part of type `image_url`",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 2}]}",
            "field `messages[1].weight`: expected 0 or 1, found the number 2",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 0}]}",
            "every answer in `messages` is empty or is marked as not to be learnt",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{\"}}]}]}",
            "field `messages[1].tool_calls[0].function.arguments`: expected a JSON object, found the text \"{\"",
        ),
        (
            "{\"conversations\": [{\"from\": \"humn\", \"value\": \"a\"}]}",
            "field `conversations[0].from`: expected one of system, human, gpt, tool, function_call, found \"humn\"",
        ),
        (
            "{\"conversations\": [{\"from\": \"human\"}]}",
            "field `conversations[0].value`: expected text, found nothing",
        ),
        (
            "{\"instruction\": \"a\"}",
            "field `output`: expected text, found nothing",
        ),
        (
            "{\"instruction\": \"a\", \"input\": {}, \"output\": \"b\"}",
            "field `input`: expected text, found an object",
        ),
        (
            "{\"prompt\": \"a\", \"completion\": null}",
            "`completion` is empty",
        ),
        (
            "{\"prompt\": \"a\", \"completion\": \"\"}",
            "`completion` is empty",
        ),
        (
            "{\"text\": true}",
            "field `text`: expected text, found true",
        ),
        ("{\"message\": [], \"id\": 1}", "t.jsonl:2: no known format"),
        (
            "{\"message\": [], \"id\": 1}",
            "found `message`, `id` (did you mean `messages`?)",
        ),
        ("{}", "found no keys at all"),
        ("[1]", "no known format"),
        (
            "{\"text\": \"a\"",
            "t.jsonl:2: invalid JSON: EOF while parsing an object at column 12",
        ),
        // As Python's json.dumps writes them.
        (
            "{\"text\": \"a\", \"score\": NaN}",
            "t.jsonl:2: invalid JSON: found NaN in field `score`, and JSON has no such number: write null",
        ),
        (
            "{\"text\": \"NaN\", \"scores\": [1, -Infinity]}",
            "invalid JSON: found -Infinity in field `scores[1]`, ",
        ),
    ] {
        assert_error(&format!("{good}{line}\n"), expected);
    }
}

#[test]
fn unusable_files_are_named() {
    assert!(error("t.jsonl", "").contains("t.jsonl: the file is empty"));
    assert!(error("t.jsonl", " \n\n").contains("the file is empty"));
    assert!(error("t.json", "[]").contains("the file is empty"));
    let message = error("t.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xFF\"}\n");
    assert!(
        message
            .contains("t.jsonl:2: expected UTF-8 text, found byte 0xff at position 11 of the line"),
        "{message}"
    );
    let message = error("t.json", b"[\n\"\xC3\"]");
    assert!(
        message
            .contains("t.json:2: expected UTF-8 text, found byte 0xc3 at position 2 of the record"),
        "{message}"
    );
    assert!(error("t.jsonl", b"\xFF\xFE{\0").contains("UTF-16"));
    assert!(error("t.jsonl", "{\n\"text\": \"a\"\n}").contains("has to be on one line"));
    let message = error(
        "t.json",
        "[\n{\"text\": \"a\"},\n{\"text\": \"b\",\n\"x\": Infinity}]",
    );
    assert!(
        message.contains("t.json:4: invalid JSON: found Infinity in field `x`"),
        "{message}"
    );
    let missing = read::read_file(Path::new("no/such.jsonl"))
        .unwrap_err()
        .to_string();
    assert!(missing.starts_with("no/such.jsonl: "), "{missing}");
}
