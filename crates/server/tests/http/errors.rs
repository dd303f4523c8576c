//! Requests that are refused.

use super::*;

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
        (json!({ "stop": ["a", ""] }), "stop"),
        (json!({ "stop": 5 }), "stop"),
        (json!({ "stop_token_ids": [1, 9999] }), "stop_token_ids[1]"),
        (json!({ "stop_token_ids": [-1] }), "stop_token_ids[0]"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_tokens": 500 }), "max_tokens"),
        (json!({ "max_tokens": u64::MAX }), "max_tokens"),
        (
            json!({ "max_completion_tokens": "9.5" }),
            "max_completion_tokens",
        ),
        (json!({ "min_tokens": 9, "max_tokens": 5 }), "min_tokens"),
        (json!({ "stream": "perhaps" }), "stream"),
        (
            json!({ "stream_options": { "include_usage": true } }),
            "stream_options",
        ),
        (
            json!({ "stream": true, "stream_options": { "include_usage": 2 } }),
            "stream_options.include_usage",
        ),
        (json!({ "logprobs": 5 }), "logprobs"),
        (
            json!({ "logprobs": true, "top_logprobs": 21 }),
            "top_logprobs",
        ),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (
            json!({ "response_format": { "type": "yaml" } }),
            "response_format.type",
        ),
        (
            json!({ "structured_outputs": { "choice": [5] } }),
            "structured_outputs.choice",
        ),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "tools": "x" }), "tools"),
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
        assert_eq!(error["type"], "BadRequestError");
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
        (json!({ "logprobs": "many" }), "logprobs"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "suffix": "x" }), "suffix"),
        (json!({ "echo": 2 }), "echo"),
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
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 34000000\r\n\r\n";
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
        "/memory",
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
