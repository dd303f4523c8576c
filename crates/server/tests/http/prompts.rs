//! Forms of prompts, log-probabilities, defaults and templates.

use super::*;

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

/// DeepSeek's and Mistral's `prefix`, Alibaba's `partial`.
#[test]
fn a_last_message_may_say_that_it_goes_on() {
    let server = TestServer::start(|_| says("x"));
    let talk = |fields: Value| {
        let mut last = json!({ "role": "assistant", "content": "Well" });
        let fields = fields.as_object().unwrap().clone();
        last.as_object_mut().unwrap().extend(fields);
        json!([{ "role": "user", "content": "q" }, last])
    };
    let prompt = |body: Value| {
        server.chat(body);
        server.last_request().prompt
    };
    let closed = prompt(json!({ "messages": talk(json!({})) }));
    let open = bytes("u:q;a:Well").collect::<Vec<_>>();
    for on in [
        json!({ "prefix": true }),
        json!({ "partial": true }),
        json!({ "prefix": 1, "partial": false }),
    ] {
        assert_eq!(prompt(json!({ "messages": talk(on) })), open);
    }
    for off in [json!({ "prefix": false }), json!({ "partial": null })] {
        assert_eq!(prompt(json!({ "messages": talk(off) })), closed);
    }
    // Only the last message can go on.
    let mut earlier = talk(json!({ "prefix": true }));
    let next = json!({ "role": "user", "content": "r", "partial": true });
    earlier.as_array_mut().unwrap().push(next);
    let mut plain = talk(json!({}));
    let next = json!({ "role": "user", "content": "r" });
    plain.as_array_mut().unwrap().push(next);
    assert_eq!(
        prompt(json!({ "messages": earlier })),
        prompt(json!({ "messages": plain }))
    );
    for (body, param) in [
        (
            json!({ "messages": talk(json!({ "prefix": "maybe" })) }),
            "messages[1].prefix",
        ),
        (
            json!({ "messages": talk(json!({ "partial": true })), "add_generation_prompt": true }),
            "messages[1].partial",
        ),
    ] {
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["param"], param);
    }
}

#[test]
fn a_template_without_end_is_a_wrong_request() {
    let server = TestServer::start_with(&["--trust-request-chat-template"], |_| says("x"));
    for (template, reason) in [
        (
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "more work",
        ),
        ("{{ 'ab' * 1000000000000 }}", "more work"),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "recursion",
        ),
        (
            "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
            "deep",
        ),
    ] {
        let answer = server.chat(json!({ "chat_template": template }));
        assert_eq!(answer.status, 400, "{template}: {}", answer.text);
        assert!(answer.text.contains(reason), "{}", answer.text);
    }
    let long = "a".repeat(40 << 10);
    let answer = server.chat(json!({ "chat_template": long }));
    assert_eq!(answer.status, 400, "{}", answer.text);
}
