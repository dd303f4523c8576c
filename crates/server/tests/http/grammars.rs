//! Structured output: which fields ask for it, and what is refused. The scripted engine follows the constraint it is given.

use super::*;

use server::engine::GenerateRequest;

/// Any text that the request's constraint lets through, another one for each seed.
fn follows(request: &GenerateRequest) -> Play {
    let mut constraint = request.constraint.clone().expect("a constraint");
    let mut random = request.sampling.seed.unwrap_or(0);
    let mut tokens = Vec::new();
    while tokens.len() < request.max_tokens {
        let mask = constraint.mask().unwrap();
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let id = match mask.allows(IM_END) {
            true => IM_END,
            false => mask
                .ids()
                .nth((random >> 33) as usize % mask.num_allowed())
                .unwrap(),
        };
        constraint.consume(id);
        tokens.push(id);
        if constraint.is_finished() {
            return Play::Tokens(tokens, FinishReason::Stop);
        }
    }
    Play::Tokens(tokens, FinishReason::Length)
}

fn person() -> Value {
    json!({ "type": "object", "properties": { "name": { "enum": ["Ada", "Grace"] }, "age": { "type": "integer", "minimum": 10, "maximum": 99 } },
        "required": ["name", "age"], "additionalProperties": false })
}

fn format(schema: Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "person", "strict": true, "schema": schema } })
}

#[track_caller]
fn assert_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(value["name"] == "Ada" || value["name"] == "Grace", "{text}");
    assert!(
        (10..=99).contains(&value["age"].as_i64().unwrap()),
        "{text}"
    );
    assert_eq!(value.as_object().unwrap().len(), 2);
}

#[test]
fn answers_keep_to_a_schema_streamed_or_not() {
    let server = TestServer::start(follows);
    let compact = json!({ "json": person(), "disable_any_whitespace": true });
    for (fields, is_compact) in [
        (json!({ "structured_outputs": compact }), true),
        (
            json!({ "guided_json": person(), "guided_whitespace_pattern": "" , "seed": 3 }),
            false,
        ),
        (
            json!({ "guided_json": person().to_string(), "structured_outputs": {} }),
            false,
        ),
        (json!({ "response_format": format(person()) }), false),
    ] {
        // White space could go on for ever.
        let fields = support::merged(fields, json!({ "max_tokens": 120, "n": 3, "seed": 5 }));
        let answer = server.chat(fields.clone());
        assert_eq!(answer.status, 200, "{}", answer.text);
        let mut num_whole = 0;
        for choice in answer.json()["choices"].as_array().unwrap() {
            let text = choice["message"]["content"].as_str().unwrap();
            if choice["finish_reason"] == "stop" {
                assert_person(text);
                num_whole += 1;
            } else {
                assert_eq!(choice["finish_reason"], "length", "{text}");
                assert!(!is_compact, "{text}");
            }
        }
        assert!(num_whole > 0, "{fields}: {}", answer.text);
        let events = server
            .chat(support::merged(fields.clone(), json!({ "stream": true })))
            .events();
        for index in 0..3 {
            let whole = &answer.json()["choices"][index]["message"]["content"];
            assert_eq!(streamed_text(&events, index as u64), *whole, "{fields}");
        }
        let completion = server.complete(fields.clone());
        assert_eq!(completion.status, 200, "{}", completion.text);
        let whole = &answer.json()["choices"][0]["message"]["content"];
        assert_eq!(completion.json()["choices"][0]["text"], *whole);
    }
}

