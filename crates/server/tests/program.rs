//! The program on model folders, adapters and command lines as people have them, started as they start it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/program.rs"]
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Server, bundled, start};
use tempfile::TempDir;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 22966200\n";

/// A folder with the files of the bundled model, to be changed.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for entry in fs::read_dir(bundled()).unwrap().flatten() {
            let target = folder.path().join(entry.file_name());
            match entry.file_name() == "model.safetensors" {
                true => std::os::unix::fs::symlink(entry.path(), target).unwrap(),
                false => drop(fs::copy(entry.path(), target).unwrap()),
            }
        }
        Self(folder)
    }

    /// With these keys in a file; null removes one.
    fn with(self, file: &str, keys: Value) -> Self {
        let path = self.0.path().join(file);
        let mut all: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let all = all.as_object_mut().unwrap();
        for (key, value) in keys.as_object().unwrap().clone() {
            match value {
                Value::Null => drop(all.shift_remove(&key)),
                value => drop(all.insert(key, value)),
            }
        }
        fs::write(path, serde_json::to_vec(all).unwrap()).unwrap();
        self
    }

    fn write(self, file: &str, content: &str) -> Self {
        let path = self.0.path().join(file);
        let _ = fs::remove_file(&path);
        fs::write(path, content).unwrap();
        self
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

fn command(model: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(["--model", model, "--port", "0", "--device", "cpu"]);
    command.args(flags).stdin(Stdio::null());
    command.env("RUST_LOG", "warn").env_remove("VLLM_API_KEY");
    command
}

/// What the program says when it does not start.
#[track_caller]
fn refusal(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

impl Server {
    fn get(&self, path: &str) -> Value {
        let mut answer = ureq::get(format!("{}{path}", self.url)).call().unwrap();
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    }

    fn chat(&self, model: &str) -> (u16, Value) {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let body =
            json!({"model": model, "messages": messages, "max_tokens": 60, "temperature": 0});
        self.post("/v1/chat/completions", body)
    }
}

/// The sum of a text's log-probabilities, and the longest text.
fn sum_and_limit(folder: &Folder) -> (f64, u64) {
    let server = start(command(folder.path(), &[]));
    let text = "Once upon a time there was a little duck who lived in a big house near the lake. ";
    let body = json!({"prompt": text.repeat(6), "echo": true, "logprobs": 0, "max_tokens": 1});
    let (status, answer) = server.post("/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array();
    let known: Vec<f64> = logprobs.unwrap().iter().filter_map(Value::as_f64).collect();
    let sum = known[..known.len() - 1].iter().sum();
    let limit = server.get("/v1/models")["data"][0]["max_model_len"].as_u64();
    (sum, limit.unwrap())
}

/// The sums are those of an independent forward pass in float64 with transformers' formulas.
#[test]
fn every_place_of_rope_counts() {
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024});
    let mut weaker = yarn.clone();
    weaker["attn_factor"] = json!(0.878_248_856_286_941_9);
    let theta = |theta: f64| json!({"rope_theta": theta, "rope_type": "default"});
    for (keys, sum, limit) in [
        (json!({}), -199.315, 1024),
        (json!({"rope_scaling": yarn}), -202.276, 4096),
        (
            json!({"rope_scaling": yarn, "max_position_embeddings": 4096}),
            -202.276,
            4096,
        ),
        (json!({"rope_scaling": weaker}), -202.409, 4096),
        (
            json!({"rope_theta": null, "rope_parameters": theta(10000.0), "rope_scaling": yarn}),
            -202.276,
            4096,
        ),
        (json!({"rope_parameters": theta(500_000.0)}), -209.547, 1024),
    ] {
        let found = sum_and_limit(&Folder::new().with("config.json", keys.clone()));
        assert!((found.0 - sum).abs() < 0.02, "{keys}: {found:?}");
        assert_eq!(found.1, limit, "{keys}");
    }
}

#[test]
fn the_end_of_a_turn_and_special_tokens_are_found_where_they_are() {
    let end = json!({"eos_token_id": 0});
    let folder = Folder::new()
        .with("config.json", end.clone())
        .with("generation_config.json", end.clone());
    let (_, answer) = start(command(folder.path(), &[])).chat("");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    // Only the chat template says it, as in base models.
    let folder = folder.with(
        "tokenizer_config.json",
        json!({"eos_token": "<|endoftext|>"}),
    );
    let (_, answer) = start(command(folder.path(), &[])).chat("");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");

    let folder = Folder::new().with(
        "tokenizer_config.json",
        json!({"chat_template": null, "bos_token": "<|endoftext|>"}),
    );
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}";
    let server = start(command(folder.path(), &["--chat-template", template]));
    let messages = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let (_, tokens) = server.post("/tokenize", messages);
    let (_, text) = server.post("/detokenize", json!({"tokens": tokens["tokens"]}));
    assert_eq!(text["prompt"], "<|endoftext|>user: Hi<|im_end|>");
}

