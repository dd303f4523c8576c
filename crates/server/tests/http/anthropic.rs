//! Anthropic's `/v1/messages`.

use super::*;
use crate::support::{Answer, merged};

/// Claude Code's request, shortened: the fields are those that it sends.
const CLAUDE_CODE: &str = include_str!("../support/claude_code.json");

fn ask(server: &TestServer, extra: Value) -> Answer {
    let base = json!({ "model": "base", "max_tokens": 40, "messages": [{ "role": "user", "content": "hi" }] });
    server.post("/v1/messages", &merged(base, extra))
}

/// Text of the last prompt, without its special tokens.
fn prompt(server: &TestServer) -> String {
    let prompt = server.last_request().prompt;
    let text = prompt.iter().filter(|&&id| id < 256).map(|&id| id as u8);
    String::from_utf8(text.collect()).unwrap()
}

/// Events with their names, which must be their types.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = answer.text.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name, format!("event: {}", data["type"].as_str().unwrap()));
        data
    });
    events.collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    let types = events.iter().map(|event| event["type"].as_str().unwrap());
    types.collect()
}

const CALL: &str =
    "Wait.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"place\": \"Rome\"}}\n</tool_call>";

fn tools() -> Value {
    json!([{ "name": "look", "description": "Look there.", "input_schema": { "type": "object",
        "properties": { "place": { "type": "string" } } } }])
}

#[test]
fn a_message_is_answered() {
    let server = TestServer::start(|_| says("Hello."));
    let answer = ask(
        &server,
        json!({ "system": [{ "type": "text", "text": "Be kind." }], "temperature": 0, "top_k": 5, "top_p": 0.5,
            "stop_sequences": ["END"], "metadata": { "user_id": "u" } }),
    );
    assert_eq!(answer.status, 200, "{}", answer.text);
    let message = answer.json();
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    assert!(answer.headers.contains_key("request-id"));
    let without_id = json!({ "id": message["id"], "type": "message", "role": "assistant",
        "content": [{ "type": "text", "text": "Hello." }], "model": "base", "stop_reason": "end_turn",
        "stop_sequence": null, "usage": { "input_tokens": 15, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2, "output_tokens": 7 } });
    assert_eq!(message, without_id);
    assert_eq!(prompt(&server), "s:Be kind.;u:hi;");
    let request = server.last_request();
    assert_eq!((request.max_tokens, request.sampling.top_k), (40, 5));
    assert_eq!(request.sampling.temperature, 0.0);
}

#[test]
fn a_stream_has_named_events() {
    let server = TestServer::start(|_| says("Hé!"));
    let answer = ask(&server, json!({ "stream": true }));
    let events = events(&answer);
    let kinds = types(&events);
    assert_eq!(kinds[..3], ["message_start", "ping", "content_block_start"]);
    let end = ["content_block_stop", "message_delta", "message_stop"];
    assert_eq!(kinds[kinds.len() - 3..], end);
    let text: String = events
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(text, "Hé!");
    let delta = &events[events.len() - 2];
    assert_eq!(
        delta["delta"],
        json!({ "stop_reason": "end_turn", "stop_sequence": null })
    );
    assert_eq!(delta["usage"]["output_tokens"], 5);
}

#[test]
fn stop_sequences_and_lengths_are_told_apart() {
    let server = TestServer::start(|request| {
        let mut tokens: Vec<u32> = bytes("one END two").collect();
        tokens.truncate(request.max_tokens);
        Play::Tokens(tokens, FinishReason::Length)
    });
    let stopped = |extra: Value| {
        let message = ask(&server, extra).json();
        (
            message["stop_reason"].clone(),
            message["stop_sequence"].clone(),
        )
    };
    assert_eq!(
        stopped(json!({ "stop_sequences": ["END"] })),
        (json!("stop_sequence"), json!("END"))
    );
    assert_eq!(
        stopped(json!({ "max_tokens": 5 })),
        (json!("max_tokens"), Value::Null)
    );
    // More than the context has room for.
    assert_eq!(
        stopped(json!({ "max_tokens": 32_000 })),
        (json!("model_context_window_exceeded"), Value::Null)
    );
    assert_eq!(server.last_request().max_tokens, MAX_MODEL_LEN - 6);
}

