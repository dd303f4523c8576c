//! A server in this process with the real engine, and a small HTTP client for it.

use std::collections::HashSet;
use std::future::pending;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::engine::{
    Engine, EngineHandle, EngineOutput, EngineStats, GenerateRequest, OutputStream,
};
use server::{AppState, Config};

use crate::model::{BLOCK_BYTES, EOS, TestModel};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(120);
/// Engines start one after the other, so that each test knows its own engine's thread.
static STARTING: Mutex<()> = Mutex::new(());

pub(crate) struct Server {
    pub(crate) engine: EngineHandle,
    pub(crate) address: SocketAddr,
    /// `/proc/self/task/…` of the engine, on Linux.
    pub(crate) thread: Option<PathBuf>,
    runtime: tokio::runtime::Runtime,
}

/// What a completion request was answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Completion {
    /// With the end-of-sequence token if there was one.
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) finish_reason: String,
}

impl Server {
    /// A server of `model` under the name `base`, with 1,000 blocks unless the flags say otherwise.
    pub(crate) fn start(model: &TestModel, flags: &[&str]) -> Self {
        Self::start_in(model.dir(), flags)
    }

    /// The same with the model of a folder.
    pub(crate) fn start_in(dir: &Path, flags: &[&str]) -> Self {
        const POOL: &str = "--kv-cache-memory-bytes";
        let default = [POOL, &blocks(1000)];
        let default = if flags.contains(&POOL) {
            &[][..]
        } else {
            &default
        };
        let roots = match flags.contains(&"--enable-lora") {
            true => &["--lora-roots", "/"][..],
            false => &[],
        };
        Self::of(config_in(dir, &[flags, default, roots].concat()))
    }

    /// A server of the bundled model.
    pub(crate) fn start_bundled(flags: &[&str]) -> Self {
        let base = ["server", "--device", "cpu", "--served-model-name", "base"];
        Self::of(Config::from_command_line([&base, flags].concat()).unwrap())
    }

    fn of(config: Config) -> Self {
        let (engine, info, thread) = {
            let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
            let before = engine_threads();
            let (engine, info) = Engine::start(&config).unwrap();
            (engine, info, new_thread(&before))
        };
        let state = AppState::new(&config, engine.clone(), info);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(server::run(listener, state, pending::<()>()));
        Self {
            engine,
            address,
            thread,
            runtime,
        }
    }

    /// Posts a body; the status and the answer's text.
    pub(crate) fn post_text(&self, path: &str, body: &Value) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            .build()
            .into();
        let mut response = agent
            .post(format!("http://{}{path}", self.address))
            .content_type("application/json")
            .send(body.to_string())
            .unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), text)
    }

    /// Posts a body; the status and the answer, which is JSON.
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.post_text(path, body);
        let json =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
        (status, json)
    }

    /// The whole answer to `/v1/completions`, which must be 200. Greedy unless `extra` says otherwise.
    pub(crate) fn response(&self, prompt: &[u32], extra: Value) -> Value {
        let (status, answer) = self.post("/v1/completions", &body(prompt, extra));
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The choices of an answer.
    pub(crate) fn choices(&self, prompt: &[u32], extra: Value) -> Vec<Completion> {
        let answer = self.response(prompt, extra);
        let choices = answer["choices"].as_array().unwrap();
        choices
            .iter()
            .map(|choice| Completion {
                tokens: token_ids(&choice["logprobs"]["tokens"]),
                text: choice["text"].as_str().unwrap().to_owned(),
                finish_reason: choice["finish_reason"].as_str().unwrap().to_owned(),
            })
            .collect()
    }

    /// The only choice of an answer.
    pub(crate) fn complete(&self, prompt: &[u32], extra: Value) -> Completion {
        let mut choices = self.choices(prompt, extra);
        assert_eq!(choices.len(), 1);
        choices.remove(0)
    }

    /// The same, as server-sent events.
    pub(crate) fn stream(&self, prompt: &[u32], extra: Value) -> Completion {
        let body = merged(body(prompt, extra), json!({ "stream": true }));
        let (status, text) = self.post_text("/v1/completions", &body);
        assert_eq!(status, 200, "{text}");
        let mut events: Vec<&str> = text
            .split_terminator("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{text}");
        let mut all = Completion {
            tokens: Vec::new(),
            text: String::new(),
            finish_reason: String::new(),
        };
        for event in events {
            let event: Value = serde_json::from_str(event).unwrap();
            assert!(event["error"].is_null(), "{event}");
            let choice = &event["choices"][0];
            all.tokens.extend(token_ids(&choice["logprobs"]["tokens"]));
            all.text.push_str(choice["text"].as_str().unwrap());
            if let Some(reason) = choice["finish_reason"].as_str() {
                all.finish_reason.push_str(reason);
            }
        }
        all
    }

    /// Loads an adapter over HTTP.
    pub(crate) fn load_adapter(&self, name: &str, path: &std::path::Path) {
        let body = json!({ "lora_name": name, "lora_path": path });
        let (status, text) = self.post_text("/v1/load_lora_adapter", &body);
        assert_eq!(status, 200, "{text}");
    }

    /// Submits a sequence without HTTP.
    pub(crate) fn submit(&self, request: GenerateRequest) -> OutputStream {
        self.engine.submit(request).unwrap()
    }

    /// The next output of a sequence.
    pub(crate) fn next(&self, outputs: &mut OutputStream) -> Option<EngineOutput> {
        let next = async { tokio::time::timeout(DEADLINE, outputs.next()).await };
        self.runtime.block_on(next).expect("no output in time")
    }

    /// Waits until no accepted sequence is left.
    pub(crate) fn drained(&self) {
        let drained = async { tokio::time::timeout(DEADLINE, self.engine.drained()).await };
        self.runtime.block_on(drained).expect("not drained");
    }

    /// Waits until the published snapshot is as wanted, and returns it.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        wanted: impl Fn(&EngineStats) -> bool,
    ) -> EngineStats {
        let mut stats = self.engine.stats();
        wait(what, || {
            stats = self.engine.stats();
            wanted(&stats)
        });
        stats
    }

    /// Waits until nothing runs or waits and all blocks are free.
    pub(crate) fn wait_until_free(&self) -> EngineStats {
        self.wait_for("all blocks free", |stats| {
            stats.num_free_blocks == stats.num_blocks && stats.num_running + stats.num_waiting == 0
        })
    }
}