#[test]
fn ids_that_say_nothing_are_none() {
    for (file, keys) in [
        ("generation_config.json", json!({"pad_token_id": -1})),
        ("config.json", json!({"bos_token_id": -1})),
        ("config.json", json!({"eos_token_id": [2, -1]})),
    ] {
        let folder = Folder::new().with(file, keys.clone());
        let (status, answer) = start(command(folder.path(), &[])).chat("");
        assert_eq!(status, 200, "{keys}: {answer}");
    }
}

#[test]
fn what_cannot_be_loaded_is_named_by_its_cause() {
    let page = "<!DOCTYPE html><html>Sign in</html>";
    let quantized =
        |config: Value| Folder::new().with("config.json", json!({"quantization_config": config}));
    for (folder, expected) in [
        (
            Folder::new().write("model.safetensors", POINTER),
            "model.safetensors: this is a Git LFS pointer",
        ),
        (
            Folder::new().write("tokenizer.json", POINTER),
            "tokenizer.json: this is a Git LFS pointer",
        ),
        (
            Folder::new().write("model.safetensors", page),
            "model.safetensors: this is a web page",
        ),
        (
            Folder::new().write("tokenizer.json", page),
            "tokenizer.json: this is a web page",
        ),
        (
            quantized(json!({"quant_method": "gptq", "bits": 4})),
            "found `gptq`",
        ),
        (
            quantized(json!({"quant_method": "bitsandbytes", "load_in_8bit": true})),
            "field `quantization_config.load_in_8bit`",
        ),
        (quantized(json!({"quant_method": "fp8"})), "found `fp8`"),
        (
            Folder::new().with("generation_config.json", json!({"temperature": -1})),
            "temperature: expected a finite number, 0 or more, found -1\n",
        ),
    ] {
        let said = refusal(command(folder.path(), &[]));
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(!said.contains("header too large"), "{said}");
    }
}

#[test]
fn adapters_that_cannot_be_used_say_why() {
    let folder = TempDir::new().unwrap();
    let adapter = |name: &str, tensors: &[(&str, [usize; 2])]| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
            "target_modules": ["q_proj", "lm_head", "embed_tokens"]});
        fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (tensor, shape) in tensors {
            let start = end;
            end += 2 * shape[0] * shape[1];
            header.insert(
                (*tensor).to_owned(),
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
            );
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.resize(file.len() + end, 0);
        fs::write(path.join("adapter_model.safetensors"), file).unwrap();
        format!("a={}", path.display())
    };
    let head = ["lora_A", "lora_B"].map(|part| format!("base_model.model.lm_head.{part}.weight"));
    let words = "base_model.model.model.embed_tokens.lora_embedding_A";
    let head = adapter("head", &[(&head[0], [4, 320]), (&head[1], [8192, 4])]);
    let words = adapter("words", &[(words, [4, 8192])]);
    for (module, expected) in [
        (
            head.as_str(),
            "it changes `lm_head`, but adapters of the head",
        ),
        (
            words.as_str(),
            "it changes `embed_tokens`, but adapters of the head",
        ),
        ("sql=acme/sql-lora", "an adapter must be a local one"),
        (&format!("a={}", folder.path().display()), "words?"),
    ] {
        let model = bundled();
        let flags = ["--enable-lora", "--lora-modules", module];
        let said = refusal(command(model.to_str().unwrap(), &flags));
        assert!(said.contains(expected), "{module}: {said}");
    }
}

