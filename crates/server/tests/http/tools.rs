//! Calls of tools in chat answers.

use super::*;

pub(crate) fn tools() -> Value {
    let function = |name: &str| {
        json!({ "type": "function", "function": { "name": name, "description": "…",
        "parameters": { "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] } } })
    };
    json!([function("weather"), function("time")])
}

pub(crate) const CALL: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rom é\"}}\n</tool_call>";

/// The calls of a stream as openai-python joins them, after checking the form of each delta.
fn streamed_calls(events: &[Value]) -> Vec<Value> {
    let mut calls: Vec<Value> = Vec::new();
    for event in events {
        let deltas = event["choices"][0]["delta"]["tool_calls"].as_array();
        for delta in deltas.into_iter().flatten() {
            let index = delta["index"].as_u64().unwrap() as usize;
            if delta.get("id").is_some() {
                assert_eq!(index, calls.len());
                assert_eq!(delta["type"], "function");
                assert_eq!(delta["function"]["arguments"], "");
                calls.push(
                    json!({ "id": delta["id"], "type": "function", "function": delta["function"] }),
                );
            } else {
                assert_eq!(delta.as_object().unwrap().len(), 2, "{delta}");
                let arguments = &mut calls[index]["function"]["arguments"];
                let more = delta["function"]["arguments"].as_str().unwrap();
                *arguments = json!(arguments.as_str().unwrap().to_owned() + more);
            }
        }
    }
    calls
}

#[test]
fn a_call_is_no_text() {
    let server = TestServer::start(|_| says(CALL));
    let answer = server.chat(json!({ "tools": tools() })).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(call["type"], "function");
    assert_eq!(
        call["function"],
        json!({ "name": "weather", "arguments": "{\"city\": \"Rom é\"}" })
    );

    let events = server
        .chat(json!({ "tools": tools(), "stream": true }))
        .events();
    let calls = streamed_calls(&events);
    assert_eq!(calls[0]["function"], call["function"]);
    assert_eq!(streamed_text(&events, 0), "");
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!(
        (&last["delta"], &last["finish_reason"]),
        (&json!({}), &json!("tool_calls"))
    );
    // More than one piece of arguments.
    let pieces = events.iter().filter(|event| {
        event["choices"][0]["delta"]["tool_calls"][0]
            .get("id")
            .is_none()
    });
    assert!(pieces.count() > 5);
}

#[test]
fn text_and_calls_come_together() {
    let text = format!(
        "I look.\n\n{CALL}\n<tool_call>{{\"name\":\"time\",\"arguments\":{{}}}}</tool_call>"
    );
    let server = TestServer::start(move |_| says(&text));
    let body = json!({ "tools": tools(), "logprobs": true, "return_token_ids": true });
    let answer = server.chat(body.clone()).json();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "I look.");
    let names: Vec<&Value> = message["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| &call["function"]["name"])
        .collect();
    assert_eq!(names, ["weather", "time"]);
    assert_ne!(
        message["tool_calls"][0]["id"],
        message["tool_calls"][1]["id"]
    );

    let events = server
        .chat(support::merged(body, json!({ "stream": true })))
        .events();
    assert_eq!(streamed_text(&events, 0), "I look.");
    let calls = streamed_calls(&events);
    assert_eq!(
        calls[1]["function"],
        json!({ "name": "time", "arguments": "{}" })
    );
    let count = |events: &[Value], field: fn(&Value) -> &Value| -> usize {
        let lists = events
            .iter()
            .filter_map(|event| field(&event["choices"][0]).as_array());
        lists.map(Vec::len).sum()
    };
    let num = answer["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert_eq!(count(&events, |choice| &choice["token_ids"]), num);
    assert_eq!(count(&events, |choice| &choice["logprobs"]["content"]), num);

    let one = server
        .chat(json!({ "tools": tools(), "parallel_tool_calls": false }))
        .json();
    assert_eq!(
        one["choices"][0]["message"]["tool_calls"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn calls_stay_text_where_none_are_asked_for() {
    let server = TestServer::start(|_| says(CALL));
    for extra in [
        json!({}),
        json!({ "tools": tools(), "tool_choice": "none" }),
        json!({ "tools": [] }),
    ] {
        let answer = server.chat(extra.clone()).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], CALL, "{extra}");
        assert_eq!(choice["finish_reason"], "stop");
        assert!(choice["message"].get("tool_calls").is_none());
    }
    let shown = |server: &TestServer| {
        server.chat(json!({ "tools": tools(), "tool_choice": "none" }));
        let prompt = server.last_request().prompt;
        prompt
            .windows(6)
            .any(|bytes| bytes.iter().copied().eq(support::bytes("tools=")))
    };
    assert!(shown(&server));
    let server = TestServer::start_with(
        &[
            "--exclude-tools-when-tool-choice-none",
            "--no-enable-auto-tool-choice",
        ],
        |_| says(CALL),
    );
    assert!(!shown(&server));
    let answer = server.chat(json!({ "tools": tools() })).json();
    assert_eq!(answer["choices"][0]["message"]["content"], CALL);
}

#[test]
fn the_parsers_of_the_flags() {
    let function = "<function=time>\n<parameter=city>\nRom\n</parameter>\n</function>";
    for (parser, said, called) in [
        ("auto", function, false),
        ("hermes", function, false),
        ("qwen3_coder", function, true),
        ("qwen3_xml", function, true),
        (
            "hermes",
            "```json\n{\"name\": \"time\", \"arguments\": {\"city\": \"Rom\"}}\n```",
            true,
        ),
        (
            "hermes",
            "```json\n{\"name\": \"joke\", \"arguments\": {\"city\": \"Rom\"}}\n```",
            false,
        ),
    ] {
        let server = TestServer::start_with(
            &["--enable-auto-tool-choice", "--tool-call-parser", parser],
            move |_| says(said),
        );
        let answer = server.chat(json!({ "tools": tools() })).json();
        let message = &answer["choices"][0]["message"];
        if called {
            let arguments: Value = serde_json::from_str(
                message["tool_calls"][0]["function"]["arguments"]
                    .as_str()
                    .unwrap(),
            )
            .unwrap();
            assert_eq!(arguments, json!({ "city": "Rom" }), "{parser}");
        } else {
            assert_eq!(message["content"], said, "{parser}");
        }
    }
    for flags in [
        ["server", "--tool-call-parser", "mistral"],
        ["server", "--reasoning-parser", "glm45"],
    ] {
        let error = server::Config::from_command_line(flags)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(flags[2]) && error.contains("possible values"),
            "{error}"
        );
    }
}

#[test]
fn a_call_may_be_cut_off() {
    let cut = &CALL[..CALL.len() - 20];
    let tokens: Vec<u32> = bytes(cut).collect();
    let server = TestServer::start(move |_| Play::Tokens(tokens.clone(), FinishReason::Length));
    let answer = server.chat(json!({ "tools": tools() })).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["arguments"],
        "{\"city\": \"Ro"
    );
}

#[test]
fn choices_and_tools_are_checked() {
    let server = TestServer::start(|_| says("x"));
    let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
    for (tools, choice, param) in [
        (
            json!([{ "type": "retrieval" }]),
            json!("auto"),
            "tools[0].type",
        ),
        (
            json!([{ "type": "function" }]),
            json!("auto"),
            "tools[0].function",
        ),
        (tools(), json!("sometimes"), "tool_choice"),
        (tools(), named("other"), "tool_choice.function.name"),
        (json!([]), json!("required"), "tool_choice"),
    ] {
        let answer = server.chat(json!({ "tools": tools, "tool_choice": choice }));
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["param"].as_str()),
            (400, Some(param)),
            "{error}"
        );
    }
}

#[test]
fn calls_that_are_sent_back_are_checked() {
    let server = TestServer::start(|_| says("x"));
    let call = |function: Value| json!([{ "id": "1", "type": "function", "function": function }]);
    let status = |calls: Value| {
        let messages = json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": null, "tool_calls": calls },
            { "role": "tool", "tool_call_id": "1", "content": "42" }]);
        let answer = server.chat(json!({ "messages": messages, "tools": tools() }));
        let param = answer.json()["error"]["param"].as_str().map(str::to_owned);
        (answer.status, param)
    };
    for arguments in [
        json!("{\"city\": \"Rom\"}"),
        json!({ "city": "Rom" }),
        json!(""),
        json!(null),
    ] {
        assert_eq!(
            status(call(json!({ "name": "weather", "arguments": arguments }))),
            (200, None)
        );
    }
    let at = |field: &str| (400, Some(format!("messages[1].tool_calls{field}")));
    assert_eq!(status(json!("weather")), at(""));
    assert_eq!(status(json!(["weather"])), at("[0]"));
    assert_eq!(status(json!([{}])), at("[0].function"));
    assert_eq!(
        status(json!([{ "type": "custom", "function": {} }])),
        at("[0].type")
    );
    assert_eq!(
        status(call(json!({ "arguments": "{}" }))),
        at("[0].function.name")
    );
    assert_eq!(
        status(call(json!({ "name": "f", "arguments": [1] }))),
        at("[0].function.arguments")
    );
}

/// What the server answers with can be sent back: a turn that is only a call, and the call's result.
#[test]
fn a_call_and_its_result_go_back() {
    let server = TestServer::start(|_| says("x"));
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "weather", "arguments": "{}" } });
    for content in [json!(null), json!("")] {
        let messages = json!([
            { "role": "user", "content": "Weather?" },
            { "role": "assistant", "content": content, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "c1", "content": "sunny" },
        ]);
        let answer = server.chat(json!({ "messages": messages, "tools": tools() }));
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
}
