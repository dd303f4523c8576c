//! The HTTP API over a socket, with a scripted engine behind it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::engine::FinishReason;
use support::{IM_END, IM_START, MAX_MODEL_LEN, Play, TestServer, bytes, says};
use ureq::http::Method;

/// The joined text of choice `index` in chat or completion events.
fn streamed_text(events: &[Value], index: u64) -> String {
    let choices = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| {
        choice["text"]
            .as_str()
            .or_else(|| choice["delta"]["content"].as_str())
    })
    .collect()
}

#[test]
fn chat_answers_with_text_and_usage() {
    let server = TestServer::start(|_| says("Grüße 😀"));
    let answer = server.chat(json!({ "model": "alias" }));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    assert_eq!(
        (&body["object"], &body["model"]),
        (&json!("chat.completion"), &json!("alias"))
    );
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        body["choices"],
        json!([{ "index": 0, "message": { "role": "assistant", "content": "Grüße 😀" }, "logprobs": null,
            "finish_reason": "stop", "stop_reason": null }])
    );
    // The prompt is `u:hi;` and the generation prompt; the output is 12 bytes and the end of sequence.
    assert_eq!(
        body["usage"],
        json!({ "prompt_tokens": 6, "total_tokens": 19, "completion_tokens": 13,
            "prompt_tokens_details": { "cached_tokens": 2 } })
    );
    let request = server.last_request();
    assert_eq!(
        request.prompt,
        bytes("u:hi;").chain([IM_START]).collect::<Vec<_>>()
    );
    assert_eq!(
        (request.max_tokens, request.min_tokens),
        (MAX_MODEL_LEN - 6, 0)
    );
    assert_eq!(request.stop_token_ids, [IM_END]);
}