#[test]
fn documented_command_lines_start() {
    let model = bundled();
    let model = model.to_str().unwrap();
    for flags in [
        "--quantization bitsandbytes --load-format bitsandbytes",
        "--load-format auto --tensor-parallel-size 1 --trust-remote-code --disable-log-requests",
        "-tp 1 -O3 --generation-config auto --enable-chunked-prefill --max_model_len 512",
        "--allowed-origins [\"*\"]",
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        assert_eq!(start(command(model, &flags)).chat("").0, 200, "{flags:?}");
    }
    let mut empty_key = command(model, &[]);
    empty_key.env("VLLM_API_KEY", "");
    assert_eq!(start(empty_key).chat("").0, 200);
    assert!(refusal(command(model, &["--api-key", ""])).contains("the key is empty"));
    // What a pooling model never does is off by default, and refused if it is asked for.
    let pools = ["--runner", "pooling", "--convert", "embed"];
    let guesses = r#"{"method": "ngram", "num_speculative_tokens": 4}"#;
    let flags = [&pools[..], &["--speculative-config", guesses]].concat();
    let said = refusal(command(model, &flags));
    assert!(
        said.contains("--speculative-config: a pooling model"),
        "{said}"
    );
}

#[test]
fn tools_that_the_template_does_not_show_are_named_once() {
    let mut server = start(command(bundled().to_str().unwrap(), &[]));
    let tool = json!({"type": "function", "function": {"name": "look"}});
    let body =
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "tools": [tool]});
    for _ in 0..2 {
        assert_eq!(server.post("/v1/chat/completions", body.clone()).0, 200);
    }
    server.program.kill().unwrap();
    let mut said = String::new();
    let mut stderr = server.program.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("does not show `tools`").count(), 1, "{said}");
}

/// Another program has fetched the files that it needed, and there is no network.
#[test]
fn files_that_the_cache_lacks_are_named() {
    let cache = TempDir::new().unwrap();
    let repository = cache.path().join("models--acme--story");
    let commit = "0".repeat(40);
    let snapshot = repository.join("snapshots").join(&commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), &commit).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::os::unix::fs::symlink(bundled().join(name), snapshot.join(name)).unwrap();
    }
    let offline = || {
        let mut command = command("acme/story", &[]);
        command
            .env("HF_HUB_CACHE", cache.path())
            .env("HF_HUB_OFFLINE", "1");
        command
    };
    let server = start(offline());
    let (status, answer) = server.chat("");
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400);
    assert!(
        message.contains("The cache of acme/story lacks"),
        "{message}"
    );
    assert!(message.contains("tokenizer_config.json"), "{message}");
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    let said = refusal(offline());
    assert!(said.contains("which lacks model.safetensors"), "{said}");
}

/// Answers everything with 200; the bodies that came.
fn collector() -> (String, std::sync::mpsc::Receiver<Value>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                let num = stream.read(&mut buffer).unwrap_or(0);
                bytes.extend(&buffer[..num]);
                let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
                let body = end.map(|end| serde_json::from_slice(&bytes[end + 4..]));
                if let Some(Ok(body)) = body {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    let _ = (stream.write_all(answer), sender.send(body));
                    break;
                }
                if num == 0 {
                    break;
                }
            }
        }
    });
    (url, receiver)
}

/// The bytes that a replay from batch 0 on has, as a DEALER of ZMTP 3.0 gets them.
fn replayed(port: u16) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL".to_vec();
    greeting.resize(64, 0);
    greeting.extend(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
    // An empty frame, then the number.
    greeting.extend(b"\x01\0\0\x08\0\0\0\0\0\0\0\0");
    stream.write_all(&greeting).unwrap();
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while !bytes.ends_with(b"\x01\x08\xff\xff\xff\xff\xff\xff\xff\xff\0\0") {
        let num = stream.read(&mut buffer).unwrap();
        assert!(num > 0, "{bytes:?}");
        bytes.extend(&buffer[..num]);
    }
    bytes
}

