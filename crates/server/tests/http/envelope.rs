//! What surrounds an answer: ids, errors, origins, formats, limits.

use server::config::Allowed;

use super::*;

#[test]
fn requests_have_ids() {
    let server = TestServer::start(|_| says("x"));
    let headers = ["content-type: application/json", "x-request-id: mine-1"];
    let body = r#"{"prompt": "x", "request_id": "other"}"#;
    let answer = server.raw("POST", "/v1/completions", &headers, body);
    assert_eq!(
        (&answer.headers["x-request-id"], &answer.json()["id"]),
        (&"mine-1".parse().unwrap(), &json!("cmpl-mine-1"))
    );
    let of_body = server.chat(json!({ "request_id": "other" })).json();
    assert_eq!(of_body["id"], "chatcmpl-other");
    for id in ["x".repeat(257), "a\nb".to_owned()] {
        for (path, input) in [("/v1/completions", "prompt"), ("/v1/responses", "input")] {
            let refused = server.post(path, &json!({ input: "x", "request_id": id }));
            let error = &refused.json()["error"];
            assert_eq!(
                (refused.status, &error["param"]),
                (400, &json!("request_id")),
                "{path} {id:?}: {error}"
            );
        }
    }
    // Answers of every kind have one.
    let refused = server.get("/nothing");
    let id = refused.headers["x-request-id"].to_str().unwrap();
    assert!(
        id.len() == 32
            && id
                != server.get("/nothing").headers["x-request-id"]
                    .to_str()
                    .unwrap()
    );
    let fingerprint = of_body["system_fingerprint"].as_str().unwrap();
    assert!(fingerprint.starts_with("server-"), "{fingerprint}");
    let events = server.chat(json!({ "stream": true })).events();
    assert!(
        events
            .iter()
            .all(|event| event["system_fingerprint"] == fingerprint)
    );
}

#[test]
fn errors_have_vllms_types() {
    let server = TestServer::start_with(&["--api-key", "k"], |_| says("x"));
    let error = |method: Method, path: &str, key: Option<&str>, body: &str| {
        let answer = server.send(method, path, body.to_owned(), key);
        let error = answer.json()["error"].clone();
        (
            answer.status,
            error["type"].as_str().unwrap().to_owned(),
            error["code"].clone(),
        )
    };
    let post = |body| error(Method::POST, "/v1/completions", Some("Bearer k"), body);
    let is = |status: u16, kind: &str, code: Value| (status, kind.to_owned(), code);
    assert_eq!(post("{"), is(400, "BadRequestError", json!(400)));
    assert_eq!(
        post(r#"{"prompt": "x", "model": "y"}"#),
        is(404, "NotFoundError", json!("model_not_found"))
    );
    let long = json!({ "prompt": "x".repeat(300) }).to_string();
    assert_eq!(
        post(&long),
        is(400, "BadRequestError", json!("context_length_exceeded"))
    );
    assert_eq!(
        error(Method::GET, "/v1/models", None, ""),
        is(401, "AuthenticationError", json!("invalid_api_key"))
    );
    assert_eq!(
        error(Method::GET, "/x", Some("Bearer k"), ""),
        is(404, "NotFoundError", json!(404))
    );
}

#[test]
fn web_pages_may_read_the_answers() {
    let server = TestServer::start_with(&["--api-key", "k", "--enable-lora"], |_| says("x"));
    let origin = "origin: http://localhost:3000";
    let preflight = server.raw(
        "OPTIONS",
        "/v1/chat/completions",
        &[
            origin,
            "access-control-request-method: POST",
            "access-control-request-headers: authorization,content-type,x-stainless-os",
        ],
        "",
    );
    assert_eq!(preflight.status, 200);
    let allowed = preflight.headers["access-control-allow-headers"]
        .to_str()
        .unwrap();
    assert_eq!(allowed, "authorization,content-type,x-stainless-os");
    assert_eq!(preflight.headers["access-control-allow-methods"], "POST");
    for (path, key, status) in [
        ("/v1/models", "Bearer k", 200),
        ("/v1/models", "Bearer no", 401),
        ("/nothing", "Bearer k", 404),
        ("/v1/completions", "Bearer k", 405),
        ("/health", "", 200),
    ] {
        let key = format!("authorization: {key}");
        let answer = server.raw("GET", path, &[origin, &key], "");
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers["access-control-allow-origin"], "*", "{path}");
    }
    // What a page must not do unless its origin was named.
    let load = |server: &TestServer, origin: &str| {
        let headers = [
            "authorization: Bearer k",
            "content-type: application/json",
            origin,
        ];
        let body = r#"{"lora_name": "a", "lora_path": "/no/such"}"#;
        server
            .raw("POST", "/v1/load_lora_adapter", &headers, body)
            .status
    };
    assert_eq!(load(&server, origin), 403);
    let flags = [
        "--allowed-origins",
        r#"["http://localhost:3000"]"#,
        "--allow-credentials",
        "--enable-lora",
        "--lora-roots",
        "/",
    ];
    let named = TestServer::start_with(&flags, |_| says("x"));
    assert_eq!(load(&named, origin), 404);
    let answer = named.raw("GET", "/health", &[origin], "");
    assert_eq!(
        answer.headers["access-control-allow-origin"],
        "http://localhost:3000"
    );
    assert_eq!(answer.headers["access-control-allow-credentials"], "true");
    let other = named.raw("GET", "/health", &["origin: http://evil.example"], "");
    assert!(!other.headers.contains_key("access-control-allow-origin"));
}

