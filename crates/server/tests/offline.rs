//! `run-batch` and `bench` on the bundled model, started as people start them.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/program.rs"]
mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Server, bundled, start};

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(words);
    if words[..2] != ["bench", "serve"] {
        command.arg("--model").arg(bundled());
        command.args(["--device", "cpu"]);
    }
    if words[0] != "bench" {
        command.args(["--served-model-name", "story"]);
    }
    command
        .env("RUST_LOG", "warn")
        .env("VLLM_API_KEY", "of a server");
    command
}

#[track_caller]
fn success(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn request(id: &str, url: &str, body: &Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

const STORY: &str = "Once upon a time there was a little duck";

fn story() -> Value {
    json!({"model": "story", "prompt": STORY, "max_tokens": 12, "temperature": 0})
}

/// A server of the bundled model.
fn server() -> Server {
    let mut command = program(&["--port", "0"]);
    command.env_remove("VLLM_API_KEY");
    start(command)
}

#[test]
fn a_file_is_answered_as_a_server_would() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let messages = json!([{"role": "user", "content": "Tell me a story."}]);
    let text = [
        request("text", "/v1/completions", &story()),
        "no json\n".to_owned(),
        request(
            "chat",
            "/v1/chat/completions",
            &json!({"messages": messages, "max_tokens": 8}),
        ),
        request(
            "response",
            "/v1/responses",
            &json!({"input": "Hi", "max_output_tokens": 8}),
        ),
        request("vector", "/v1/embeddings", &json!({"input": "Hi"})),
    ];
    fs::write(&input, text.concat()).unwrap();
    let files = [
        "-i",
        input.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
    ];
    let words = [&["run-batch"], &files[..]].concat();
    success(program(&words).output().unwrap());
    let answers = lines(&fs::read_to_string(&output).unwrap());
    let status: Vec<&Value> = answers
        .iter()
        .map(|line| &line["response"]["status_code"])
        .collect();
    assert_eq!(json!(status), json!([200, 400, 200, 200, 400]));
    let message = answers[1]["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("line 2: The line is not an object."),
        "{message}"
    );

    let (status, served) = server().post("/v1/completions", story());
    assert_eq!(status, 200, "{served}");
    let of_batch = &answers[0]["response"]["body"];
    assert_eq!(of_batch["choices"][0]["text"], served["choices"][0]["text"]);
    assert_eq!(of_batch["usage"], served["usage"]);

    // What exists is not replaced, and that is known before the model is loaded.
    let refused = Command::new(env!("CARGO_BIN_EXE_server"))
        .args([&words[..], &["--model", "/no/such/folder"]].concat())
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("exists already; name another file, or give --overwrite"),
        "{said}"
    );
    success(
        program(&[&words[..], &["--overwrite"]].concat())
            .output()
            .unwrap(),
    );
    assert_eq!(lines(&fs::read_to_string(&output).unwrap()).len(), 5);
    // A file that is made before the model fails to load is not left behind.
    let new = dir.path().join("new.jsonl");
    let failed = Command::new(env!("CARGO_BIN_EXE_server"))
        .args(["run-batch", "-i", files[1], "-o", new.to_str().unwrap()])
        .args(["--model", "/no/such/folder"])
        .output()
        .unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(
        said.contains("/no/such/folder") && !said.contains("--output-file"),
        "{said}"
    );
    assert!(!new.exists());
    for (files, expected) in [
        (
            ["-i", "/no/such/file", "-o", "-"],
            "--input-file: cannot read /no/such/file",
        ),
        (
            ["-i", "-", "-o", "/no/such/folder/x"],
            "--output-file: cannot write /no/such/folder/x",
        ),
        (["-i", files[1], "-o", files[1]], "is the file of requests"),
    ] {
        let output = program(&[&["run-batch"], &files[..]].concat())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn vectors_and_scores_come_from_standard_input() {
    let words = [
        "run-batch",
        "-i",
        "-",
        "-o",
        "-",
        "--runner",
        "pooling",
        "--convert",
        "embed",
    ];
    let mut command = program(&words);
    let mut batch = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = [
        request(
            "e",
            "/v1/embeddings",
            &json!({"input": ["a duck", "a king"]}),
        ),
        request(
            "s",
            "/score",
            &json!({"text_1": "a duck", "text_2": ["a duck", "a king"]}),
        ),
        request(
            "r",
            "/rerank",
            &json!({"query": "a duck", "documents": ["a king", "a duck"]}),
        ),
    ];
    batch
        .stdin
        .take()
        .unwrap()
        .write_all(text.concat().as_bytes())
        .unwrap();
    let answers = lines(&success(batch.wait_with_output().unwrap()));
    let body = |index: usize| &answers[index]["response"]["body"];
    assert_eq!(body(0)["data"].as_array().unwrap().len(), 2, "{answers:?}");
    assert!(body(1)["data"][0]["score"].as_f64().unwrap() > 0.99);
    assert_eq!(body(2)["results"][0]["index"], 1);
}

#[test]
fn a_signal_leaves_what_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    let words = [
        "run-batch",
        "-i",
        "-",
        "-o",
        output.to_str().unwrap(),
        "--shutdown-timeout",
        "5",
    ];
    let mut batch = program(&words).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = batch.stdin.take().unwrap();
    stdin
        .write_all(request("a", "/v1/completions", &story()).as_bytes())
        .unwrap();
    stdin.flush().unwrap();
    let start = Instant::now();
    // The input stays open: only a signal ends the batch.
    while !fs::read_to_string(&output).is_ok_and(|text| !text.is_empty()) {
        assert!(start.elapsed() < Duration::from_secs(120), "no answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = batch.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(batch.wait().unwrap().code(), Some(130));
    assert_eq!(
        lines(&fs::read_to_string(&output).unwrap())[0]["custom_id"],
        "a"
    );
}

#[test]
fn a_server_is_measured_with_random_prompts() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let result = dir.path().join("result.json");
    let words = [
        "bench",
        "serve",
        "--base-url",
        &server.url,
        "--num-prompts",
        "6",
        "--input-len",
        "20",
        "--output-len",
        "7",
        "--save-result",
        "--save-detailed",
        "--result-filename",
        result.to_str().unwrap(),
    ];
    let text = success(program(&words).output().unwrap());
    assert!(text.contains("Serving Benchmark Result"), "{text}");
    let result = read_json(&result);
    assert_eq!(
        (&result["completed"], &result["total_output_tokens"]),
        (&json!(6), &json!(42))
    );
    assert_eq!(result["model_id"], "story");
    let lens: Vec<u64> = result["input_lens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|len| len.as_u64().unwrap())
        .collect();
    assert_eq!(lens.len(), 6);
    assert!(lens.iter().all(|len| len.abs_diff(20) <= 2), "{lens:?}");
    for key in [
        "mean_ttft_ms",
        "median_tpot_ms",
        "std_itl_ms",
        "p99_itl_ms",
        "request_throughput",
    ] {
        assert!(
            result[key].as_f64().is_some_and(|number| number > 0.0),
            "{key}: {result}"
        );
    }
}

/// The words of a command line.
fn split(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn an_engine_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    let json = ["--output-json", path.to_str().unwrap()];
    let words = split("bench throughput --input-len 16 --output-len 8 --num-prompts 5");
    let text = success(program(&[&words[..], &json].concat()).output().unwrap());
    assert!(
        text.starts_with("Throughput: ") && text.contains(" requests/s, "),
        "{text}"
    );
    assert!(text.ends_with("Total num output tokens:  40\n"), "{text}");
    let result = read_json(&path);
    let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "elapsed_time",
            "num_requests",
            "total_num_tokens",
            "requests_per_second",
            "tokens_per_second"
        ]
    );
    assert_eq!(result["num_requests"], 5);

    let words = split(
        "bench latency --input-len 16 --output-len 4 --batch-size 2 --num-iters-warmup 1 --num-iters 3",
    );
    let text = success(program(&[&words[..], &json].concat()).output().unwrap());
    let names: Vec<&str> = text
        .lines()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "Avg latency",
            "Std latency",
            "10% percentile latency",
            "25% percentile latency",
            "50% percentile latency",
            "75% percentile latency",
            "90% percentile latency",
            "99% percentile latency"
        ]
    );
    let result = read_json(&path);
    assert_eq!(result["latencies"].as_array().unwrap().len(), 3);
    assert_eq!(result["percentiles"].as_object().unwrap().len(), 6);

    let words = split("bench throughput --input-len 16 --output-len 8 --max-model-len 20");
    let output = program(&words).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("tokens, but the context has 20"), "{said}");
}
