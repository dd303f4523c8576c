//! The program on model folders, adapters and command lines as people have them, started as they start it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod observed;
#[path = "../support/program.rs"]
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
        (json!({}), -237.487, 1024),
        (json!({"rope_scaling": yarn}), -273.347, 4096),
        (
            json!({"rope_scaling": yarn, "max_position_embeddings": 4096}),
            -273.347,
            4096,
        ),
        (json!({"rope_scaling": weaker}), -244.947, 4096),
        (
            json!({"rope_theta": null, "rope_parameters": theta(10000.0), "rope_scaling": yarn}),
            -273.347,
            4096,
        ),
        (json!({"rope_parameters": theta(500_000.0)}), -309.855, 1024),
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
        ("BASE=words", "is that of the base model"),
        (&format!("a={}", folder.path().display()), "words?"),
    ] {
        let model = bundled();
        let base = model.to_str().unwrap();
        let module = &module.replace("BASE", base);
        let flags = ["--enable-lora", "--lora-modules", module];
        let said = refusal(command(base, &flags));
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