#[test]
fn chat_streams_role_text_finish_and_usage() {
    let server = TestServer::start(|_| says("né"));
    let answer =
        server.chat(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let events = answer.events();
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": "" })
    );
    let contents: Vec<_> = events[1..3]
        .iter()
        .map(|e| e["choices"][0]["delta"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(contents, ["n", "é"]);
    assert_eq!(events[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[3]["choices"][0]["delta"], json!({}));
    assert_eq!(
        (
            &events[4]["choices"],
            &events[4]["usage"]["completion_tokens"]
        ),
        (&json!([]), &json!(4))
    );
    assert_eq!(events.len(), 5);
    assert!(
        events[..4]
            .iter()
            .all(|e| e["usage"].is_null() && e["object"] == "chat.completion.chunk")
    );
    assert!(events.iter().all(|e| e["id"] == events[0]["id"]));

    let plain = server.chat(json!({ "stream": true })).events();
    assert!(plain.iter().all(|e| e.get("usage").is_none()));
    let continuous = json!({ "stream": true, "stream_options": { "include_usage": true, "continuous_usage_stats": true } });
    let events = server.chat(continuous).events();
    let counts: Vec<_> = events
        .iter()
        .map(|e| e["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [0, 1, 3, 4, 4]);
}

#[test]
fn stop_strings_span_tokens_and_characters() {
    // One token per byte, so "€" alone is three tokens; the engine goes on until it is aborted.
    let server = TestServer::start(|_| Play::Hang(bytes("añ€b€STOP and more").collect()));
    for (stop, include, expected, reason) in [
        (json!("€ST"), false, "añ€b", "€ST"),
        (json!(["zzz", "STOP", "€STOP"]), false, "añ€b", "€STOP"),
        (json!("€ST"), true, "añ€b€ST", "€ST"),
        (json!(["b", "€ST"]), false, "añ€", "b"),
        (json!("a"), false, "", "a"),
    ] {
        let body = json!({ "stop": stop, "include_stop_str_in_output": include });
        let answer = server.chat(body.clone()).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], expected, "{body}");
        assert_eq!(
            (&choice["finish_reason"], &choice["stop_reason"]),
            (&json!("stop"), &json!(reason))
        );

        let events = server
            .chat(support::merged(body, json!({ "stream": true })))
            .events();
        assert_eq!(streamed_text(&events, 0), expected);
        assert_eq!(events.last().unwrap()["choices"][0]["stop_reason"], reason);
    }
    server.wait_for_aborts(10);
}

#[test]
fn text_that_only_begins_like_a_stop_string_is_sent() {
    let server = TestServer::start(|_| says("x€STO€STx€S"));
    let body = json!({ "stop": ["€STOP", "xx"], "stream": true });
    assert_eq!(
        streamed_text(&server.chat(body.clone()).events(), 0),
        "x€STO€STx€S"
    );
    let events = server.complete(body).events();
    let texts: Vec<_> = events
        .iter()
        .map(|e| e["choices"][0]["text"].as_str().unwrap())
        .collect();
    // "x" waits for the next character, "€STO" until it cannot become a stop string.
    assert_eq!(texts, ["x", "€STO", "€ST", "x", "€S"]);
}

#[test]
fn an_incomplete_character_at_the_end_is_replaced() {
    let server = TestServer::start(|_| Play::Tokens(vec![0x61, 0xf0, 0x9f], FinishReason::Length));
    let answer = server.chat(json!({ "max_tokens": 3 })).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "a\u{fffd}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(
        streamed_text(&server.chat(json!({ "stream": true })).events(), 0),
        "a\u{fffd}"
    );
}

#[test]
fn min_tokens_holds_stop_strings_off() {
    let server = TestServer::start(|_| Play::Hang(bytes("abcabcabc").collect()));
    for (min_tokens, expected) in [(0, "a"), (2, "a"), (3, "abca"), (4, "abca"), (6, "abcabca")] {
        let body = json!({ "stop": "bc", "min_tokens": min_tokens });
        assert_eq!(
            server.chat(body).json()["choices"][0]["message"]["content"],
            expected,
            "{min_tokens}"
        );
        assert_eq!(server.last_request().min_tokens, min_tokens);
    }
}

#[test]
fn stop_tokens_are_reported_and_left_out() {
    let stopped = |_: &_| Play::Tokens(bytes("ab!").collect(), FinishReason::Stop);
    let server = TestServer::start(stopped);
    let answer = server.chat(json!({ "stop_token_ids": [33] })).json();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["stop_reason"]),
        (&json!("ab"), &json!(33))
    );
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(server.last_request().stop_token_ids, [33, IM_END]);

    let kept =
        json!({ "stop_token_ids": [33], "include_stop_str_in_output": true, "ignore_eos": true });
    assert_eq!(
        server.chat(kept).json()["choices"][0]["message"]["content"],
        "ab!"
    );
    assert_eq!(server.last_request().stop_token_ids, [33]);
}

#[test]
fn special_tokens_are_shown_on_request() {
    let server = TestServer::start(|_| Play::Tokens(vec![97, IM_START, 98], FinishReason::Length));
    assert_eq!(
        server.complete(json!({})).json()["choices"][0]["text"],
        "ab"
    );
    let shown = server
        .complete(json!({ "skip_special_tokens": false }))
        .json();
    assert_eq!(shown["choices"][0]["text"], "a<|im_start|>b");
}

