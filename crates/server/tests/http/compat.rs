//! What clients of OpenAI and vLLM send, in all its forms: it works, or it is refused by name.

use super::*;

/// Posts a conversation; 200 and its prompt, which the scripted template writes as `r:content;`.
fn prompt_of(server: &TestServer, messages: Value) -> String {
    let answer = server.post("/v1/chat/completions", &json!({ "messages": messages }));
    assert_eq!(answer.status, 200, "{messages}: {}", answer.text);
    let prompt = server.last_request().prompt;
    let text = prompt.iter().filter(|&&id| id < 256).map(|&id| id as u8);
    String::from_utf8(text.collect()).unwrap()
}

#[test]
fn turns_without_text_are_shown_without_text() {
    let server = TestServer::start(|_| says("x"));
    let turn = json!({ "role": "assistant", "content": null, "tool_calls": null, "refusal": null, "audio": null });
    let user = json!({ "role": "user", "content": "go on" });
    assert_eq!(
        prompt_of(&server, json!([user, turn, user])),
        "u:go on;a:;u:go on;"
    );
    let refused = json!({ "role": "assistant", "content": null, "refusal": "no" });
    assert_eq!(prompt_of(&server, json!([user, refused])), "u:go on;a:no;");
}

#[test]
fn every_role_is_shown_or_refused() {
    let server = TestServer::start(|_| says("x"));
    let said = |role: &str| json!([{ "role": role, "content": "c" }]);
    assert_eq!(prompt_of(&server, said("developer")), "s:c;");
    assert_eq!(prompt_of(&server, said("tool")), "t:c;");
    assert_eq!(prompt_of(&server, said("function")), "t:c;");
    for role in ["critic", "Assistant", ""] {
        let answer = server.chat(json!({ "messages": said(role) }));
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!("messages[0].role"))
        );
    }
}

#[test]
fn parts_of_every_client_are_text() {
    let server = TestServer::start(|_| says("x"));
    let parts = json!([{ "role": "user", "content": [{ "type": "input_text", "text": "i" }] },
        { "role": "assistant", "content": [{ "type": "output_text", "text": "o" }, { "type": "refusal", "refusal": "r" }] },
        { "role": "user", "content": [{ "type": "thinking", "thinking": "t" }, "s"] }]);
    assert_eq!(prompt_of(&server, parts), "u:i;a:o\nr;u:t\ns;");
}

#[test]
fn what_says_nothing_changes_nothing() {
    let server = TestServer::start(|_| says("x"));
    for extra in [
        json!({ "use_beam_search": false, "guided_json": {}, "structured_outputs": { "choice": [] }, "suffix": null }),
        json!({ "logits_processors": [], "stop": "", "tools": [], "response_format": {}, "chat_template": "", "n": null }),
        json!({ "stream_options": { "include_usage": false }, "priority": 0, "best_of": 1, "allowed_token_ids": [] }),
        json!({ "a_field_of_tomorrow": { "x": 1 }, "user": "me", "store": true, "metadata": { "k": "v" } }),
    ] {
        let answer = server.chat(extra.clone());
        assert_eq!(answer.status, 200, "{extra}: {}", answer.text);
        let request = server.last_request();
        assert_eq!(request.sampling.allowed_token_ids, None);
        assert_eq!(request.prompt.len(), 6);
    }
    let suffix = server.complete(json!({ "suffix": "" }));
    assert_eq!(suffix.status, 200, "{}", suffix.text);
}

