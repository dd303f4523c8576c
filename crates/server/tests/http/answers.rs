//! Texts, streams, stops and choices.

use super::*;

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
    assert_eq!(events[3]["choices"][0]["delta"], json!({ "content": "" }));
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
fn counts_of_an_event_are_those_of_its_choice() {
    let server = TestServer::start(|_| says("abc"));
    let options = json!({ "stream": true, "n": 2,
        "stream_options": { "include_usage": true, "continuous_usage_stats": true } });
    let of_two = json!({ "prompt": ["hi", "hello"] });
    for (answer, prompts, all) in [
        (server.chat(options.clone()), 1, 8),
        (server.complete(support::merged(of_two, options)), 2, 16),
    ] {
        let events = answer.events();
        let last = &events[events.len() - 1]["usage"];
        assert_eq!(last["completion_tokens"], all);
        let mut num_ends = 0;
        for event in &events[..events.len() - 1] {
            let (choice, usage) = (&event["choices"][0], &event["usage"]);
            let tokens = usage["completion_tokens"].as_u64().unwrap();
            assert!(tokens <= 4, "{event}");
            if prompts == 2 {
                let expected = [2, 2, 5, 5][choice["index"].as_u64().unwrap() as usize];
                assert_eq!(usage["prompt_tokens"], expected, "{event}");
            }
            if !choice["finish_reason"].is_null() {
                assert_eq!(tokens, 4, "{event}");
                num_ends += 1;
            }
        }
        assert_eq!(num_ends, prompts * 2);
    }
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
        .chat(json!({ "n": 3, "seed": -2, "stream": true }))
        .events();
    assert_eq!(streamed_text(&events, 0), format!("seed {}", u64::MAX - 1));
    assert_eq!(streamed_text(&events, 1), format!("seed {}", u64::MAX));
    assert_eq!(streamed_text(&events, 2), "seed 0");
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
    let mut stream = server.begin(
        "/v1/completions",
        &json!({ "prompt": "x", "n": 2, "seed": 0, "stream": true }),
    );
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