#[test]
fn tools_are_called_and_answered() {
    let server = TestServer::start(|_| says(CALL));
    let message = ask(&server, json!({ "tools": tools() })).json();
    let [text, call] = &message["content"].as_array().unwrap()[..] else {
        panic!("{message}")
    };
    assert_eq!(text["text"], "Wait.");
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (
            &json!("tool_use"),
            &json!("look"),
            &json!({ "place": "Rome" })
        )
    );
    assert_eq!(message["stop_reason"], "tool_use");
    assert_eq!(prompt(&server), "u:hi;tools=1;");

    let streamed = events(&ask(&server, json!({ "tools": tools(), "stream": true })));
    let arguments: String = streamed
        .iter()
        .filter_map(|event| event["delta"]["partial_json"].as_str())
        .collect();
    assert_eq!(arguments, "{\"place\": \"Rome\"}");
    let end = &streamed[streamed.len() - 2];
    assert_eq!(end["delta"]["stop_reason"], "tool_use");

    let result = json!({ "type": "tool_result", "tool_use_id": call["id"], "content": "Sunny." });
    let messages = json!([
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": message["content"] },
        { "role": "user", "content": [result] },
    ]);
    let answer = ask(&server, json!({ "messages": messages, "tools": tools() }));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(prompt(&server), "u:hi;a:Wait.;t:Sunny.;tools=1;");
    let none = ask(
        &server,
        json!({ "tools": tools(), "tool_choice": { "type": "none" } }),
    );
    assert_eq!(none.json()["content"][0]["text"], CALL);
}

#[test]
fn choices_of_tools_and_formats_constrain_the_answer() {
    let server = TestServer::start(|_| says(CALL));
    let schema = json!({ "type": "json_schema", "schema": { "type": "object" } });
    for extra in [
        json!({ "tools": tools(), "tool_choice": { "type": "any" } }),
        json!({ "tools": tools(), "tool_choice": { "type": "tool", "name": "look" } }),
        json!({ "output_config": { "format": schema } }),
    ] {
        let answer = ask(&server, extra.clone());
        assert_eq!(answer.status, 200, "{extra}: {}", answer.text);
        assert!(server.last_request().constraint.is_some(), "{extra}");
    }
    ask(&server, json!({ "tools": tools() }));
    assert!(server.last_request().constraint.is_none());
    let wrong = json!({ "format": { "type": "json_schema", "schema": { "type": "thing" } } });
    let wrong = ask(&server, json!({ "output_config": wrong }));
    assert_eq!(wrong.status, 400);
    let message = wrong.json()["error"]["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .contains("`output_config.format.schema`"),
        "{message}"
    );
}

