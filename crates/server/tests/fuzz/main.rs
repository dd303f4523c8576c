//! Bodies of every API, changed at random, through the router: each is answered, and never with the server's own failure.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    dead_code,
    unused_imports,
    reason = "not every test uses all of the support"
)]

#[path = "../../../model-qwen/tests/hostile/mutate.rs"]
mod mutate;
#[path = "../support/mod.rs"]
mod support;

mod finetuning;
mod seeds;

use std::time::Duration;

use axum::body::{Body, to_bytes};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use mutate::Random;
use serde_json::Value;
use server::AppState;
use support::{TestServer, says};

/// Most bytes of an answer.
const ANSWER: usize = 64 << 20;

/// What the model writes: reasoning, calls of tools in the forms that are looked for, broken JSON.
const WRITES: [&str; 6] = [
    "hi",
    "<think>a</think>b <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
    "<think>\u{e9}<tool_call>{\"name\": \"f\", \"arg",
    "<tool_call><function=f><parameter=a>1</parameter></function></tool_call>",
    "{\"a\": [1, 2, {\"b\": \"\\u00e9\"}]}",
    "",
];

/// Names of fields of all APIs.
fn names() -> Vec<&'static str> {
    let tables = [
        include_str!("../../src/protocol/fields.txt"),
        include_str!("../../src/protocol/fields/anthropic.txt"),
        include_str!("../../src/protocol/fields/finetuning.txt"),
        include_str!("../../src/protocol/fields/ollama.txt"),
    ];
    let rows = tables.into_iter().flat_map(str::lines);
    let rows = rows.filter(|row| !row.starts_with('#'));
    let mut names: Vec<&str> = rows.filter_map(|row| row.split(" |").next()).collect();
    names.extend([
        "type",
        "text",
        "role",
        "content",
        "json_schema",
        "schema",
        "function",
        "name",
        "parameters",
        "$ref",
        "properties",
        "items",
        "anyOf",
        "pattern",
        "maxItems",
        "image_url",
        "file_id",
        "input_file",
        "file_url",
    ]);
    names
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// Status and text of an answer.
async fn send(state: &AppState, request: hyper::Request<Body>) -> (u16, String) {
    let app = TowerToHyperService::new(server::app(state.clone()));
    let answered = async {
        let answer = app.call(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), ANSWER).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    let answered = tokio::time::timeout(Duration::from_secs(30), answered).await;
    answered.expect("no answer")
}

/// Sends changed bodies to each path; `after` is called after each of them.
fn fuzz(name: &str, state: &AppState, seeds: &[(&'static str, Value)], after: impl Fn()) {
    let names = names();
    let make = |random: &mut Random| {
        let (path, seed) = random.pick(seeds);
        let mut input = path.as_bytes().to_vec();
        input.push(b'\n');
        input.extend(mutate::json(random, std::slice::from_ref(seed), &names));
        input
    };
    let runtime = runtime();
    mutate::run(name, make, |input| {
        let at = input.iter().position(|&byte| byte == b'\n').unwrap();
        let path = std::str::from_utf8(&input[..at]).unwrap();
        let request = hyper::Request::post(path)
            .header("content-type", "application/json")
            .body(Body::from(input[at + 1..].to_vec()))
            .unwrap();
        let (status, text) = runtime.block_on(send(state, request));
        assert!(status != 500 && status != 503, "{path}: {status} {text}");
        after();
    });
}

/// [`fuzz`] of a server with a scripted engine, which forgets what it has seen.
fn fuzz_all(name: &str, server: &TestServer, seeds: &[(&'static str, Value)]) {
    let forget = || server.seen.lock().unwrap().requests.clear();
    fuzz(name, &server.state, seeds, forget);
}

#[test]
fn bodies_of_a_model_that_writes() {
    let server = TestServer::start_with(
        &["--enable-lora", "--trust-request-chat-template"],
        |request| says(WRITES[request.prompt.len() % WRITES.len()]),
    );
    fuzz_all("bodies", &server, &seeds::writing());
}

#[test]
fn bodies_of_a_model_that_pools() {
    let embeds = TestServer::start_pooling(&["--runner", "pooling"], None);
    fuzz_all("embeddings", &embeds, &seeds::pooling());
    let scores = TestServer::start_pooling(&["--runner", "pooling"], Some(&[0.0, 0.0, 0.0, 1.0]));
    fuzz_all("scores", &scores, &seeds::pooling());
}

/// Paths, methods and headers, changed at random.
#[test]
fn heads() {
    let flags = ["--api-key", "k", "--enable-tokenizer-info-endpoint"];
    let server = TestServer::start_with(&flags, |_| says("x"));
    let heads = [
        "GET /v1/models/base authorization: Bearer k",
        "GET /v1/responses/resp_1/input_items?limit=2&after=a x-api-key: k",
        "DELETE /v1/responses/resp_1 authorization: bearer k",
        "GET /v1/models/%2e%2e%2fetc authorization: Bearer k",
        "OPTIONS /v1/completions origin: http://a",
        "GET / accept: text/html",
        "HEAD /metrics accept: application/openmetrics-text",
        "GET /page/../../etc/passwd accept: text/html",
        "POST /v1/completions content-type: application/json; charset=\"x\"",
        "GET /tokenizer_info x-request-id: \u{e9}",
    ];
    let make = |random: &mut Random| {
        let mut head = random.pick(&heads.map(str::as_bytes)).to_vec();
        mutate::bytes(random, &mut head);
        head
    };
    let runtime = runtime();
    mutate::run("heads", make, |input| {
        let mut words = input.splitn(3, |&byte| byte == b' ');
        let mut word = || words.next().unwrap_or_default();
        let builder = hyper::Request::builder().method(word()).uri(word());
        let header = word();
        let colon = header
            .iter()
            .position(|&byte| byte == b':')
            .unwrap_or(header.len());
        let (name, value) = header.split_at(colon);
        let value = value.get(2..).unwrap_or_default();
        // What is no head at all, the parser of connections refuses.
        let Ok(request) = builder.header(name, value).body(Body::empty()) else {
            return;
        };
        let (status, text) = runtime.block_on(send(&server.state, request));
        assert!(status < 500, "{status} {text}");
    });
}
