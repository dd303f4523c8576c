//! `run-batch`: each line of a file is answered as over HTTP.

use std::io::{self, BufReader, Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use server::batch::{self, BatchFiles, BatchOptions, Progress, Source, Summary};
use server::command::Command;

use super::*;

/// A file that a test can read while it is written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn request(id: &str, url: &str, body: &Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string()
}

fn completion(id: &str, prompt: &str) -> String {
    request(
        id,
        "/v1/completions",
        &json!({"prompt": prompt, "max_tokens": 50}),
    )
}

/// Runs a batch until its end, or until `stop` completes.
fn run(
    server: &TestServer,
    input: &str,
    max_concurrency: usize,
    stop: impl Future<Output = ()>,
) -> (Summary, Vec<Value>) {
    let source = Box::new(Cursor::new(input.to_owned()));
    let (summary, lines) = run_source(server, source, max_concurrency, stop);
    (summary.unwrap(), lines)
}

fn run_source(
    server: &TestServer,
    source: Source,
    max_concurrency: usize,
    stop: impl Future<Output = ()>,
) -> (io::Result<Summary>, Vec<Value>) {
    let written = Written::default();
    let output = written.clone();
    let files = BatchFiles {
        source,
        num_bytes: None,
        output: Box::new(move || Ok(Box::new(output))),
    };
    let options = BatchOptions {
        max_concurrency,
        shutdown_timeout: Duration::from_millis(200),
    };
    let app = server::app(server.state.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let progress = Progress::new(files.num_bytes);
    let summary = runtime.block_on(batch::run(app, files, options, progress, stop));
    (summary, written.lines())
}

#[test]
fn every_line_has_an_answer_in_its_place() {
    let server = TestServer::start(|request| says(&format!("{} tokens", request.prompt.len())));
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "model": "base"});
    let input = [
        completion("a", "one"),
        request("b", "/v1/chat/completions", &chat),
        String::new(),
        "{\"custom_id\": \"c\", ".to_owned(),
        request(
            "d",
            "/v1/completions",
            &json!({"prompt": "x", "model": "none"}),
        ),
        request(
            "e",
            "/v1/completions",
            &json!({"prompt": "x", "stream": true}),
        ),
        completion("a", "again"),
        request("f", "/v1/files", &json!({})),
        request("g", "/v1/responses", &json!({"input": "hi"})),
        completion("h", "last"),
    ];
    let (summary, lines) = run(&server, &input.join("\n"), 3, pending());
    let expected = Summary {
        num_answered: 9,
        num_failed: 5,
        stopped: false,
    };
    assert_eq!(summary, expected);
    let ids: Vec<&Value> = lines.iter().map(|line| &line["custom_id"]).collect();
    assert_eq!(
        json!(ids),
        json!(["a", "b", null, "d", "e", "a", "f", "g", "h"])
    );
    let status: Vec<&Value> = lines
        .iter()
        .map(|line| &line["response"]["status_code"])
        .collect();
    assert_eq!(
        json!(status),
        json!([200, 200, 400, 404, 400, 400, 400, 200, 200])
    );

    let keys = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    for line in &lines {
        assert_eq!(keys(line), ["id", "custom_id", "response", "error"]);
        assert_eq!(
            keys(&line["response"]),
            ["status_code", "request_id", "body"]
        );
        assert_eq!(
            line["error"].is_null(),
            line["response"]["status_code"] == 200
        );
        assert_eq!(line["error"], line["response"]["body"]["error"]);
    }
    assert_eq!(
        lines[0]["response"]["body"]["choices"][0]["text"],
        "3 tokens"
    );
    let message = &lines[1]["response"]["body"]["choices"][0]["message"];
    assert_eq!(message["content"], "6 tokens");
    let messages: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["error"]["message"].as_str())
        .collect();
    assert_eq!(messages.len(), 5, "{messages:?}");
    for (message, expected) in messages.iter().zip([
        "line 4: EOF",
        "The model `none` does not exist.",
        "line 6: `body.stream`: expected false, found true",
        "line 7: `custom_id`: line 1 has `a` already",
        "line 8: `url`: expected one of /v1/chat/completions, ",
    ]) {
        assert!(message.starts_with(expected), "{expected}: {message}");
    }
}

#[test]
fn pooling_models_answer_their_urls() {
    let server = TestServer::start_pooling(&[], None);
    let input = [
        request("e", "/v1/embeddings", &json!({"input": ["a", "bc"]})),
        request("s", "/score", &json!({"text_1": "a", "text_2": ["a", "b"]})),
        request("v", "/v1/score", &json!({"text_1": "a", "text_2": "a"})),
        request(
            "r",
            "/rerank",
            &json!({"query": "a", "documents": ["a", "b"]}),
        ),
        request(
            "w",
            "/v2/rerank",
            &json!({"query": "a", "documents": ["a", "b"]}),
        ),
        request("c", "/v1/completions", &json!({"prompt": "a"})),
    ];
    let (summary, lines) = run(&server, &input.join("\r\n"), 8, pending());
    assert_eq!(summary.num_failed, 1, "{lines:?}");
    let body = |index: usize| &lines[index]["response"]["body"];
    assert_eq!(body(0)["data"].as_array().unwrap().len(), 2);
    assert_eq!(body(1)["data"].as_array().unwrap().len(), 2);
    assert_eq!(body(3)["results"].as_array().unwrap().len(), 2);
    assert_eq!(lines[5]["response"]["status_code"], 400);
}