#[test]
fn thoughts_are_blocks_of_their_own() {
    let server = TestServer::start_with(&["--reasoning-parser", "qwen3"], |_| {
        says("<think>\nHm.\n</think>\n\nYes.")
    });
    let thinking = json!({ "thinking": { "type": "adaptive" } });
    let message = ask(&server, thinking.clone()).json();
    let blocks = json!([
        { "type": "thinking", "thinking": "Hm.\n", "signature": "" },
        { "type": "text", "text": "Yes." },
    ]);
    assert_eq!(message["content"], blocks);
    let starts = |fields: Value| {
        let streamed = events(&ask(
            &server,
            support::merged(fields, json!({ "stream": true })),
        ));
        let starts = streamed
            .iter()
            .filter(|event| event["type"] == "content_block_start");
        let kinds = starts.map(|event| event["content_block"]["type"].clone());
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(starts(thinking), ["thinking", "text"]);
    // Clients that do not ask for thoughts take the first block for the text.
    assert_eq!(
        ask(&server, json!({})).json()["content"],
        json!([blocks[1]])
    );
    assert_eq!(starts(json!({})), ["text"]);
}

#[test]
fn tokens_are_counted_as_the_prompt_has_them() {
    let server = TestServer::start(|_| says("x"));
    let body = json!({ "model": "base", "messages": [{ "role": "user", "content": "hi" }], "system": "Be kind.",
        "tools": tools() });
    let counted = server.post("/v1/messages/count_tokens", &body);
    assert_eq!(counted.status, 200, "{}", counted.text);
    let message = ask(&server, body).json();
    let usage = &message["usage"];
    let input = usage["input_tokens"].as_u64().unwrap();
    let cached = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted.json(), json!({ "input_tokens": input + cached }));
    // Tools that the model isn't shown don't count.
    let server = TestServer::start_with(&["--exclude-tools-when-tool-choice-none"], |_| says("x"));
    let count = |tools: Value| {
        let body = json!({ "model": "base", "messages": [{ "role": "user", "content": "hi" }], "tools": tools,
            "tool_choice": { "type": "none" } });
        let counted = server.post("/v1/messages/count_tokens", &body);
        assert_eq!(counted.status, 200, "{}", counted.text);
        counted.json()["input_tokens"].as_u64().unwrap()
    };
    assert_eq!(count(tools()), count(json!([])));
    // A prompt of any length.
    let long =
        json!({ "model": "base", "messages": [{ "role": "user", "content": "x".repeat(1000) }] });
    let counted = server.post("/v1/messages/count_tokens", &long).json();
    assert!(
        counted["input_tokens"].as_u64().unwrap() > 1000,
        "{counted}"
    );
}

#[test]
fn errors_are_anthropics() {
    let server = TestServer::start_with(&["--api-key", "k"], |_| says("x"));
    let send = |method: &str, path: &str, headers: &[&str], body: &str| {
        let headers = [&["content-type: application/json"], headers].concat();
        let answer = server.raw(method, path, &headers, body);
        let error = answer.json();
        assert_eq!(error["type"], "error", "{error}");
        let message = error["error"]["message"].as_str().unwrap().to_owned();
        let kind = error["error"]["type"].as_str().unwrap().to_owned();
        (answer.status, kind, message)
    };
    let body = |extra: Value| {
        let base = json!({ "model": "base", "max_tokens": 4, "messages": [{ "role": "user", "content": "hi" }] });
        merged(base, extra).to_string()
    };
    let key = "x-api-key: k";
    let ok = server.raw(
        "POST",
        "/v1/messages",
        &[
            "content-type: application/json",
            key,
            "anthropic-version: 2023-06-01",
            "anthropic-beta: a,b",
        ],
        &body(json!({})),
    );
    assert_eq!(ok.status, 200, "{}", ok.text);
    for (headers, extra, status, kind, part) in [
        (
            &["x-api-key: no"][..],
            json!({}),
            401,
            "authentication_error",
            "Incorrect",
        ),
        (&[], json!({}), 401, "authentication_error", "x-api-key"),
        (
            &[key],
            json!({ "model": "gpt" }),
            404,
            "not_found_error",
            "`gpt`",
        ),
        (
            &[key],
            json!({ "temperatures": 1 }),
            400,
            "invalid_request_error",
            "`temperature`",
        ),
        (
            &[key],
            json!({ "max_tokens": "x" }),
            400,
            "invalid_request_error",
            "`max_tokens`",
        ),
        (
            &[key],
            json!({ "temperature": -1 }),
            400,
            "invalid_request_error",
            "temperature",
        ),
        (
            &[key],
            json!({ "messages": [{ "role": "user", "content": "x".repeat(300) }] }),
            400,
            "invalid_request_error",
            "prompt is too long",
        ),
        (
            &[key],
            json!({ "tools": tools(), "tool_choice": { "type": "tool", "name": "other" } }),
            400,
            "invalid_request_error",
            "`tool_choice.name`",
        ),
    ] {
        let found = send("POST", "/v1/messages", headers, &body(extra.clone()));
        assert_eq!(
            (found.0, found.1.as_str()),
            (status, kind),
            "{extra}: {}",
            found.2
        );
        assert!(found.2.contains(part), "{}", found.2);
    }
    let broken = send("POST", "/v1/messages", &[key], "{");
    assert_eq!(
        (broken.0, broken.1.as_str()),
        (400, "invalid_request_error")
    );
    let get = send("GET", "/v1/messages", &[key], "");
    assert_eq!((get.0, get.1.as_str()), (405, "invalid_request_error"));
    let batches = send("GET", "/v1/messages/batches", &[key], "");
    assert_eq!((batches.0, batches.1.as_str()), (404, "not_found_error"));
    let count = send(
        "POST",
        "/v1/messages/count_tokens",
        &[key],
        &body(json!({})),
    );
    assert_eq!((count.0, count.1.as_str()), (400, "invalid_request_error"));
}