#[test]
fn each_kind_of_grammar_is_kept_to() {
    let server = TestServer::start(follows);
    let tag = json!({ "type": "structural_tag", "format": { "type": "tag", "begin": "<a>", "content": { "type": "const_string", "value": "x" }, "end": "</a>" } });
    let older = json!({ "type": "structural_tag", "triggers": ["<"], "structures": [{ "begin": "<b>", "schema": { "const": 1 }, "end": "</b>" }] });
    for (fields, expected) in [
        (json!({ "guided_choice": ["yes"] }), "yes"),
        (json!({ "structured_outputs": { "choice": ["ja"] } }), "ja"),
        (json!({ "guided_regex": "^a{3}$" }), "aaa"),
        (json!({ "structured_outputs": { "regex": "b{2}" } }), "bb"),
        (
            json!({ "guided_grammar": "root ::= \"c\" d\nd ::= \"d\"" }),
            "cd",
        ),
        (
            json!({ "structured_outputs": { "grammar": "start: \"e\" \"f\"" } }),
            "ef",
        ),
        (
            json!({ "structured_outputs": { "json": { "const": "g" } } }),
            "\"g\"",
        ),
        (json!({ "response_format": tag }), "<a>x</a>"),
        (json!({ "structural_tag": tag.to_string() }), "<a>x</a>"),
        (
            json!({ "structured_outputs": { "structural_tag": tag } }),
            "<a>x</a>",
        ),
        // Free text may end at once.
        (json!({ "response_format": older }), ""),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": { "enum": [null] } } } }),
            "null",
        ),
    ] {
        let answer = server.chat(fields.clone());
        assert_eq!(answer.status, 200, "{fields}: {}", answer.text);
        let choice = &answer.json()["choices"][0];
        assert_eq!(choice["message"]["content"], expected, "{fields}");
        assert_eq!(
            (&choice["finish_reason"], &choice["stop_reason"]),
            (&json!("stop"), &Value::Null)
        );
        let text = &server.complete(fields.clone()).json()["choices"][0]["text"];
        assert_eq!(text, expected, "{fields}");
    }
    let answer = server
        .chat(json!({ "response_format": { "type": "json_object" }, "max_tokens": 150 }))
        .json();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text}");
}

#[test]
fn free_answers_have_no_constraint() {
    let server = TestServer::start(|_| says("hi"));
    for fields in [
        json!({}),
        json!({ "response_format": { "type": "text" }, "structured_outputs": { "json": null }, "guided_choice": [], "guided_decoding_backend": "auto" }),
        json!({ "response_format": null, "guided_regex": "" }),
    ] {
        assert_eq!(server.chat(fields.clone()).status, 200);
        assert!(server.last_request().constraint.is_none(), "{fields}");
        assert_eq!(server.complete(fields.clone()).status, 200);
        assert!(server.last_request().constraint.is_none(), "{fields}");
    }
}

#[test]
fn what_can_not_be_kept_to_is_refused_by_name() {
    let server = TestServer::start(follows);
    for (fields, param, part) in [
        (json!({ "guided_regex": "(" }), "guided_regex", "regex"),
        (json!({ "guided_regex": 5 }), "guided_regex", "string"),
        (
            json!({ "guided_choice": "yes" }),
            "guided_choice",
            "expected a list",
        ),
        (
            json!({ "guided_grammar": "root ::= x" }),
            "guided_grammar",
            "`x`",
        ),
        (json!({ "guided_json": "{" }), "guided_json", "JSON"),
        (
            json!({ "guided_json": { "type": "array", "uniqueItems": true } }),
            "guided_json",
            "uniqueItems",
        ),
        (
            json!({ "guided_json": { "$ref": "#/$defs/x" } }),
            "guided_json",
            "names nothing",
        ),
        (
            json!({ "response_format": format(json!({ "not": {} })) }),
            "response_format.json_schema.schema",
            "not",
        ),
        (
            json!({ "response_format": { "type": "xml" } }),
            "response_format.type",
            "xml",
        ),
        (
            json!({ "structured_outputs": { "regex": "a", "choice": ["b"] } }),
            "structured_outputs.choice",
            "only one",
        ),
        (
            json!({ "structured_outputs": { "regex": "a" }, "guided_json": {"type": "null"} }),
            "guided_json",
            "Only one",
        ),
        (
            json!({ "structural_tag": { "format": { "type": "qwen_xml_parameter" } } }),
            "structural_tag",
            "qwen_xml_parameter",
        ),
        (
            json!({ "guided_decoding_backend": "xgrammar" }),
            "guided_decoding_backend",
            "xgrammar",
        ),
    ] {
        for answer in [
            server.chat(fields.clone()),
            server.complete(fields.clone()),
            server.chat(support::merged(fields.clone(), json!({ "stream": true }))),
        ] {
            assert_eq!(answer.status, 400, "{fields}: {}", answer.text);
            let error = &answer.json()["error"];
            assert!(
                error["param"].as_str().unwrap().starts_with(param),
                "{fields}: {error}"
            );
            assert!(
                error["message"].as_str().unwrap().contains(part),
                "{fields}: {error}"
            );
        }
    }
    assert!(server.seen.lock().unwrap().requests.is_empty());
}