#[test]
fn a_request_is_seen_in_the_cache_s_events_and_in_a_trace() {
    let (collector, spans) = collector();
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let events = json!({
        "enable_kv_cache_events": true, "endpoint": "tcp://*:0", "topic": "kv@me",
        "replay_endpoint": format!("tcp://127.0.0.1:{port}"),
    });
    let flags = [
        "--kv-events-config",
        &events.to_string(),
        "--otlp-traces-endpoint",
        &collector,
        "--served-model-name",
        "duck",
    ];
    let mut command = command(bundled().to_str().unwrap(), &flags);
    command.env("OTEL_SERVICE_NAME", "ducks");
    let mut server = start(command);
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let body = json!({
        "prompt": "Once upon a time there was a little duck who lived near the lake and sang.",
        "n": 2, "max_tokens": 40, "ignore_eos": true, "temperature": 0.5, "stream": true,
    });
    let mut answer = ureq::post(format!("{}/v1/completions", server.url))
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"))
        .header("x-request-id", "mine")
        .send(body.to_string())
        .unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let events = replayed(port);
    for part in [
        &b"kv@me"[..],
        b"BlockStored",
        b"token_ids",
        b"full_attention",
    ] {
        assert!(events.windows(part.len()).any(|bytes| bytes == part));
    }

    // The last spans are sent before the program ends.
    let pid = server.program.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    assert!(server.program.wait().unwrap().success());
    let span = std::iter::from_fn(|| spans.try_recv().ok())
        .map(|body| body["resourceSpans"][0].clone())
        .inspect(|resource| {
            let service = &resource["resource"]["attributes"][0];
            assert_eq!(service["value"]["stringValue"], "ducks");
        })
        .flat_map(|resource| {
            resource["scopeSpans"][0]["spans"]
                .as_array()
                .unwrap()
                .clone()
        })
        .find(|span| span["traceId"] == trace_id)
        .unwrap();
    let attribute = |name: &str| {
        let all = span["attributes"].as_array().unwrap().iter();
        let mut found = all.filter(|attribute| attribute["key"] == format!("gen_ai.{name}"));
        found.next().map(|attribute| attribute["value"].clone())
    };
    for (name, value) in [
        ("request.id", json!({"stringValue": "mine"})),
        ("response.model", json!({"stringValue": "duck"})),
        ("request.n", json!({"intValue": "2"})),
        ("request.max_tokens", json!({"intValue": "40"})),
        ("request.temperature", json!({"doubleValue": 0.5})),
        ("usage.completion_tokens", json!({"intValue": "80"})),
        ("usage.num_sequences", json!({"intValue": "2"})),
    ] {
        assert_eq!(attribute(name), Some(value), "{name}: {span}");
    }
    let seconds = |name: &str| {
        attribute(&format!("latency.{name}")).unwrap()["doubleValue"]
            .as_f64()
            .unwrap()
    };
    let (first, all) = (seconds("time_to_first_token"), seconds("e2e"));
    assert!(
        0.0 < first && first < all && seconds("time_in_model_inference") < all,
        "{span}"
    );
    assert_eq!(span["parentSpanId"], "b7ad6b7169203331");
}

#[test]
fn a_server_that_is_open_to_all_says_so() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    fs::write(keys.path(), "sk-secret\n").unwrap();
    let keys = keys.path().to_str().unwrap();
    let model = bundled();
    for (flags, warns) in [
        (&["--host", "0.0.0.0"][..], true),
        (&["--host", "0.0.0.0", "--api-key-file", keys], false),
        (&[], false),
    ] {
        let mut command = command(model.to_str().unwrap(), flags);
        command.env("RUST_LOG", "info");
        let mut server = start(command);
        let status = server.post("/tokenize", json!({"prompt": "a"})).0;
        assert_eq!(status, if flags.contains(&keys) { 401 } else { 200 });
        server.program.kill().unwrap();
        let mut said = String::new();
        let mut stderr = server.program.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(said.contains("nobody needs a key"), warns, "{said}");
        assert!(!said.contains("sk-secret"), "{said}");
    }
}