#[test]
fn metrics_are_openmetrics_on_request() {
    let server = TestServer::start(|_| says("abc"));
    let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1";
    let answer = server.raw("GET", "/metrics", &[accept], "");
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(
        kind.starts_with("application/openmetrics-text; version=1.0.0"),
        "{kind}"
    );
    assert!(answer.text.ends_with("\n# EOF\n"));
    assert!(
        answer
            .text
            .contains("# TYPE vllm:generation_tokens counter\n")
    );
    assert!(answer.text.contains("\nvllm:generation_tokens_total{"));
    assert!(!server.get("/metrics").text.contains("# EOF"));
}

#[test]
fn a_long_text_is_refused_before_it_is_tokenized() {
    let server = TestServer::start(|_| says("x"));
    let long = "word ".repeat(400_000);
    for (path, body, param) in [
        ("/v1/completions", json!({ "prompt": long }), "prompt"),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": long }] }),
            "messages",
        ),
    ] {
        let answer = server.post(path, &body);
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"], &error["param"]),
            (400, &json!("context_length_exceeded"), &json!(param))
        );
        assert!(error["message"].as_str().unwrap().contains("at least"));
    }
    let many = format!(r#"{{"prompt": [{}0]}}"#, "0,".repeat(2_000_000));
    let answer = server.send(Method::POST, "/v1/completions", many, None);
    assert_eq!(answer.status, 413, "{}", answer.text);
}

#[test]
fn until_the_model_is_loaded_the_answer_is_503() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let loaded = TestServer::start(|_| says("x"));
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let state = async { receiver.await.unwrap() };
    let page = "https://page.example";
    let mut loading = server::Loading {
        page: true,
        ..Default::default()
    };
    loading.cors.origins = Allowed::Only(vec![page.parse().unwrap()]);
    let shutdown = std::future::pending();
    runtime.spawn(server::run_loading(listener, state, loading, shutdown));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    let health = || {
        let request = agent
            .get(format!("http://{address}/health"))
            .header("origin", page);
        let mut response = request.call().unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        let readers = response.headers().get("access-control-allow-origin");
        (response.status().as_u16(), text, readers.cloned())
    };
    let (status, text, readers) = health();
    assert_eq!(status, 503);
    let error = &serde_json::from_str::<Value>(&text).unwrap()["error"];
    assert_eq!(error["message"], "The model is being loaded.");
    assert_eq!(error["progress"], json!({ "done": 0, "of": 0 }));
    // The page reads that it is to wait.
    assert_eq!(readers.unwrap(), page);
    // The server's own page is there already, for browsers.
    let get = |path: &str, accept: &str| {
        let request = agent
            .get(format!("http://{address}{path}"))
            .header("accept", accept);
        let mut response = request.call().unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), text)
    };
    let (status, document) = get("/", "text/html");
    assert!(
        status == 200 && document.starts_with("<!doctype html>"),
        "{document}"
    );
    assert_eq!(get("/page/main.js", "*/*").0, 200);
    assert_eq!(get("/", "*/*").0, 503);
    assert_eq!(get("/page/none.js", "text/html").0, 503);
    let preflight = agent
        .options(format!("http://{address}/v1/chat/completions"))
        .header("origin", page)
        .header("access-control-request-method", "POST")
        .call()
        .unwrap();
    assert_eq!(preflight.status(), 200);
    assert_eq!(preflight.headers()["access-control-allow-methods"], "POST");
    assert!(sender.send(loaded.state.clone()).is_ok());
    let start = Instant::now();
    while health().0 != 200 {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