#[test]
fn answers_that_wait_and_many_lines_are_in_order() {
    // The first one is the last to end.
    let server = TestServer::start(|request| match request.prompt.len() {
        1 => Play::Tokens(vec![120; 40], FinishReason::Length),
        _ => says("y"),
    });
    let ids: Vec<String> = (0..2000).map(|i| format!("id-{i}")).collect();
    let input: Vec<String> = ids
        .iter()
        .enumerate()
        .map(|(i, id)| completion(id, if i == 0 { "a" } else { "ab" }))
        .collect();
    let (summary, lines) = run(&server, &input.join("\n"), 64, pending());
    assert_eq!((summary.num_answered, summary.num_failed), (2000, 0));
    let found: Vec<&str> = lines
        .iter()
        .map(|line| line["custom_id"].as_str().unwrap())
        .collect();
    assert_eq!(found, ids);
}

/// A disk that breaks behind what it has.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk broke"))
    }
}

#[test]
fn an_input_that_breaks_off_loses_no_answer() {
    let server = TestServer::start(|_| says("y"));
    let input = [completion("a", "a"), completion("b", "ab")].join("\n") + "\n";
    let source = Box::new(BufReader::new(Cursor::new(input).chain(Broken)));
    let (summary, lines) = run_source(&server, source, 8, pending());
    let error = summary.unwrap_err().to_string();
    assert!(error.contains("the disk broke"), "{error}");
    let ids: Vec<&Value> = lines.iter().map(|line| &line["custom_id"]).collect();
    assert_eq!(json!(ids), json!(["a", "b"]));
}

#[test]
fn what_is_answered_before_a_signal_is_written() {
    let server = TestServer::start(|request| match request.prompt.len() {
        1 => Play::Hang(vec![65]),
        _ => says("y"),
    });
    let input = [
        completion("hangs", "a"),
        completion("ends", "ab"),
        completion("ends, too", "abc"),
    ];
    let stop = async { tokio::time::sleep(Duration::from_millis(500)).await };
    let (summary, lines) = run(&server, &input.join("\n"), 2, stop);
    let ids: Vec<&Value> = lines.iter().map(|line| &line["custom_id"]).collect();
    assert_eq!(json!(ids), json!(["ends", "ends, too"]));
    assert!(summary.stopped);
    server.wait_for_aborts(1);
}

#[test]
fn flags_are_those_of_the_engine_and_two_files() {
    let parse = |flags: &str| {
        let flags = flags.split(' ').map(str::to_owned);
        match Command::from_command_line(["server".to_owned()].into_iter().chain(flags)) {
            Ok(Command::RunBatch(batch)) => Ok(batch),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    };
    let batch =
        parse("run-batch -i in.jsonl --output_file out.jsonl --model m --max_num_seqs 8").unwrap();
    assert_eq!(batch.args.input_file, "in.jsonl");
    assert_eq!(batch.config.model.as_deref(), Some("m"));
    assert_eq!(batch.options().max_concurrency, 16);
    for (flags, expected) in [
        (
            "run-batch -i http://x/a -o b",
            "--input-file: expected a path or -, found the URL http://x/a: download it first",
        ),
        (
            "run-batch -i a -o https://x/b",
            "--output-file: expected a path",
        ),
        (
            "run-batch -i a -o b --port 80",
            "--port: `run-batch` listens nowhere",
        ),
        ("run-batch -i a -o b --enable-metrics", "--enable-metrics: "),
        ("run-batch -i a", "--output-file <FILE>"),
        (
            "run-batch -i a -o b --max-model-length 8",
            "--max-model-len",
        ),
        (
            "run-batch -i a -o b -tp 2",
            "--tensor-parallel-size: expected 1, found 2",
        ),
    ] {
        let error = parse(flags).unwrap_err();
        assert!(error.contains(expected), "{flags}: {error}");
    }
    let misplaced = Command::from_command_line(["server", "--port", "1", "bench"]).unwrap_err();
    assert!(
        misplaced
            .to_string()
            .contains("`bench` is a command: write it first")
    );
    for words in [
        &["server"][..],
        &["server", "serve", "m"],
        &["server", "./bench"],
        &["server", "--model", "bench2"],
    ] {
        let command = Command::from_command_line(words.iter().copied()).unwrap();
        assert!(matches!(command, Command::Serve(_)), "{words:?}");
    }
}