#[test]
fn several_choices_get_their_own_seeds() {
    let server =
        TestServer::start(|request| says(&format!("seed {}", request.sampling.seed.unwrap())));
    let answer = server.chat(json!({ "n": 3, "seed": 7 })).json();
    let texts: Vec<_> = (0..3)
        .map(|i| {
            answer["choices"][i]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(texts, ["seed 7", "seed 8", "seed 9"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    assert_eq!(answer["usage"]["completion_tokens"], 21);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 2);

    let events = server
        .chat(json!({ "n": 3, "seed": -1, "stream": true }))
        .events();
    assert_eq!(streamed_text(&events, 0), format!("seed {}", u64::MAX));
    assert_eq!(streamed_text(&events, 1), "seed 0");
    assert_eq!(streamed_text(&events, 2), "seed 1");
    let finished = events
        .iter()
        .filter(|e| e["choices"][0]["finish_reason"] == "stop")
        .count();
    assert_eq!(finished, 3);
}

#[test]
fn streams_of_choices_are_interleaved() {
    let server = TestServer::start(|request| match request.sampling.seed {
        Some(0) => Play::Hang(bytes("first").collect()),
        _ => says("second"),
    });
    let mut stream = TcpStream::connect(server.address).unwrap();
    let body = json!({ "prompt": "x", "n": 2, "seed": 0, "stream": true }).to_string();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // Choice 1 ends although choice 0 never does.
    let mut text = String::new();
    while !text.contains("\"stop\"") {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "{text}");
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert!(
        text.contains("\"index\":0") && text.contains("\"index\":1"),
        "{text}"
    );
}

#[test]
fn prompts_come_in_four_forms() {
    let server = TestServer::start(|request| says(&format!("{}", request.prompt.len())));
    for (prompt, texts) in [
        (json!("abc"), vec!["3"]),
        (json!([1, 2, 3, 4]), vec!["4"]),
        (json!(["a", "€"]), vec!["1", "3"]),
        (json!([[1], [1, 2]]), vec!["1", "2"]),
    ] {
        let answer = server.complete(json!({ "prompt": prompt })).json();
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(
            choices
                .iter()
                .map(|c| c["text"].as_str().unwrap())
                .collect::<Vec<_>>(),
            texts
        );
        assert_eq!(answer["object"], "text_completion");
    }
    let answer = server
        .complete(json!({ "prompt": ["a", "bcd"], "n": 2 }))
        .json();
    let choices = answer["choices"].as_array().unwrap();
    let shown: Vec<_> = choices
        .iter()
        .map(|c| (c["index"].as_u64().unwrap(), c["text"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, [(0, "1"), (1, "1"), (2, "3"), (3, "3")]);
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    server.post("/v1/completions", &json!({ "prompt": "x" }));
    assert_eq!(server.last_request().max_tokens, 16);
}

#[test]
fn chat_logprobs_give_text_and_bytes() {
    let server = TestServer::start(|_| Play::Tokens(vec![97, 0xc3, 0xa9], FinishReason::Length));
    let answer = server
        .chat(json!({ "logprobs": true, "top_logprobs": 2 }))
        .json();
    let content = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(
        content[0],
        json!({ "token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": [
            { "token": "a", "logprob": -0.25, "bytes": [97] },
            { "token": "\\xf0", "logprob": -9999.0, "bytes": [0xf0] },
        ] })
    );
    assert_eq!(
        (&content[1]["token"], &content[2]["bytes"]),
        (&json!("\\xc3"), &json!([0xa9]))
    );

    let none = server.chat(json!({ "logprobs": true })).json();
    assert_eq!(
        none["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        json!([])
    );
    assert_eq!(server.last_request().sampling.logprobs, Some(0));

    // Streamed, the bytes of "é" come with the character.
    let events = server
        .chat(json!({ "logprobs": true, "stream": true, "return_tokens_as_token_ids": true }))
        .events();
    let lengths: Vec<_> = events
        .iter()
        .map(|e| {
            e["choices"][0]["logprobs"]["content"]
                .as_array()
                .map_or(0, Vec::len)
        })
        .collect();
    assert_eq!(lengths, [0, 1, 2, 0]);
    assert_eq!(
        events[1]["choices"][0]["logprobs"]["content"][0]["token"],
        "token_id:97"
    );
}

#[test]
fn completion_logprobs_have_four_lists() {
    let server =
        TestServer::start(|_| Play::Tokens(vec![97, 0xc3, 0xa9, 98], FinishReason::Length));
    let answer = server.complete(json!({ "logprobs": 0 })).json();
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({ "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "b"], "token_logprobs": [-0.25, -0.25, -0.25, -0.25],
            "top_logprobs": [{ "a": -0.25 }, { "bytes:\\xc3": -0.25 }, { "bytes:\\xa9": -0.25 }, { "b": -0.25 }],
            "text_offset": [0, 1, 2, 2] })
    );
    let events = server
        .complete(json!({ "logprobs": 3, "stream": true }))
        .events();
    let offsets: Vec<Value> = events
        .iter()
        .map(|e| e["choices"][0]["logprobs"]["text_offset"].clone())
        .collect();
    assert_eq!(offsets, [json!([0]), json!([1, 2]), json!([2]), json!([])]);
    assert_eq!(
        events[0]["choices"][0]["logprobs"]["top_logprobs"][0],
        json!({ "a": -0.25, "bytes:\\xf0": -9999.0, "z": -4.0 })
    );
}

#[test]
fn echo_repeats_the_prompt_with_logprobs() {
    let server = TestServer::start(|_| Play::Tokens(vec![98], FinishReason::Length));
    // As lm-eval's local-completions asks.
    let lm_eval = json!({ "prompt": [[104, 105, 33]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": true });
    let answer = server.complete(lm_eval.clone()).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "hi!b");
    assert_eq!(
        choice["logprobs"],
        json!({ "tokens": ["h", "i", "!", "b"], "token_logprobs": [null, -0.25, -0.25, -0.25],
            "top_logprobs": [null, { "i": -0.25 }, { "!": -0.25 }, { "b": -0.25 }], "text_offset": [0, 1, 2, 3] })
    );
    let events = server
        .complete(support::merged(lm_eval, json!({ "stream": true })))
        .events();
    assert_eq!(streamed_text(&events, 0), "hi!b");
    assert_eq!(
        events[0]["choices"][0]["logprobs"]["tokens"],
        json!(["h", "i", "!"])
    );

    let only_prompt = json!({ "max_tokens": 0, "logprobs": 1, "echo": true });
    let answer = server.complete(only_prompt).json();
    assert_eq!(
        answer["choices"][0]["logprobs"]["tokens"],
        json!(["h", "i"])
    );
    assert_eq!(
        (
            &answer["choices"][0]["text"],
            &answer["usage"]["completion_tokens"]
        ),
        (&json!("hi"), &json!(0))
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    for stream in [false, true] {
        let answer = server.complete(json!({ "echo": true, "n": 2, "stream": stream }));
        let body = if stream { Value::Null } else { answer.json() };
        for i in 0..2 {
            let text = if stream {
                streamed_text(&answer.events(), i)
            } else {
                body["choices"][i as usize]["text"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            assert_eq!(text, "hib");
        }
    }
    assert_eq!(server.last_request().prompt_logprobs, None);
}

#[test]
fn sampling_defaults_come_from_the_generation_config() {
    let server = TestServer::start(|_| says("x"));
    server.chat(json!({ "temperature": null }));
    let defaults = server.last_request().sampling;
    assert_eq!(
        (
            defaults.temperature,
            defaults.top_k,
            defaults.top_p,
            defaults.seed
        ),
        (0.7, 20, 1.0, None)
    );
    server.chat(json!({
        "temperature": 0, "top_k": -1, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": -1,
        "frequency_penalty": 2, "logit_bias": { "65": 101, "66": -5 }, "seed": 3, "max_completion_tokens": 9, "max_tokens": 4,
        "cache_salt": "s", "user": "ignored", "an_unknown_field": 1,
    }));
    let request = server.last_request();
    let params = request.sampling;
    assert_eq!(
        (params.temperature, params.top_k, params.top_p, params.min_p),
        (0.0, 0, 0.5, 0.1)
    );
    assert_eq!(
        (
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty
        ),
        (1.5, -1.0, 2.0)
    );
    assert_eq!(
        (params.logit_bias, params.seed),
        (vec![(65, 100.0), (66, -5.0)], Some(3))
    );
    assert_eq!(
        (request.max_tokens, request.cache_salt.as_deref()),
        (9, Some("s"))
    );
}

#[test]
fn templates_get_tools_and_variables() {
    let server = TestServer::start(|_| says("x"));
    server.chat(json!({
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }],
        "tools": [{ "type": "function", "function": { "name": "f" } }],
        "chat_template_kwargs": { "extra_word": "W" }, "add_generation_prompt": false,
    }));
    assert_eq!(
        server.last_request().prompt,
        bytes("u:a\nb;tools=1;W").collect::<Vec<_>>()
    );
    let conversation =
        json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": "Well" }]);
    server.chat(json!({ "messages": conversation, "continue_final_message": true }));
    assert_eq!(
        server.last_request().prompt,
        bytes("u:q;a:Well").collect::<Vec<_>>()
    );
}

#[test]
fn bad_fields_are_400_and_named() {
    let server = TestServer::start(|_| says("x"));
    let message = |message: Value| json!({ "messages": [message] });
    for (body, param) in [
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "temperature": 1e300 }), "temperature"),
        (json!({ "top_p": 0 }), "top_p"),
        (json!({ "top_p": 1.5 }), "top_p"),
        (json!({ "top_k": -2 }), "top_k"),
        (json!({ "top_k": 1.5 }), "top_k"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (json!({ "frequency_penalty": [] }), "frequency_penalty"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias.x"),
        (json!({ "logit_bias": { "99999": 1 } }), "logit_bias.99999"),
        (json!({ "logit_bias": { "1": "a" } }), "logit_bias.1"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 1000 }), "n"),
        (json!({ "seed": "x" }), "seed"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "stop": ["a", ""] }), "stop"),
        (json!({ "stop": 5 }), "stop"),
        (json!({ "stop_token_ids": [1, 9999] }), "stop_token_ids[1]"),
        (json!({ "stop_token_ids": [-1] }), "stop_token_ids[0]"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_tokens": 500 }), "max_tokens"),
        (json!({ "max_tokens": u64::MAX }), "max_tokens"),
        (
            json!({ "max_completion_tokens": "9" }),
            "max_completion_tokens",
        ),
        (json!({ "min_tokens": 9, "max_tokens": 5 }), "min_tokens"),
        (json!({ "stream": "yes" }), "stream"),
        (
            json!({ "stream_options": { "include_usage": true } }),
            "stream_options",
        ),
        (
            json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
            "stream_options.include_usage",
        ),
        (json!({ "logprobs": 5 }), "logprobs"),
        (
            json!({ "logprobs": true, "top_logprobs": 21 }),
            "top_logprobs",
        ),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (
            json!({ "response_format": { "type": "json_object" } }),
            "response_format.type",
        ),
        (
            json!({ "structured_outputs": { "choice": ["a"] } }),
            "structured_outputs",
        ),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "tools": "x" }), "tools"),
        (
            json!({ "chat_template_kwargs": [] }),
            "chat_template_kwargs",
        ),
        (
            json!({ "add_generation_prompt": true, "continue_final_message": true }),
            "continue_final_message",
        ),
        (json!({ "model": 5 }), "model"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": "hi" }), "messages"),
        (json!({ "messages": ["hi"] }), "messages[0]"),
        (message(json!({ "content": "x" })), "messages[0].role"),
        (
            message(json!({ "role": 5, "content": "x" })),
            "messages[0].role",
        ),
        (message(json!({ "role": "user" })), "messages[0].content"),
        (
            message(json!({ "role": "user", "content": null })),
            "messages[0].content",
        ),
        (
            message(json!({ "role": "user", "content": 5 })),
            "messages[0].content",
        ),
        (
            message(json!({ "role": "user", "content": [{ "type": "image_url" }] })),
            "messages[0].content[0].type",
        ),
    ] {
        let answer = server.chat(body.clone());
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["param"].as_str()),
            (400, Some(param)),
            "{body}: {error}"
        );
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().len() > 10);
    }
    for (body, param) in [
        (json!({ "prompt": null }), "prompt"),
        (json!({ "prompt": "" }), "prompt"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "prompt": [[]] }), "prompt"),
        (json!({ "prompt": ["a", 1] }), "prompt"),
        (json!({ "prompt": [1, -1] }), "prompt"),
        (json!({ "prompt": [5, 9999] }), "prompt"),
        (json!({ "prompt": vec!["a"; 1025] }), "prompt"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "logprobs": true }), "logprobs"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "suffix": "x" }), "suffix"),
        (json!({ "echo": 1 }), "echo"),
    ] {
        let answer = server.complete(body.clone());
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (400, Some(param)),
            "{body}: {}",
            answer.text
        );
    }
    let missing = server.post("/v1/completions", &json!({}));
    assert_eq!(
        (missing.status, missing.json()["error"]["param"].as_str()),
        (400, Some("prompt"))
    );
    assert!(server.seen.lock().unwrap().requests.is_empty());
}