#[test]
fn a_text_ends_where_its_grammar_does_whatever_ends_are_ignored() {
    let server = TestServer::start(|request: &GenerateRequest| {
        let mut constraint = request.constraint.clone().unwrap();
        let mut tokens = Vec::new();
        while !constraint.is_finished() {
            let mask = constraint.mask().unwrap();
            // Ends as soon as it may.
            let id = if mask.allows(IM_END) {
                IM_END
            } else {
                mask.ids().next().unwrap()
            };
            constraint.consume(id);
            tokens.push(id);
        }
        Play::Tokens(tokens, FinishReason::Stop)
    });
    let ask = |extra: Value| {
        let fields = support::merged(json!({ "guided_regex": "a{1,3}" }), extra);
        server.chat(fields).json()["choices"][0].clone()
    };
    assert_eq!(ask(json!({}))["message"]["content"], "a");
    let ignores = json!({ "ignore_eos": true, "skip_special_tokens": false });
    let choice = ask(ignores);
    assert_eq!(choice["message"]["content"], "aaa");
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &Value::Null)
    );
    assert!(server.last_request().stop_token_ids.is_empty());
}

#[test]
fn a_grammar_that_breaks_off_is_an_error() {
    let failed = SequenceError::Grammar("too many items".to_owned());
    let server = TestServer::start(move |_| Play::Fails(bytes("{").collect(), failed.clone()));
    let fields = json!({ "response_format": { "type": "json_object" } });
    let answer = server.chat(fields.clone());
    assert_eq!(answer.status, 400, "{}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "response_format");
    assert_eq!(
        error["message"],
        "`response_format` cannot be followed any further: too many items"
    );
    let text =
        json!({ "model": "base", "input": "x", "text": { "format": { "type": "json_object" } } });
    let answer = server.post("/v1/responses", &text);
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("text.format")),
        "{}",
        answer.text
    );
    let events = server
        .chat(support::merged(fields, json!({ "stream": true })))
        .events();
    let last = events.last().unwrap();
    assert!(
        last["error"]["message"]
            .as_str()
            .unwrap()
            .contains("too many items"),
        "{last}"
    );
}

#[test]
fn settings_of_the_server_are_those_of_requests() {
    let flags = [
        "--structured-outputs-config",
        r#"{"disable_any_whitespace": true, "disable_additional_properties": true}"#,
    ];
    let server = TestServer::start_with(&flags, follows);
    let schema =
        json!({ "type": "object", "properties": { "a": { "const": 1 } }, "required": ["a"] });
    let answer = server
        .chat(json!({ "response_format": format(schema) }))
        .json();
    assert_eq!(answer["choices"][0]["message"]["content"], "{\"a\":1}");
}

#[test]
fn plain_requests_do_not_wait_for_grammars() {
    const NUM: usize = 100;
    let server = TestServer::start(|_| says("hi"));
    let texts: Vec<String> = (0..600)
        .map(|i| format!("{i}{}", "x".repeat(i % 40)))
        .collect();
    // Made before the first is sent: sending takes less time than compiling then.
    let bodies = (0..NUM).map(|i| {
        let regex = format!("({}|{i}){{1,40}}", texts.join("|"));
        json!({ "model": "base", "prompt": "x", "guided_regex": regex })
    });
    let bodies: Vec<Value> = bodies.collect();
    let begin = |body| server.begin("/v1/completions", body);
    let _begun: Vec<_> = bodies.iter().map(begin).collect();
    assert_eq!(server.complete(json!({ "prompt": "y" })).status, 200);
    let num = server.seen.lock().unwrap().requests.len();
    assert!(num < NUM * 3 / 4, "{num} grammars were compiled before");
}
