//! `bench serve` against a server of this process.

mod refusals;

use std::path::Path;

use server::command::Command;

use super::*;

/// Runs a command line; the text that it prints.
fn run(words: &[&str]) -> Result<String, String> {
    let words = ["server", "bench"].iter().chain(words);
    let command = Command::from_command_line(words.copied()).map_err(|error| error.to_string())?;
    let Command::Bench(bench) = command else {
        panic!("{command:?}");
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(bench.run())
        .and_then(|measured| measured.error.map_or(Ok(measured.text), Err))
        .map_err(|error| format!("{error:#}"))
}

fn prompts(dir: &Path) -> String {
    let path = dir.join("prompts.jsonl");
    let lines = (0..7).map(|i| format!("{{\"prompt\": \"question {i}\"}}\n"));
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Measures a server with [`prompts`]: what is printed, and the file that is written.
fn measure(server: &TestServer, more: &[&str]) -> (String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let (file, port) = (prompts(dir.path()), server.address.port().to_string());
    let result = dir.path().join("r.json").display().to_string();
    let words = [
        "serve",
        "--port",
        &port,
        "--dataset-name",
        "custom",
        "--dataset-path",
        &file,
        "--save-result",
        "--result-filename",
        &result,
    ];
    let text = run(&[&words[..], more].concat()).unwrap();
    let result = std::fs::read_to_string(result).unwrap();
    (text, serde_json::from_str(&result).unwrap())
}

#[test]
fn vectors_are_measured() {
    let server = TestServer::start_pooling(&[], None);
    let more = [
        "--backend",
        "openai-embeddings",
        "--num-prompts",
        "6",
        "--goodput",
        "e2el:100000",
    ];
    let (text, result) = measure(&server, &more);
    assert!(text.contains("Successful requests:") && text.contains("Mean E2EL (ms):"));
    let of_texts = ["generated", "Output token", "TTFT"];
    assert!(!of_texts.iter().any(|words| text.contains(words)), "{text}");
    assert_eq!(
        (&result["completed"], &result["endpoint_type"]),
        (&json!(6), &json!("openai-embeddings"))
    );
    // The bytes of `question 0`, six times.
    assert_eq!(result["total_input_tokens"], 60);
    assert!(result["p99_e2el_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(result["total_output_tokens"], Value::Null);
    assert_eq!(result["total_input_sequences"], 6);
    assert_eq!(
        result["input_sequence_throughput"],
        result["request_throughput"]
    );
}

#[test]
fn chats_have_variables_of_the_template() {
    let server = TestServer::start(|_| says("x"));
    let more = [
        "--num-prompts",
        "4",
        "--custom-output-len",
        "3",
        "--lora-modules",
        "base",
        "alias",
        "--lora-assignment",
        "round-robin",
        "--backend",
        "openai-chat",
        "--chat-template-kwargs",
        "{\"extra_word\": \"W\"}",
    ];
    measure(&server, &more);
    let prompt = server.last_request().prompt;
    assert!(prompt.contains(&u32::from(b'W')));
}

/// What `vllm bench serve` writes, in its order.
const KEYS: [&str; 50] = [
    "date",
    "endpoint_type",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "version",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "latencies",
    "queue_times",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "rtfx",
    "mean_ttft_ms",
    "median_ttft_ms",
    "std_ttft_ms",
    "p50_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
    "std_tpot_ms",
    "p50_tpot_ms",
    "p99_tpot_ms",
    "mean_e2el_ms",
    "median_e2el_ms",
    "std_e2el_ms",
    "p50_e2el_ms",
    "p99_e2el_ms",
    "mean_client_queue_time_ms",
    "median_client_queue_time_ms",
    "std_client_queue_time_ms",
    "p50_client_queue_time_ms",
    "p99_client_queue_time_ms",
    "mean_e2el_including_client_queue_ms",
    "median_e2el_including_client_queue_ms",
    "std_e2el_including_client_queue_ms",
    "p50_e2el_including_client_queue_ms",
    "p99_e2el_including_client_queue_ms",
];

#[test]
fn a_run_is_printed_and_written_as_vllm_does() {
    let server =
        TestServer::start(|_| Play::Tokens(bytes("12345").collect(), FinishReason::Length));
    let dir = tempfile::tempdir().unwrap();
    let (file, dir_name) = (
        prompts(dir.path()),
        dir.path().join("new").display().to_string(),
    );
    let port = server.address.port().to_string();
    let words = [
        "serve",
        "--port",
        &port,
        "--dataset-name",
        "custom",
        "--dataset-path",
        &file,
        "--num-prompts",
        "10",
        "--output-len",
        "5",
        "--max-concurrency",
        "2",
        "--num-warmups",
        "3",
        "--save-result",
        "--result-dir",
        &dir_name,
        "--result-filename",
        "r.json",
        "--percentile-metrics",
        "ttft,tpot,e2el,client_queue_time,e2el_including_client_queue",
        "--metric-percentiles",
        "50,99",
        "--goodput",
        "ttft:100000",
        "--metadata",
        "version=0.3.3",
        "--request-rate",
        "1000",
        "--seed",
        "1",
    ];
    let text = run(&words).unwrap();
    let rows: Vec<&str> = text
        .lines()
        .map(|line| line.split("  ").next().unwrap().trim())
        .collect();
    let expected = [
        "============ Serving Benchmark Result ============",
        "Successful requests:",
        "Failed requests:",
        "Maximum request concurrency:",
        "Request rate configured (RPS):",
        "Benchmark duration (s):",
        "Total input tokens:",
        "Total generated tokens:",
        "Request throughput (req/s):",
        "Request goodput (req/s):",
        "Output token throughput (tok/s):",
        "Peak output token throughput (tok/s):",
        "Peak concurrent requests:",
        "Total token throughput (tok/s):",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms):",
        "Median TTFT (ms):",
        "P50 TTFT (ms):",
        "P99 TTFT (ms):",
        "-----Time per Output Token (excl. 1st token)------",
        "Mean TPOT (ms):",
        "Median TPOT (ms):",
        "P50 TPOT (ms):",
        "P99 TPOT (ms):",
        "----------------End-to-end Latency----------------",
        "Mean E2EL (ms):",
        "Median E2EL (ms):",
        "P50 E2EL (ms):",
        "P99 E2EL (ms):",
        "---------------Client-side Queueing---------------",
        "Mean Client Queue Time (ms):",
        "Median Client Queue Time (ms):",
        "P50 Client Queue Time (ms):",
        "P99 Client Queue Time (ms):",
        "--------Queue-inclusive End-to-end Latency--------",
        "Mean E2EL incl. Client Queue (ms):",
        "Median E2EL incl. Client Queue (ms):",
        "P50 E2EL incl. Client Queue (ms):",
        "P99 E2EL incl. Client Queue (ms):",
        "==================================================",
    ];
    assert_eq!(rows, expected);
    assert!(
        text.contains(
            &format!("{:<40} {:<10}\n", "Successful requests:", 10).replace("        \n", "\n")
        ),
        "{text}"
    );

    let written = std::fs::read_to_string(dir.path().join("new/r.json")).unwrap();
    let result: Value = serde_json::from_str(&written).unwrap();
    let keys: Vec<&str> = result
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, KEYS);
    for (key, value) in [
        ("backend", json!("openai")),
        ("model_id", json!("base")),
        ("num_prompts", json!(10)),
        ("completed", json!(10)),
        ("failed", json!(0)),
        ("total_output_tokens", json!(50)),
        ("request_rate", json!(1000.0)),
        ("max_concurrency", json!(2)),
        ("version", json!("0.3.3")),
        ("label", Value::Null),
    ] {
        assert_eq!(result[key], value, "{key}");
    }
    let seen = server.seen.lock().unwrap();
    // One that tests the server, three that warm up.
    assert_eq!(seen.requests.len(), 14);
    assert!(
        seen.requests
            .iter()
            .all(|request| request.max_tokens == 5 && request.sampling.temperature == 0.0)
    );
    // The chat template was applied: `u:…;<|im_start|>`.
    assert!(
        seen.requests
            .iter()
            .all(|request| request.prompt.last() == Some(&IM_START))
    );
    let input: usize = seen.requests[4..]
        .iter()
        .map(|request| request.prompt.len())
        .sum();
    assert_eq!(result["total_input_tokens"], json!(input));
}

#[test]
fn chats_and_failures_are_counted() {
    let server = TestServer::start(|request| match request.prompt.contains(&u32::from(b'3')) {
        true => Play::Fails(vec![65], SequenceError::Failed("broken".to_owned())),
        false => says("abc"),
    });
    let dir = tempfile::tempdir().unwrap();
    let file = prompts(dir.path());
    let url = format!("http://{}", server.address);
    let result = dir.path().join("r.json").display().to_string();
    let words = [
        "serve",
        "--base-url",
        &url,
        "--backend",
        "openai-chat",
        "--dataset-name",
        "custom",
        "--dataset-path",
        &file,
        "--num-prompts",
        "7",
        "--disable-shuffle",
        "--save-detailed",
        "--append-result",
        "--result-filename",
        &result,
        "--top-p",
        "0.5",
        "--extra-body",
        "{\"min_tokens\": 1}",
        "--custom-output-len",
        "9",
        // What command lines of vLLM's users have, too.
        "--host",
        "nowhere.example",
        "--port",
        "1",
        "--tokenizer-mode",
        "auto",
        "--insecure",
        "--random-batch-size",
        "1",
        "--probe-request-rate",
        "0.0",
        "--header",
    ];
    run(&words).unwrap();
    run(&words).unwrap();
    let written = std::fs::read_to_string(&result).unwrap();
    let results: Vec<Value> = written
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), 2);
    let result = &results[1];
    assert_eq!(
        (result["completed"].as_u64(), result["failed"].as_u64()),
        (Some(6), Some(1))
    );
    assert_eq!(result["request_rate"], "inf");
    assert_eq!(result["generated_texts"][0], "abc");
    assert_eq!(result["output_lens"][0], 4);
    assert!(
        result["errors"][3].as_str().unwrap().contains("broken"),
        "{result}"
    );
    assert_eq!(result["itls"][0].as_array().unwrap().len(), 3);
    let seen = server.seen.lock().unwrap();
    let first = &seen.requests[0];
    assert_eq!(
        (first.sampling.top_p, first.max_tokens, first.min_tokens),
        (0.5, 9, 1)
    );
}

