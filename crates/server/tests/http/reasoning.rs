//! Reasoning in chat answers.

use model_qwen::ThinkingBudget;

use super::*;

const R1: [&str; 2] = ["--reasoning-parser", "deepseek_r1"];

/// The joined values of a field of the deltas.
fn joined(events: &[Value], field: &str) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    choices
        .filter_map(|choice| choice["delta"][field].as_str())
        .collect()
}

#[test]
fn reasoning_has_two_names_and_is_counted() {
    let server = TestServer::start_with(&R1, |_| says("I see.\n</think>\n\nYes é."));
    let answer = server.chat(json!({ "return_token_ids": true })).json();
    assert_eq!(
        answer["choices"][0]["message"],
        json!({ "role": "assistant", "content": "\n\nYes é.", "reasoning": "I see.\n", "reasoning_content": "I see.\n" })
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    // A token per byte: the tags' bytes that could be something else count as reasoning until they are tags.
    let usage = &answer["usage"];
    let tokens = usage["completion_tokens_details"]["reasoning_tokens"].as_u64();
    assert_eq!(
        (tokens, &usage["completion_tokens"]),
        (Some(14), &json!(25))
    );
    let ids = answer["choices"][0]["token_ids"].as_array().unwrap();
    assert_eq!(ids.len(), 25);

    let body = json!({ "stream": true, "return_token_ids": true, "logprobs": true,
        "stream_options": { "include_usage": true } });
    let events = server.chat(body).events();
    for field in ["reasoning", "reasoning_content"] {
        assert_eq!(joined(&events, field), "I see.\n");
    }
    assert_eq!(joined(&events, "content"), "\n\nYes é.");
    assert_eq!(events.last().unwrap()["usage"], *usage);
    let count = |field: fn(&Value) -> &Value| -> usize {
        let choices = events.iter().filter_map(|event| event["choices"].get(0));
        let lists = choices.filter_map(|choice| field(choice).as_array());
        lists.map(Vec::len).sum()
    };
    assert_eq!(count(|choice| &choice["token_ids"]), 25);
    assert_eq!(count(|choice| &choice["logprobs"]["content"]), 25);
    // Content and reasoning are never in one event.
    for event in &events[1..events.len() - 1] {
        let delta = event["choices"][0]["delta"].as_object().unwrap();
        assert!(!(delta.contains_key("content") && delta.contains_key("reasoning")));
    }
}

#[test]
fn reasoning_may_be_left_out() {
    let server = TestServer::start_with(&R1, |_| says("Hm</think>Yes"));
    let body = json!({ "include_reasoning": false, "logprobs": true, "return_token_ids": true });
    let answer = server.chat(body.clone()).json();
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({ "role": "assistant", "content": "Yes" })
    );
    assert_eq!(
        (&choice["logprobs"], choice.get("token_ids")),
        (&Value::Null, None)
    );
    let events = server
        .chat(support::merged(body, json!({ "stream": true })))
        .events();
    assert_eq!(joined(&events, "reasoning"), "");
    assert_eq!(joined(&events, "content"), "Yes");
    assert!(
        events
            .iter()
            .all(|event| event["choices"][0]["logprobs"].is_null())
    );
}

#[test]
fn an_answer_may_end_while_it_reasons() {
    let server = TestServer::start_with(&R1, |_| {
        Play::Tokens(bytes("Hm, so </th").collect(), FinishReason::Length)
    });
    let answer = server.chat(json!({ "max_tokens": 11 })).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["reasoning"], "Hm, so </th");
    assert_eq!(choice["finish_reason"], "length");
    let events = server
        .chat(json!({ "max_tokens": 11, "stream": true }))
        .events();
    assert_eq!(joined(&events, "reasoning"), "Hm, so </th");
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    // A stop string counts in reasoning, too.
    let stopped = server.chat(json!({ "stop": "so" })).json();
    assert_eq!(stopped["choices"][0]["message"]["reasoning"], "Hm, ");
    assert_eq!(stopped["choices"][0]["stop_reason"], "so");
}

#[test]
fn the_template_decides_unless_a_flag_does() {
    let thinks = json!({ "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}<|im_start|><think>\n" });
    let hybrid = |on: bool| {
        json!({ "chat_template_kwargs": { "enable_thinking": on },
            "chat_template": "{{ messages[0].content }}{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}" })
    };
    for (flags, said, extra, reasoning, content) in [
        (
            &[][..],
            "a</think>b",
            thinks.clone(),
            json!("a"),
            json!("b"),
        ),
        (
            &[],
            "a</think>b",
            json!({}),
            Value::Null,
            json!("a</think>b"),
        ),
        (
            &[],
            "<think>a</think>b",
            hybrid(true),
            json!("a"),
            json!("b"),
        ),
        (
            &[],
            "a</think>b",
            hybrid(false),
            Value::Null,
            json!("a</think>b"),
        ),
        (&[], "plain", hybrid(true), Value::Null, json!("plain")),
        (
            &["--reasoning-parser", "none"],
            "a</think>b",
            thinks.clone(),
            Value::Null,
            json!("a</think>b"),
        ),
        (
            &["--reasoning-parser=qwen3"],
            "<think>a</think>b",
            json!({}),
            json!("a"),
            json!("b"),
        ),
        (
            &["--reasoning_parser=deepseek_r1"],
            "<think>a</think>b",
            json!({}),
            json!("a"),
            json!("b"),
        ),
    ] {
        let flags = [&["--trust-request-chat-template"], flags].concat();
        let server = TestServer::start_with(&flags, move |_| says(said));
        let answer = server.chat(extra.clone()).json();
        let message = &answer["choices"][0]["message"];
        assert_eq!(
            (&message["reasoning"], &message["content"]),
            (&reasoning, &content),
            "{flags:?} {extra} {said}"
        );
    }
}