#[test]
fn what_asks_for_something_is_refused_by_name() {
    let server = TestServer::start(|_| says("x"));
    for (field, value) in [
        ("use_beam_search", json!(true)),
        ("guided_regex", json!("(a")),
        ("guided_choice", json!("a")),
        ("guided_decoding_backend", json!("outlines")),
        ("logits_processors", json!(["x"])),
        ("priority", json!(5)),
        ("best_of", json!(3)),
        ("functions", json!([{ "name": "f" }])),
        ("function_call", json!({ "name": "f" })),
        ("modalities", json!(["audio"])),
        ("audio", json!({ "voice": "v" })),
        ("kv_transfer_params", json!({ "do_remote_decode": true })),
        ("vllm_xargs", json!({ "x": 1 })),
        ("thinking_token_budget", json!(-2)),
        ("logprob_token_ids", json!([1])),
        ("chat_template", json!("{{ messages }}")),
        ("truncate_prompt_tokens", json!(-2)),
        ("truncate_prompt_tokens", json!(MAX_MODEL_LEN + 1)),
        ("truncation_side", json!("middle")),
        ("prompt_logprobs", json!(21)),
        ("prompt_logprobs", json!(-1)),
        ("reasoning_effort", json!("enormous")),
        ("allowed_token_ids", json!([5000])),
    ] {
        let answer = server.chat(json!({ field: value }));
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["param"].as_str()),
            (400, Some(field)),
            "{value}: {error}"
        );
        assert!(error["message"].as_str().unwrap().contains(field));
    }
    let answer = server.chat(json!({ "documents": [{ "text": "a" }, "b"] }));
    assert_eq!(answer.json()["error"]["param"], "documents[1]");
    for (field, body) in [
        ("suffix", json!({ "suffix": "end" })),
        ("prompt_embeds", json!({ "prompt_embeds": "AAAA" })),
        (
            "packed_top_logprobs",
            json!({ "packed_top_logprobs": true }),
        ),
        ("chat_template_kwargs.tools", json!({})),
    ] {
        let answer = match field.split_once('.') {
            Some(_) => server.chat(json!({ "chat_template_kwargs": { "tools": [] } })),
            None => server.complete(body),
        };
        assert_eq!(answer.json()["error"]["param"], *field);
    }
}

#[test]
fn logprobs_of_a_completion_may_be_a_switch() {
    let server = TestServer::start(|_| says("x"));
    for (given, is_shown) in [(json!(false), false), (json!(0), true), (json!(true), true)] {
        let answer = server.complete(json!({ "logprobs": given }));
        assert_eq!(answer.status, 200, "{given}: {}", answer.text);
        let shown = &answer.json()["choices"][0]["logprobs"];
        assert_eq!(!shown.is_null(), is_shown, "{given}: {shown}");
    }
}

#[test]
fn numbers_and_switches_have_more_than_one_form() {
    let server = TestServer::start(|_| says("x"));
    let body = json!({ "max_tokens": 8.0, "n": "2", "top_k": 40.0, "seed": 7.0, "stop_token_ids": [5.0], "min_p": "0.25",
        "logprobs": 1, "top_logprobs": "2", "ignore_eos": "true" });
    let answer = server.chat(body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["choices"].as_array().unwrap().len(), 2);
    let request = server.last_request();
    assert_eq!(
        (request.max_tokens, &request.stop_token_ids[..]),
        (8, &[5][..])
    );
    let sampling = request.sampling;
    assert_eq!(
        (
            sampling.top_k,
            sampling.seed,
            sampling.min_p,
            sampling.logprobs
        ),
        (40, Some(8), 0.25, Some(2))
    );
    let tokens = server.complete(json!({ "prompt": [104.0, 105.0] }));
    assert_eq!(
        (tokens.status, server.last_request().prompt),
        (200, vec![104, 105])
    );
    assert_eq!(server.chat(json!({ "max_tokens": 8.5 })).status, 400);
}

#[test]
fn bodies_and_paths_have_more_than_one_form() {
    let server = TestServer::start(|_| says("x"));
    let json = ["content-type: application/json; charset=utf-8"];
    let body = "\u{feff}{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}";
    assert_eq!(
        server
            .raw("POST", "/v1/chat/completions/", &json, body)
            .status,
        200
    );
    for path in [
        "/v1/models/",
        "/v1/models/base/",
        "/health/",
        "/metrics/",
        "/version/",
        "/memory/",
        "/ping",
    ] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let headers = [format!("content-type: {kind}")];
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = server.raw("POST", "/v1/chat/completions", &headers, "{}");
        assert_eq!(answer.status, 415, "{kind}");
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains(kind)
        );
    }
}