#[test]
fn sharegpt_files_give_questions_and_lengths() {
    let server = TestServer::start(|_| says("x"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chats.json");
    let turn = |value: &str| json!({"from": "human", "value": value});
    let chats = json!([
        {"id": "short", "conversations": [turn("a"), turn("b")]},
        {"id": "one", "conversations": [turn("alone")]},
        {"id": "good", "conversations": [turn("question"), turn("the answer"), turn("more")]},
    ]);
    std::fs::write(&path, chats.to_string()).unwrap();
    let (path, port) = (
        path.display().to_string(),
        server.address.port().to_string(),
    );
    let words = [
        "serve",
        "--port",
        &port,
        "--dataset-name",
        "sharegpt",
        "--dataset-path",
        &path,
        "--num-prompts",
        "3",
        "--ready-check-timeout-sec",
        "0",
    ];
    let text = run(&words).unwrap();
    assert!(text.contains("Successful requests:"), "{text}");
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.requests.len(), 3);
    let question: Vec<u32> = bytes("question").collect();
    assert!(
        seen.requests
            .iter()
            .all(|request| request.prompt == question && request.max_tokens == 10)
    );
}

#[test]
fn changes_of_a_ramp_are_written() {
    let server = TestServer::start(|_| says("x"));
    let more = [
        "--num-prompts",
        "5",
        "--custom-output-len",
        "3",
        "--ramp-up-strategy",
        "linear",
        "--ramp-up-start-rps",
        "100",
        "--ramp-up-end-rps",
        "102",
    ];
    let (_, result) = measure(&server, &more);
    let events = result["rps_change_events"].as_array().unwrap();
    let rates: Vec<&Value> = events.iter().map(|event| &event["rps"]).collect();
    assert_eq!(rates, [100, 101, 102]);
    let times: Vec<&str> = events
        .iter()
        .map(|event| event["timestamp"].as_str().unwrap())
        .collect();
    // As Python's `isoformat` writes them.
    assert!(times.is_sorted() && times[0].len() == "2026-11-30T13:00:00.000000".len());
}