#[test]
fn a_server_without_room_is_overloaded() {
    let server = TestServer::start_with(&["--max-num-queued-reqs", "1"], |_| Play::Queue);
    let _waiting = server.begin("/v1/completions", &json!({ "prompt": "x" }));
    server.wait_for_requests(1);
    let full = ask(&server, json!({}));
    assert_eq!(
        (full.status, &full.headers["retry-after"]),
        (529, &"1".parse().unwrap())
    );
    assert_eq!(full.json()["error"]["type"], "overloaded_error");
}

#[test]
fn a_stream_that_fails_ends_with_an_error() {
    let failed = || SequenceError::Failed("bad luck".into());
    let server = TestServer::start(move |_| Play::Fails(bytes("so").collect(), failed()));
    let streamed = events(&ask(&server, json!({ "stream": true })));
    let last = streamed.last().unwrap();
    assert_eq!(
        (&last["type"], &last["error"]["type"]),
        (&json!("error"), &json!("api_error"))
    );
    assert!(
        last["error"]["message"]
            .as_str()
            .unwrap()
            .contains("bad luck")
    );
    assert!(!types(&streamed).contains(&"message_stop"));
    let whole = ask(&server, json!({}));
    assert_eq!(
        (whole.status, &whole.json()["error"]["type"]),
        (500, &json!("api_error"))
    );
}

/// As Anthropic's tool runner reads it (`anthropic/lib/threads/_thread_state.py`).
#[test]
fn a_refused_thread_has_the_details_that_clients_go_on_by() {
    let server = TestServer::start(|_| says("x"));
    let answer = ask(&server, json!({ "thread": { "type": "create" } }));
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    let details = json!({ "error_code": "thread_unsupported_request", "unsupported": ["thread"] });
    assert_eq!(error["details"], details);
    assert_eq!(error["type"], "invalid_request_error");
    let other = ask(&server, json!({ "container": "c" })).json();
    assert_eq!(other["error"].get("details"), None);
}

#[test]
fn a_last_turn_of_the_assistant_goes_on() {
    let server = TestServer::start(|_| says("B)"));
    let messages =
        json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": "It is (" }]);
    let message = ask(&server, json!({ "messages": messages })).json();
    assert_eq!(message["content"][0]["text"], "B)");
    assert!(
        prompt(&server).ends_with("a:It is ("),
        "{}",
        prompt(&server)
    );
}

#[test]
fn claude_codes_request_is_answered() {
    let server = TestServer::start_with(&["--served-model-name", "claude"], |_| says(CALL));
    let body: Value = serde_json::from_str(CLAUDE_CODE).unwrap();
    let answer = server.raw(
        "POST",
        "/v1/messages?beta=true",
        &[
            "content-type: application/json",
            "authorization: Bearer x",
            "anthropic-version: 2023-06-01",
            "anthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
            "x-stainless-lang: js",
        ],
        &body.to_string(),
    );
    assert_eq!(answer.status, 200, "{}", answer.text);
    let streamed = events(&answer);
    assert_eq!(types(&streamed).last(), Some(&"message_stop"));
    let prompt = prompt(&server);
    assert!(prompt.starts_with("s:You are Claude Code"), "{prompt}");
    assert!(!prompt.contains("billing"), "{prompt}");
    assert!(prompt.ends_with("tools=2;"), "{prompt}");
}