#[test]
fn a_stop_string_may_be_a_special_token() {
    let tokens = |_: &_| Play::Hang(bytes("a").chain([IM_END, 98, IM_START, 99]).collect());
    let server = TestServer::start(tokens);
    for (extra, text, reason) in [
        (
            json!({ "stop": "<|im_end|>", "ignore_eos": true }),
            "a",
            "<|im_end|>",
        ),
        (
            json!({ "stop": ["zz", "<|im_start|>"], "ignore_eos": true }),
            "ab",
            "<|im_start|>",
        ),
        (
            json!({ "stop": "<|im_end|>", "include_stop_str_in_output": true }),
            "a<|im_end|>",
            "<|im_end|>",
        ),
        (
            json!({ "stop": "<|im_end|>", "skip_special_tokens": false, "ignore_eos": true }),
            "a",
            "<|im_end|>",
        ),
        (
            json!({ "stop": ["<|im_end|>", "<|im_start|>"], "min_tokens": 2 }),
            "ab",
            "<|im_start|>",
        ),
    ] {
        let answer = server.chat(extra.clone()).json();
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["stop_reason"]),
            (&json!(text), &json!(reason)),
            "{extra}"
        );
    }
}

#[test]
fn allowed_tokens_and_bad_words_reach_the_sampler() {
    let server = TestServer::start(|_| says("x"));
    server.chat(json!({ "allowed_token_ids": [65, 66.0], "bad_words": ["ab", " c"] }));
    let sampling = server.last_request().sampling;
    assert_eq!(sampling.allowed_token_ids, Some(vec![65, 66]));
    // A token per byte, so that a space makes a word longer.
    assert_eq!(sampling.bad_words, [vec![97, 98], vec![99]]);
    let empty = server.chat(json!({ "bad_words": [" "] }));
    assert_eq!(empty.json()["error"]["param"], "bad_words[0]");
}

