//! Clients that leave, failures, adapters and shutdown.

use super::*;

#[test]
fn a_client_that_leaves_aborts_its_sequences() {
    let server = TestServer::start(|_| Play::Hang(bytes("some text").collect()));
    for (i, stream) in [true, false].into_iter().enumerate() {
        let mut connection = server.begin(
            "/v1/completions",
            &json!({ "prompt": "x", "n": 2, "stream": stream }),
        );
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
    let waiting = server.begin("/v1/completions", &json!({ "prompt": "x" }));
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
        Some(1) => Play::Fails(
            bytes("ab").collect(),
            SequenceError::Failed("the device is lost".to_owned()),
        ),
        Some(2) => Play::Fails(Vec::new(), SequenceError::Aborted),
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
    let answer = server.chat(json!({}));
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(
        answer.text.contains("the engine has stopped"),
        "{}",
        answer.text
    );
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
fn a_packed_body_is_refused_as_one() {
    let server = TestServer::start(|_| says("x"));
    let headers = ["content-type: application/json", "content-encoding: gzip"];
    let answer = server.raw("POST", "/v1/completions", &headers, "x");
    assert_eq!(answer.status, 415, "{}", answer.text);
    assert!(answer.text.contains("Content-Encoding"), "{}", answer.text);
}

#[test]
fn adapters_are_loaded_listed_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    let path = path.to_str().unwrap();
    let server = TestServer::start_with(&["--enable-lora", "--lora-roots", path], |_| says("x"));
    let load = |name: &str, path: &str| {
        server.post(
            "/v1/load_lora_adapter",
            &json!({ "lora_name": name, "lora_path": path }),
        )
    };
    // Nothing is told of other folders.
    for elsewhere in ["/no/such/folder", "/etc", "..", "/etc/passwd"] {
        let refused = load("sql", elsewhere);
        let param = refused.json()["error"]["param"].clone();
        assert_eq!((refused.status, param), (403, json!("lora_path")));
        assert!(refused.text.contains("--lora-roots"), "{}", refused.text);
        assert!(!refused.text.contains(elsewhere), "{}", refused.text);
    }
    let missing = load("sql", &format!("{path}/no/such/folder"));
    assert_eq!(
        (missing.status, missing.json()["error"]["param"].as_str()),
        (404, Some("lora_path"))
    );
    assert!(missing.text.contains("/no/such/folder"));
    assert_eq!(server.chat(json!({ "model": "sql" })).status, 404);

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
fn shutdown_lets_running_requests_end() {
    let mut server = TestServer::start(|_| {
        std::thread::sleep(Duration::from_millis(300));
        says("done")
    });
    std::thread::scope(|scope| {
        let address = server.address;
        let running = scope.spawn(move || {
            let mut stream = support::begin(address, "/v1/completions", &json!({ "prompt": "x" }));
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        server.wait_for_submission();
        server.signal_shutdown();
        assert!(running.join().unwrap().contains("\"done\""));
        server.join();
        assert!(TcpStream::connect(address).is_err());
    });
}

/// Routers and probes see at once that nothing more is to be had here, while the streams go on.
#[test]
fn a_draining_server_answers_503_until_its_last_stream_ends() {
    let mut server = TestServer::start(|request| match request.sampling.seed {
        Some(1) => Play::Hang(bytes("some text").collect()),
        _ => says("x"),
    });
    let mut stream = server.begin(
        "/v1/completions",
        &json!({ "prompt": "x", "seed": 1, "stream": true }),
    );
    let mut start = [0; 15];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    // A connection that exists already; its request comes after the signal.
    let mut early = TcpStream::connect(server.address).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    server.signal_shutdown();
    let begun = Instant::now();
    while server.get("/health").status != 503 {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    early
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    for answer in [server.get("/health"), server.chat(json!({}))] {
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.text.contains("shutting down"), "{}", answer.text);
        assert_eq!(answer.headers["retry-after"], "1");
        // Whoever asks again asks another server.
        assert_eq!(answer.headers["connection"], "close");
    }
    assert!(
        server
            .get("/metrics")
            .text
            .contains("vllm:num_requests_running")
    );
    drop(stream);
    server.wait_for_aborts(1);
    server.join();
    assert!(TcpStream::connect(server.address).is_err());
}

/// A client learns in the form of its API that an answer is not complete.
#[test]
fn answers_that_the_shutdown_cuts_end_with_an_error() {
    let flags = ["--shutdown-timeout", "1"];
    let mut server = TestServer::start_with(&flags, |_| Play::Hang(bytes("x").collect()));
    let messages = json!([{ "role": "user", "content": "q" }]);
    let cases = [
        (
            "/v1/chat/completions",
            json!({ "messages": messages }),
            "data: {\"error\":",
        ),
        (
            "/v1/completions",
            json!({ "prompt": "x" }),
            "data: {\"error\":",
        ),
        (
            "/v1/responses",
            json!({ "input": "x" }),
            "event: response.failed",
        ),
        (
            "/v1/messages",
            json!({ "model": "base", "messages": messages, "max_tokens": 9 }),
            "event: error",
        ),
        (
            "/api/chat",
            json!({ "model": "base", "messages": messages }),
            "{\"error\":",
        ),
        (
            "/v1/completions",
            json!({ "prompt": "x", "stream": false }),
            "HTTP/1.1 503",
        ),
    ];
    let mut streams = Vec::new();
    for (path, mut body, expected) in cases {
        if body.get("stream").is_none() {
            body["stream"] = json!(true);
        }
        streams.push((path, server.begin(path, &body), expected));
        server.wait_for_requests(streams.len());
    }
    server.signal_shutdown();
    for (path, mut stream, expected) in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(expected), "{path}: {answer}");
        assert!(answer.contains("--shutdown-timeout"), "{path}: {answer}");
    }
    server.join();
}

#[test]
fn shutdown_ends_after_its_timeout() {
    let mut server = TestServer::start_with(&["--shutdown-timeout", "1"], |_| {
        Play::Hang(bytes("x").collect())
    });
    let _connection = server.begin("/v1/completions", &json!({ "prompt": "x" }));
    server.wait_for_requests(1);
    let start = Instant::now();
    server.signal_shutdown();
    server.join();
    assert!((1.0..5.0).contains(&start.elapsed().as_secs_f64()));
}

#[test]
fn shutdown_waits_for_no_body_whose_request_is_answered() {
    let mut server = TestServer::start(|_| says("x"));
    let mut connection = TcpStream::connect(server.address).unwrap();
    let head = "POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    connection.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"HTTP/1.1 404");
    let start = Instant::now();
    server.signal_shutdown();
    server.join();
    assert!(start.elapsed().as_secs_f64() < 3.0, "{:?}", start.elapsed());
}