#[test]
fn an_oversized_prompt_names_both_lengths() {
    let server = TestServer::start(|_| says("x"));
    for (length, max_tokens) in [(300, 5), (200, 5), (198, 5)] {
        let answer =
            server.complete(json!({ "prompt": "x".repeat(length), "max_tokens": max_tokens }));
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"]),
            (400, &json!("context_length_exceeded"))
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("200") && message.contains(&length.to_string()),
            "{message}"
        );
    }
    assert_eq!(
        server
            .complete(json!({ "prompt": "x".repeat(195), "max_tokens": 5 }))
            .status,
        200
    );
}

#[test]
fn errors_outside_of_fields() {
    let server = TestServer::start(|_| says("x"));
    let post =
        |body: &str| server.send(Method::POST, "/v1/chat/completions", body.to_owned(), None);
    for (body, expected) in [
        ("{\"messages\": [}", "line 1"),
        ("", "not valid JSON"),
        ("[1]", "a list"),
        ("\"x\"", "a string"),
    ] {
        let answer = post(body);
        assert_eq!(answer.status, 400);
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains(expected),
            "{}",
            answer.text
        );
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(post(&deep).status, 400);
    // Refused by its announced length, before the body is sent.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 34000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");

    for (method, path, status) in [
        (Method::GET, "/nothing", 404),
        (Method::POST, "/v1/nothing", 404),
        (Method::GET, "/v1/chat/completions", 405),
        (Method::POST, "/health", 405),
        (Method::GET, "/v1/models/nobody", 404),
    ] {
        let answer = server.send(method, path, String::new(), None);
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.json()["error"]["message"].is_string());
        assert_eq!(status == 405, answer.headers.contains_key("allow"));
    }
    let unknown = server.chat(json!({ "model": "gpt-4" }));
    let error = unknown.json()["error"].clone();
    assert_eq!(
        (unknown.status, &error["code"], &error["param"]),
        (404, &json!("model_not_found"), &json!("model"))
    );
    assert!(error["message"].as_str().unwrap().contains("gpt-4"));
}