#[test]
fn prompts_are_cut_on_request() {
    let server = TestServer::start(|_| says("x"));
    let prompt = |extra: Value| {
        let answer = server.complete(extra.clone());
        assert_eq!(answer.status, 200, "{extra}: {}", answer.text);
        (server.last_request().prompt, answer.json())
    };
    let long = "0123456789".repeat(50);
    let (cut, answer) =
        prompt(json!({ "prompt": long, "truncate_prompt_tokens": 3, "echo": true }));
    assert_eq!(cut, bytes("789").collect::<Vec<_>>());
    assert_eq!(answer["choices"][0]["text"], "789x");
    let right = json!({ "prompt": long, "truncate_prompt_tokens": 3, "truncation_side": "right" });
    assert_eq!(prompt(right).0, bytes("012").collect::<Vec<_>>());
    let most = json!({ "prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 20 });
    assert_eq!(prompt(most).0.len(), MAX_MODEL_LEN - 20);
    let ids = json!({ "prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 2 });
    assert_eq!(prompt(ids).0, [3, 4]);
    server.chat(json!({ "truncate_prompt_tokens": 2 }));
    assert_eq!(server.last_request().prompt, [u32::from(b';'), IM_START]);
}

#[test]
fn token_ids_are_sent_on_request() {
    let server = TestServer::start(|_| says("né"));
    let chat = server.chat(json!({ "return_token_ids": true })).json();
    let prompt: Vec<u32> = bytes("u:hi;").chain([IM_START]).collect();
    assert_eq!(chat["prompt_token_ids"], json!(prompt));
    assert_eq!(
        chat["choices"][0]["token_ids"],
        json!([110, 0xc3, 0xa9, IM_END])
    );
    let text = server
        .complete(json!({ "return_token_ids": true, "prompt": ["a", "bc"] }))
        .json();
    assert_eq!(text["choices"][1]["prompt_token_ids"], json!([98, 99]));
    assert_eq!(
        text["choices"][0]["token_ids"],
        json!([110, 0xc3, 0xa9, IM_END])
    );
    assert!(
        server
            .chat(json!({}))
            .json()
            .get("prompt_token_ids")
            .is_none()
    );

    let events = server
        .chat(json!({ "return_token_ids": true, "stream": true }))
        .events();
    assert_eq!(events[0]["prompt_token_ids"], json!(prompt));
    assert!(
        events[1..]
            .iter()
            .all(|event| event.get("prompt_token_ids").is_none())
    );
    let ids = |events: &[Value]| -> Vec<u64> {
        let ids = events
            .iter()
            .filter_map(|event| event["choices"][0]["token_ids"].as_array());
        ids.flatten().map(|id| id.as_u64().unwrap()).collect()
    };
    assert_eq!(ids(&events), [110, 0xc3, 0xa9, u64::from(IM_END)]);
    let events = server
        .complete(json!({ "return_token_ids": true, "stream": true }))
        .events();
    assert_eq!(
        events[0]["choices"][0]["prompt_token_ids"],
        json!([104, 105])
    );
    assert!(events[1]["choices"][0].get("prompt_token_ids").is_none());
    assert_eq!(ids(&events), [110, 0xc3, 0xa9, u64::from(IM_END)]);
}

#[test]
fn log_probabilities_of_the_prompt_are_sent_on_request() {
    let server = TestServer::start(|_| says("x"));
    let answer = server
        .complete(json!({ "prompt_logprobs": 1, "logprobs": 0, "prompt": "hi" }))
        .json();
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["prompt_logprobs"],
        json!([null, { "105": { "logprob": -0.25, "rank": 1, "decoded_token": "i" } }])
    );
    assert_eq!(choice["text"], "x");
    assert_eq!(choice["logprobs"]["tokens"], json!(["x", "<|im_end|>"]));
    let chat = server.chat(json!({ "prompt_logprobs": 2, "n": 2 })).json();
    let scores = chat["prompt_logprobs"].as_array().unwrap();
    assert_eq!((scores.len(), &scores[0]), (6, &Value::Null));
    assert_eq!(
        scores[1]["240"],
        json!({ "logprob": -9999.0, "rank": 2, "decoded_token": "bytes:\\xf0" })
    );
    let streamed = server.chat(json!({ "prompt_logprobs": 1, "stream": true }));
    assert_eq!(streamed.json()["error"]["param"], "prompt_logprobs");
}

#[test]
fn an_echo_begins_the_answer_with_the_last_message() {
    let server = TestServer::start(|_| says(" there"));
    let talk =
        json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": "Well" }]);
    let body = json!({ "messages": talk, "continue_final_message": true, "echo": true });
    assert_eq!(
        server.chat(body.clone()).json()["choices"][0]["message"]["content"],
        "Well there"
    );
    let events = server
        .chat(support::merged(body, json!({ "stream": true })))
        .events();
    assert_eq!(streamed_text(&events, 0), "Well there");
    // The last message is the user's, the answer the assistant's.
    let other = server.chat(json!({ "echo": true })).json();
    assert_eq!(other["choices"][0]["message"]["content"], " there");
    // Without a generation prompt the user goes on.
    let body = json!({ "echo": true, "add_generation_prompt": false });
    let message = server.chat(body).json()["choices"][0]["message"].clone();
    assert_eq!(message, json!({ "role": "user", "content": "hi there" }));
}

#[test]
fn templates_of_requests_need_trust() {
    let server = TestServer::start_with(
        &[
            "--trust-request-chat-template",
            "--default-chat-template-kwargs",
            r#"{"extra_word": "D"}"#,
        ],
        |_| says("x"),
    );
    let prompt = |extra: Value| {
        assert_eq!(server.chat(extra).status, 200);
        let prompt = server.last_request().prompt;
        let text = prompt.iter().map(|&id| char::from(id as u8));
        text.filter(|&c| c != '\0').collect::<String>()
    };
    assert_eq!(
        prompt(json!({ "chat_template": "<{{ messages[0].content }}>" })),
        "<hi>"
    );
    assert_eq!(prompt(json!({})), "u:hi;D");
    assert_eq!(
        prompt(json!({ "chat_template_kwargs": { "extra_word": "R" } })),
        "u:hi;R"
    );
    let broken = server.chat(json!({ "chat_template": "{% if %}" }));
    assert_eq!(broken.json()["error"]["param"], "chat_template");
    let thinks = "{{ reasoning_effort }}-{{ enable_thinking }}";
    let body = json!({ "chat_template": thinks, "reasoning_effort": "none" });
    assert_eq!(prompt(body), "none-False");
}

#[test]
fn flags_set_what_requests_leave_open() {
    let flags = [
        "--return-tokens-as-token-ids",
        "--enable-force-include-usage",
        "--max-logprobs",
        "3",
    ];
    let server = TestServer::start_with(&flags, |_| says("a"));
    let answer = server.chat(json!({ "logprobs": true })).json();
    assert_eq!(
        answer["choices"][0]["logprobs"]["content"][0]["token"],
        "token_id:97"
    );
    let events = server.complete(json!({ "stream": true })).events();
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 2);
    let many = server.chat(json!({ "logprobs": true, "top_logprobs": 4 }));
    assert!(
        many.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("--max-logprobs")
    );
}