#[test]
fn a_continued_answer_may_be_within_its_reasoning() {
    let server = TestServer::start_with(&["--reasoning-parser", "qwen3"], |_| says("c</think>d"));
    let ask = |begun: &str| {
        let messages =
            json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": begun }]);
        let answer = server
            .chat(json!({ "messages": messages, "continue_final_message": true }))
            .json();
        answer["choices"][0]["message"].clone()
    };
    assert_eq!(ask("<think>ab")["reasoning"], "c");
    assert_eq!(ask("<think>a</think>b")["content"], "c</think>d");
}

#[test]
fn reasoning_goes_back_to_the_template() {
    let server = TestServer::start_with(&["--trust-request-chat-template"], |_| says("x"));
    let template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }};{% endfor %}";
    for field in ["reasoning", "reasoning_content"] {
        let messages = json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": "a", field: "r" }, { "role": "user", "content": "p" }]);
        let answer = server.chat(json!({ "messages": messages, "chat_template": template }));
        assert_eq!(answer.status, 200, "{}", answer.text);
        let prompt: String = server
            .last_request()
            .prompt
            .iter()
            .map(|&id| char::from(id as u8))
            .collect();
        assert_eq!(prompt, "|q;r|a;|p;");
    }
    let messages = json!([{ "role": "assistant", "content": "a", "reasoning": 5 }, { "role": "user", "content": "p" }]);
    let answer = server.chat(json!({ "messages": messages }));
    assert_eq!(answer.json()["error"]["param"], "messages[0].reasoning");
}

#[test]
fn a_budget_needs_tokens_that_end_reasoning() {
    let server = TestServer::start_with(&R1, |_| says("x"));
    for (budget, status) in [
        (json!(5), 400),
        (json!(-2), 400),
        (json!(-1), 200),
        (json!(null), 200),
        (json!("many"), 400),
    ] {
        let answer = server.chat(json!({ "thinking_token_budget": budget }));
        assert_eq!(answer.status, status, "{budget}: {}", answer.text);
        if status == 400 {
            assert_eq!(answer.json()["error"]["param"], "thinking_token_budget");
        }
    }
    let plain = TestServer::start(|_| says("x"));
    let answer = plain.chat(json!({ "thinking_token_budget": 5 }));
    assert!(
        answer.text.contains("--reasoning-parser"),
        "{}",
        answer.text
    );
}

#[test]
fn a_budget_reaches_the_engine() {
    let server = TestServer::start_with_tokens(&R1, &["<think>", "</think>"], |_| says("x"));
    server.chat(json!({ "thinking_token_budget": 5 }));
    let budget = ThinkingBudget {
        num_tokens: 5,
        begin: None,
        end: 259,
    };
    let found = || server.last_request().sampling.thinking_budget;
    assert_eq!(found(), Some(budget));
    server.chat(json!({}));
    assert_eq!(found(), None);
}

#[test]
fn an_effort_reaches_the_prompt_from_every_api() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %};{{ reasoning_effort }}\
        {% if enable_thinking %}!{% else %}</think>{% endif %}";
    let server = TestServer::start_with_template(template, |_| says("x"));
    let messages = json!([{ "role": "user", "content": "hi" }]);
    for effort in ["low", "medium", "high", "xhigh", "max"] {
        for (path, body) in [
            (
                "/v1/chat/completions",
                json!({ "messages": messages, "reasoning_effort": effort }),
            ),
            (
                "/v1/responses",
                json!({ "input": "hi", "reasoning": { "effort": effort } }),
            ),
            (
                "/v1/messages",
                json!({ "model": "base", "messages": messages, "max_tokens": 9, "output_config": { "effort": effort } }),
            ),
            (
                "/api/chat",
                json!({ "model": "base", "messages": messages, "think": effort, "stream": false }),
            ),
        ] {
            let answer = server.post(path, &body);
            assert_eq!(answer.status, 200, "{path}: {}", answer.text);
            let expected: Vec<u32> = bytes(&format!("hi;{effort}!")).collect();
            assert_eq!(server.last_request().prompt, expected, "{path} {effort}");
        }
    }
}