#[test]
fn a_key_is_needed_except_for_health_and_metrics() {
    let server = TestServer::start_with(&["--api-key", "secret-1", "secret-2"], |_| says("x"));
    let get =
        |path: &str, key: Option<&str>| server.send(Method::GET, path, String::new(), key).status;
    for path in [
        "/v1/models",
        "/version",
        "/tokenize",
        "/nothing",
        "/v1/chat/completions",
    ] {
        for key in [
            None,
            Some("Bearer wrong"),
            Some("Bearer secret-1x"),
            Some("Bearer "),
            Some("secret-1"),
            Some("Basic secret-1"),
        ] {
            assert_eq!(get(path, key), 401, "{path} {key:?}");
        }
    }
    let refused = server.send(
        Method::POST,
        "/v1/completions",
        json!({ "prompt": "x" }).to_string(),
        Some("Bearer secret"),
    );
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (401, &json!("invalid_api_key"))
    );
    assert_eq!(get("/v1/models", Some("Bearer secret-1")), 200);
    assert_eq!(get("/v1/models", Some("bearer secret-2")), 200);
    assert_eq!((get("/health", None), get("/metrics", None)), (200, 200));
}

#[test]
fn a_client_that_leaves_aborts_its_sequences() {
    let server = TestServer::start(|_| Play::Hang(bytes("some text").collect()));
    for (i, stream) in [true, false].into_iter().enumerate() {
        let mut connection = TcpStream::connect(server.address).unwrap();
        let body = json!({ "prompt": "x", "n": 2, "stream": stream }).to_string();
        write!(
            connection,
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        server.wait_for_requests(2 * i + 2);
        if stream {
            let mut start = [0; 15];
            connection.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 200 OK");
        }
        assert_eq!(server.seen.lock().unwrap().num_aborted, 2 * i);
        drop(connection);
        server.wait_for_aborts(2 * i + 2);
    }
}

#[test]
fn a_full_queue_is_503_with_retry_after() {
    let server = TestServer::start_with(&["--max-num-queued-reqs", "2"], |_| Play::Queue);
    let mut waiting = TcpStream::connect(server.address).unwrap();
    let body = json!({ "prompt": "x" }).to_string();
    write!(
        waiting,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    server.wait_for_requests(1);
    // Of these two, the first fits and is given up again with the second.
    let full = server.complete(json!({ "n": 2 }));
    assert_eq!(
        (full.status, &full.headers["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert!(
        full.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("--max-num-queued-reqs")
    );
    server.wait_for_aborts(1);
    assert_eq!(server.state.engine().num_queued(), 1);
    drop(waiting);
    server.wait_for_aborts(2);
    assert_eq!(server.state.engine().num_queued(), 0);
}

#[test]
fn engine_failures_are_reported() {
    let server = TestServer::start(|request| match request.sampling.seed {
        Some(1) => Play::Tokens(
            bytes("ab").collect(),
            FinishReason::Error("the device is lost".to_owned()),
        ),
        Some(2) => Play::Tokens(Vec::new(), FinishReason::Abort),
        _ => Play::Die(bytes("ab").collect()),
    });
    for (seed, status, message) in [
        (1, 500, "the device is lost"),
        (2, 503, "aborted"),
        (3, 500, "stopped"),
    ] {
        let answer = server.chat(json!({ "seed": seed }));
        assert_eq!(answer.status, status);
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains(message)
        );
        let events = server
            .chat(json!({ "seed": seed, "stream": true }))
            .events();
        assert!(
            events.last().unwrap()["error"]["message"]
                .as_str()
                .unwrap()
                .contains(message)
        );
    }
}

#[test]
fn a_dead_engine_is_unhealthy() {
    let server = TestServer::start(|request| match request.sampling.seed {
        Some(1) => panic!("this test's engine dies here"),
        _ => says("x"),
    });
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.chat(json!({ "seed": 1 })).status, 500);
    let start = Instant::now();
    while server.get("/health").status != 503 {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(server.chat(json!({})).status, 500);
}

#[test]
fn texts_are_tokenized_and_back() {
    let server = TestServer::start(|_| says("x"));
    let tokens = server
        .post(
            "/tokenize",
            &json!({ "prompt": "a€", "return_token_strs": true }),
        )
        .json();
    assert_eq!(
        (&tokens["count"], &tokens["tokens"]),
        (&json!(4), &json!([97, 0xe2, 0x82, 0xac]))
    );
    assert_eq!(
        (&tokens["max_model_len"], &tokens["token_strs"][0]),
        (&json!(200), &json!("a"))
    );
    let chat = json!({ "messages": [{ "role": "user", "content": "q" }], "add_generation_prompt": false, "model": "base" });
    let tokens = server.post("/tokenize", &chat).json();
    assert_eq!(
        (&tokens["tokens"], &tokens["token_strs"]),
        (&json!([117, 58, 113, 59]), &Value::Null)
    );
    let text = server
        .post(
            "/detokenize",
            &json!({ "tokens": [97, 0xe2, 0x82, 0xac, 256] }),
        )
        .json();
    assert_eq!(text, json!({ "prompt": "a€<|im_start|>" }));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        (
            "/tokenize",
            json!({ "prompt": "a", "messages": [] }),
            "prompt",
        ),
        ("/tokenize", json!({ "prompt": 5 }), "prompt"),
        ("/detokenize", json!({ "tokens": [1, 4000] }), "tokens[1]"),
        ("/detokenize", json!({}), "tokens"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (400, Some(param)),
            "{path} {body}"
        );
    }
    assert_eq!(
        server
            .post("/tokenize", &json!({ "prompt": "a", "model": "x" }))
            .status,
        404
    );
}

#[test]
fn adapters_are_loaded_listed_and_used() {
    let server = TestServer::start_with(&["--enable-lora"], |_| says("x"));
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, path: &str| {
        server.post(
            "/v1/load_lora_adapter",
            &json!({ "lora_name": name, "lora_path": path }),
        )
    };
    let missing = load("sql", "/no/such/folder");
    assert_eq!(
        (missing.status, missing.json()["error"]["param"].as_str()),
        (404, Some("lora_path"))
    );
    assert!(missing.text.contains("/no/such/folder"));
    assert_eq!(server.chat(json!({ "model": "sql" })).status, 404);

    let path = folder.path().to_str().unwrap();
    assert_eq!(load("sql", path).status, 200);
    assert_eq!(
        (
            load("sql", path).status,
            load("base", path).status,
            load("", path).status
        ),
        (400, 400, 400)
    );
    let models = server.get("/v1/models").json();
    let ids: Vec<_> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["base", "alias", "sql"]);
    let card = server.get("/v1/models/sql").json();
    assert_eq!(
        (&card["parent"], &card["root"], &card["max_model_len"]),
        (&json!("base"), &json!(path), &json!(200))
    );
    assert_eq!(
        server.chat(json!({ "model": "sql" })).json()["model"],
        "sql"
    );
    assert_eq!(server.last_request().adapter.as_deref(), Some("sql"));
    server.chat(json!({ "model": "alias" }));
    assert_eq!(server.last_request().adapter, None);

    let unload = || {
        server
            .post("/v1/unload_lora_adapter", &json!({ "lora_name": "sql" }))
            .status
    };
    assert_eq!((unload(), unload()), (200, 404));
    assert_eq!(server.chat(json!({ "model": "sql" })).status, 404);
    let bad = server.post("/v1/load_lora_adapter", &json!({ "lora_name": "x" }));
    assert_eq!(
        (bad.status, bad.json()["error"]["param"].as_str()),
        (400, Some("lora_path"))
    );

    let without = TestServer::start(|_| says("x"));
    let answer = without.post(
        "/v1/load_lora_adapter",
        &json!({ "lora_name": "x", "lora_path": path }),
    );
    assert_eq!(answer.status, 400);
    assert!(answer.text.contains("--enable-lora"));
}

#[test]
fn metrics_have_vllms_names() {
    let server = TestServer::start(|_| says("abc"));
    server.chat(json!({}));
    let answer = server.get("/metrics");
    assert!(
        answer.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    for expected in [
        "vllm:num_requests_running{model_name=\"base\"} 0",
        "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{model_name=\"base\"} 0.25",
        "vllm:gpu_cache_usage_perc{",
        "vllm:gpu_prefix_cache_hits_total{",
        "vllm:prefix_cache_queries_total{",
        "vllm:cache_config_info{model_name=\"base\",block_size=\"16\",num_gpu_blocks=\"8\"} 1",
        "vllm:lora_requests_info{",
        "vllm:time_to_first_token_seconds_count{model_name=\"base\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"base\"} 3",
        "vllm:e2e_request_latency_seconds_bucket{model_name=\"base\",le=\"+Inf\"} 1",
        "vllm:num_preemptions_total{",
        "vllm:generation_tokens_total{",
    ] {
        assert!(
            answer.text.contains(expected),
            "{expected}\n{}",
            answer.text
        );
    }
    assert_eq!(
        server.get("/version").json(),
        json!({ "version": env!("CARGO_PKG_VERSION") })
    );
}

#[test]
fn shutdown_lets_running_requests_end() {
    let mut server = TestServer::start(|_| {
        std::thread::sleep(Duration::from_millis(300));
        says("done")
    });
    std::thread::scope(|scope| {
        let address = server.address;
        let running = scope.spawn(move || {
            let body = json!({ "prompt": "x" }).to_string();
            let mut stream = TcpStream::connect(address).unwrap();
            write!(
                stream,
                "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        server.wait_for_submission();
        server.signal_shutdown();
        assert!(running.join().unwrap().contains("\"done\""));
        server.join().unwrap();
        assert!(TcpStream::connect(address).is_err());
    });
}

#[test]
fn shutdown_ends_after_its_timeout() {
    let mut server = TestServer::start_with(&["--shutdown-timeout", "1"], |_| {
        Play::Hang(bytes("x").collect())
    });
    let mut connection = TcpStream::connect(server.address).unwrap();
    let body = json!({ "prompt": "x" }).to_string();
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    server.wait_for_requests(1);
    let start = Instant::now();
    server.signal_shutdown();
    server.join().unwrap();
    assert!((1.0..5.0).contains(&start.elapsed().as_secs_f64()));
}