/// Waits for a condition.
pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The configuration of a server of `model`, named `base`.
pub(crate) fn config(model: &TestModel, flags: &[&str]) -> Config {
    config_in(model.dir(), flags)
}

/// The same of a folder's model.
pub(crate) fn config_in(dir: &Path, flags: &[&str]) -> Config {
    let dir = dir.to_str().unwrap();
    let fixed = ["server", dir, "--served-model-name", "base"];
    let device = ["--device", "cpu"];
    Config::from_command_line([&fixed[..], &device, flags].concat()).unwrap()
}

/// The value of `--kv-cache-memory-bytes` for this many blocks.
pub(crate) fn blocks(num_blocks: usize) -> String {
    (num_blocks * BLOCK_BYTES).to_string()
}

/// A greedy request for the engine.
pub(crate) fn request(prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: model_qwen::SamplingParams {
            temperature: 0.0,
            ..model_qwen::SamplingParams::default()
        },
        max_tokens,
        min_tokens: 0,
        constraint: None,
        stop_token_ids: EOS.to_vec(),
        adapter: None,
        cache_salt: None,
        prompt_logprobs: None,
    }
}

fn body(prompt: &[u32], extra: Value) -> Value {
    let body = json!({ "prompt": prompt, "max_tokens": 20, "temperature": 0, "logprobs": 0,
        "return_tokens_as_token_ids": true });
    merged(body, extra)
}

fn merged(mut base: Value, extra: Value) -> Value {
    let Value::Object(extra) = extra else {
        panic!("not an object: {extra}")
    };
    base.as_object_mut().unwrap().extend(extra);
    base
}

/// `["token_id:5"]` to `[5]`.
pub(crate) fn token_ids(tokens: &Value) -> Vec<u32> {
    let tokens = tokens.as_array().into_iter().flatten();
    tokens
        .map(|token| {
            let token = token.as_str().unwrap();
            token.strip_prefix("token_id:").unwrap().parse().unwrap()
        })
        .collect()
}

/// The threads of this process that are called `engine`.
fn engine_threads() -> HashSet<PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let tasks = tasks.map(|task| task.unwrap().path());
    tasks
        .filter(|task| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "engine")
        })
        .collect()
}

/// The engine thread that was not there before. A thread names itself, so it may take a moment.
fn new_thread(before: &HashSet<PathBuf>) -> Option<PathBuf> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let mut found = None;
    wait("the engine's thread", || {
        found = engine_threads().difference(before).next().cloned();
        found.is_some()
    });
    found
}
