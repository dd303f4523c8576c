//! Fields that say nothing, fields that would have no effect, and names in errors.

use model_qwen::LogprobsMode;

use super::*;

fn error_of(server: &TestServer, path: &str, body: &Value) -> (u16, String) {
    let answer = server.post(path, body);
    let param = answer.json()["error"]["param"].as_str().map(str::to_owned);
    (answer.status, param.unwrap_or(answer.text))
}

#[test]
fn a_count_is_of_the_prompt_that_a_chat_has() {
    let server = TestServer::start_with(&["--trust-request-chat-template"], |_| says("x"));
    let messages = json!([{ "role": "user", "content": "q" }]);
    let plain = server.post("/tokenize", &json!({ "messages": messages }));
    for extra in [
        json!({ "tools": [] }),
        json!({ "chat_template": "" }),
        json!({ "chat_template_kwargs": {}, "model": "", "continue_final_message": "" }),
    ] {
        let body = support::merged(json!({ "messages": messages }), extra);
        assert_eq!(
            server.post("/tokenize", &body).json(),
            plain.json(),
            "{body}"
        );
    }
    let body = json!({ "messages": messages, "tools": [{ "zzz": 1 }] });
    let found = error_of(&server, "/tokenize", &body);
    assert_eq!(found, (400, "tools[0].function".to_owned()));
    // An empty text has no tokens.
    let empty = server.post("/tokenize", &json!({ "prompt": "" })).json();
    assert_eq!(empty["count"], 0, "{empty}");
}

#[test]
fn fields_of_conversations_need_one() {
    let text = TestServer::start(|_| says("x"));
    let vectors = TestServer::start_pooling(&[], None);
    let scores = TestServer::start_pooling(&[], Some(&[0.0; 4]));
    for (name, value) in [
        ("add_generation_prompt", json!(true)),
        ("continue_final_message", json!(true)),
        ("chat_template", json!("x")),
        ("chat_template_kwargs", json!({ "a": 1 })),
    ] {
        let expected = (400, name.to_owned());
        for (server, path, field) in [
            (&text, "/tokenize", "prompt"),
            (&vectors, "/v1/embeddings", "input"),
            (&vectors, "/pooling", "input"),
            (&scores, "/classify", "input"),
        ] {
            let body = json!({ field: "a", name: value });
            assert_eq!(error_of(server, path, &body), expected, "{path}");
            let silent = json!({ field: "a", "add_generation_prompt": false, "chat_template": "" });
            assert_eq!(server.post(path, &silent).status, 200, "{path}");
        }
    }
    let body =
        json!({ "prompt": "a", "tools": [{ "type": "function", "function": { "name": "f" } }] });
    assert_eq!(
        error_of(&text, "/tokenize", &body),
        (400, "tools".to_owned())
    );
}

#[test]
fn errors_name_the_field_that_was_given() {
    let server = TestServer::start(|_| says("x"));
    let scores = TestServer::start_pooling(&[], Some(&[0.0; 4]));
    let talk = json!([{ "role": "user", "content": "q" }]);
    let document = json!({ "text": "a", "image": "u" });
    for (server, path, body, param) in [
        (
            &server,
            "/v1/chat/completions",
            json!({ "messages": talk, "max_completion_tokens": 0 }),
            "max_completion_tokens",
        ),
        (
            &server,
            "/v1/chat/completions",
            json!({ "messages": talk, "max_completion_tokens": 4000 }),
            "max_completion_tokens",
        ),
        (
            &server,
            "/v1/chat/completions",
            json!({ "messages": talk, "max_tokens": 4000 }),
            "max_tokens",
        ),
        (
            &server,
            "/v1/completions",
            json!({ "prompt": ["a", ""] }),
            "prompt[1]",
        ),
        (
            &server,
            "/v1/completions",
            json!({ "prompt": [[1], [99_999]] }),
            "prompt[1]",
        ),
        (
            &server,
            "/v1/completions",
            json!({ "prompt": ["a", "a".repeat(500)] }),
            "prompt[1]",
        ),
        (
            &server,
            "/v1/completions",
            json!({ "prompt": [""] }),
            "prompt",
        ),
        (
            &scores,
            "/rerank",
            json!({ "query": "q", "documents": ["b", document] }),
            "documents[1].image",
        ),
    ] {
        let expected = (400, param.to_owned());
        assert_eq!(error_of(server, path, &body), expected, "{body}");
    }
}

#[test]
fn log_probabilities_may_be_of_all_tokens() {
    let server = TestServer::start_with(&["--max-logprobs", "-1"], |_| says("a"));
    let logprobs = || server.last_request().sampling.logprobs;
    server.complete(json!({ "logprobs": true, "prompt_logprobs": true }));
    assert_eq!(logprobs(), Some(1));
    assert_eq!(server.last_request().prompt_logprobs, Some(1));
    let vocab_size = {
        server.complete(json!({ "logprobs": -1, "prompt_logprobs": -1 }));
        logprobs().unwrap()
    };
    assert!(vocab_size > 200);
    assert_eq!(server.last_request().prompt_logprobs, Some(vocab_size));
    server.chat(json!({ "logprobs": true, "top_logprobs": -1 }));
    assert_eq!(logprobs(), Some(vocab_size));
    server.complete(json!({ "logprobs": 100 }));
    assert_eq!(logprobs(), Some(100));

    let limited = TestServer::start(|_| says("a"));
    for number in [-1, -2, 21] {
        let body = json!({ "prompt": "a", "logprobs": number });
        let found = error_of(&limited, "/v1/completions", &body);
        assert_eq!(found, (400, "logprobs".to_owned()));
    }
    // An echo has those of the prompt, too.
    let body = json!({ "logprobs": true, "top_logprobs": 2, "echo": true });
    limited.chat(body);
    assert_eq!(limited.last_request().prompt_logprobs, Some(2));
}

#[test]
fn a_flag_says_which_numbers_log_probabilities_are() {
    for (name, mode) in LogprobsMode::ALL {
        let server = TestServer::start_with(&["--logprobs-mode", name], |_| says("a"));
        server.complete(json!({ "logprobs": 1 }));
        assert_eq!(server.last_request().sampling.logprobs_mode, mode);
    }
    let line = ["server", "--logprobs-mode", "raw"];
    let error = server::Config::from_command_line(line)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--logprobs-mode") && error.contains("processed_logits"),
        "{error}"
    );
}

#[test]
fn a_limit_of_the_model_holds_for_all_requests() {
    let server = TestServer::start_limited(4, |_| Play::Tokens(vec![97; 4], FinishReason::Length));
    let talk = json!([{ "role": "user", "content": "q" }]);
    for (path, body) in [
        ("/v1/chat/completions", json!({ "messages": talk })),
        (
            "/v1/chat/completions",
            json!({ "messages": talk, "max_tokens": 9 }),
        ),
        ("/v1/completions", json!({ "prompt": "a" })),
        (
            "/v1/responses",
            json!({ "input": "a", "max_output_tokens": 9 }),
        ),
        (
            "/api/chat",
            json!({ "model": "base", "messages": talk, "stream": false }),
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "a", "raw": true, "stream": false }),
        ),
        (
            "/v1/messages",
            json!({ "model": "base", "messages": talk, "max_tokens": 9 }),
        ),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        assert_eq!(server.last_request().max_tokens, 4, "{path} {body}");
        if path == "/v1/messages" {
            assert_eq!(answer.json()["stop_reason"], "max_tokens");
        }
    }
    server.complete(json!({ "prompt": "a", "max_tokens": 3 }));
    assert_eq!(server.last_request().max_tokens, 3);
}
