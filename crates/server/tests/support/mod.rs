//! A server on a free port with a scripted engine, and a small HTTP client.
//!
//! The tokenizer is byte-level without merges: token ids 0–255 are the bytes, so that a text's tokens are its UTF-8 bytes and
//! every multi-byte character spans tokens. 256 is `<|im_start|>`, 257 is `<|im_end|>` (the end-of-sequence token).

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model_qwen::{ChatTemplate, GenerationConfig, PoolingType, Tokenizer};
use serde_json::{Map, Value, json};
use server::engine::{
    AdapterError, AdapterInfo, EngineCommand, EngineLimits, EngineOutput, EngineReceiver,
    EngineStats, FinishReason, GenerateRequest, ModelDetails, PoolingInfo, ScoreTemplate,
    SequenceError, SpeculationStats, Submission, TokenLogprobs, channel,
};
use server::{AppState, Config, ModelInfo};
use tokio::sync::oneshot;

pub(crate) const IM_START: u32 = 256;
pub(crate) const IM_END: u32 = 257;
pub(crate) const MAX_MODEL_LEN: usize = 200;
const VOCAB_SIZE: usize = 258;
const TEMPLATE: &str = "{% for m in messages %}{{ m.role | first }}:{{ m.content }};{% endfor %}\
    {% if tools %}tools={{ tools | length }};{% endif %}{{ extra_word }}\
    {% if add_generation_prompt %}<|im_start|>{% endif %}";

/// What the engine does with a request.
pub(crate) enum Play {
    /// These tokens, then the end.
    Tokens(Vec<u32>, FinishReason),
    /// These tokens, then an end before the end.
    Fails(Vec<u32>, SequenceError),
    /// These tokens, then nothing until the client aborts.
    Hang(Vec<u32>),
    /// Nothing at all, and the sequence stays in the queue.
    Queue,
    /// These events and no `Finished`, as if the engine had died.
    Die(Vec<u32>),
}

/// The tokens of a text, then a stop at the end-of-sequence token.
pub(crate) fn says(text: &str) -> Play {
    Play::Tokens(bytes(text).chain([IM_END]).collect(), FinishReason::Stop)
}

pub(crate) fn bytes(text: &str) -> impl Iterator<Item = u32> {
    text.bytes().map(u32::from)
}

type Script = Box<dyn Fn(&GenerateRequest) -> Play + Send>;

/// What the engine saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: Vec<GenerateRequest>,
    pub(crate) num_aborted: usize,
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) state: AppState,
    shutdown: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The `data:` events of a stream, which must end with `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let mut events: Vec<&str> = self
            .text
            .split_terminator("\n\n")
            .map(|e| e.strip_prefix("data: ").unwrap())
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"));
        events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }
}

impl TestServer {
    pub(crate) fn start(script: impl Fn(&GenerateRequest) -> Play + Send + 'static) -> Self {
        Self::start_with(&[], script)
    }

    pub(crate) fn start_with(
        flags: &[&str],
        script: impl Fn(&GenerateRequest) -> Play + Send + 'static,
    ) -> Self {
        Self::start_model(flags, model(), script)
    }

    /// A server whose vectors are `[number of tokens, first token, last token, 1]`; with `score`, scores are products with it.
    pub(crate) fn start_pooling(flags: &[&str], score: Option<&[f32]>) -> Self {
        let pooling = PoolingInfo {
            pooling_type: PoolingType::Last,
            use_activation: true,
            dimensions: None,
            hidden_size: 4,
            score: score.map(Arc::from),
            template: ScoreTemplate::Joined,
            max_len: None,
            do_lower_case: false,
        };
        let model = ModelInfo {
            pooling: Some(pooling),
            ..model()
        };
        Self::start_model(flags, model, |_| says("x"))
    }

    fn start_model(
        flags: &[&str],
        model: ModelInfo,
        script: impl Fn(&GenerateRequest) -> Play + Send + 'static,
    ) -> Self {
        let flags = [&["server", "--served-model-name", "base", "alias"], flags].concat();
        let config = Config::from_command_line(flags).unwrap();
        let limits = EngineLimits {
            max_model_len: MAX_MODEL_LEN,
            vocab_size: VOCAB_SIZE,
            max_num_queued_reqs: config.max_num_queued_reqs,
            pooling: model.pooling.as_ref().map(|pooling| pooling.pooling_type),
        };
        let (engine, receiver) = channel(limits);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let fake = FakeEngine {
            receiver,
            seen: Arc::clone(&seen),
            script: Box::new(script),
            open: HashMap::new(),
        };
        std::thread::spawn(move || fake.run());

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let state = AppState::new(&config, engine, model);
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, signal) = oneshot::channel();
        let served = runtime.spawn(server::run(listener, state.clone(), async {
            if signal.await.is_err() {
                pending::<()>().await;
            }
        }));
        Self {
            address,
            seen,
            state,
            shutdown: Some(shutdown),
            served: Some(served),
            runtime,
        }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(ureq::http::Method::POST, path, body.to_string(), None)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(ureq::http::Method::GET, path, String::new(), None)
    }

    pub(crate) fn send(
        &self,
        method: ureq::http::Method,
        path: &str,
        body: String,
        key: Option<&str>,
    ) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        let mut request = ureq::http::Request::builder()
            .method(&method)
            .uri(format!("http://{}{path}", self.address));
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        if method == ureq::http::Method::POST {
            request = request.header("content-type", "application/json");
        }
        let mut response = if method == ureq::http::Method::POST {
            agent.run(request.body(body).unwrap()).unwrap()
        } else {
            agent.run(request.body(()).unwrap()).unwrap()
        };
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.body_mut().read_to_string().unwrap(),
        }
    }

    /// Sends a request with these headers and nothing else.
    pub(crate) fn raw(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        for header in headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let mut response = match method {
            "POST" => agent.run(request.body(body.to_owned()).unwrap()).unwrap(),
            _ => agent.run(request.body(()).unwrap()).unwrap(),
        };
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.body_mut().read_to_string().unwrap(),
        }
    }

    pub(crate) fn chat(&self, extra: Value) -> Answer {
        self.post(
            "/v1/chat/completions",
            &merged(
                json!({ "messages": [{ "role": "user", "content": "hi" }] }),
                extra,
            ),
        )
    }

    pub(crate) fn complete(&self, extra: Value) -> Answer {
        self.post(
            "/v1/completions",
            &merged(json!({ "prompt": "hi", "max_tokens": 50 }), extra),
        )
    }

    pub(crate) fn last_request(&self) -> GenerateRequest {
        self.seen.lock().unwrap().requests.last().unwrap().clone()
    }

    /// Waits until the engine was told to abort `count` sequences.
    pub(crate) fn wait_for_aborts(&self, count: usize) {
        let start = Instant::now();
        while self.seen.lock().unwrap().num_aborted < count {
            assert!(start.elapsed() < Duration::from_secs(10), "no abort");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn wait_for_requests(&self, count: usize) {
        let start = Instant::now();
        while self.seen.lock().unwrap().requests.len() < count {
            assert!(start.elapsed() < Duration::from_secs(10), "no request");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a sequence was submitted, whether or not the engine has looked at it.
    pub(crate) fn wait_for_submission(&self) {
        let start = Instant::now();
        while self.state.engine().num_queued() == 0 {
            assert!(start.elapsed() < Duration::from_secs(10), "no submission");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Gives the shutdown signal.
    pub(crate) fn signal_shutdown(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Waits for `server::run` to return.
    pub(crate) fn join(&mut self) {
        self.runtime.block_on(self.served.take().unwrap()).unwrap();
    }
}

pub(crate) fn merged(mut base: Value, extra: Value) -> Value {
    let Value::Object(extra) = extra else {
        panic!("not an object")
    };
    base.as_object_mut().unwrap().extend(extra);
    base
}

struct FakeEngine {
    receiver: EngineReceiver,
    seen: Arc<Mutex<Seen>>,
    script: Script,
    open: HashMap<u64, Submission>,
}

impl FakeEngine {
    fn run(mut self) {
        let mut adapters: Vec<AdapterInfo> = Vec::new();
        self.receiver.publish_stats(EngineStats {
            num_blocks: 8,
            num_free_blocks: 6,
            block_size: 16,
            speculation: Some(SpeculationStats {
                num_drafts: 7,
                num_draft_tokens: 20,
                num_accepted_tokens: 9,
                accepted_per_position: vec![6, 3],
            }),
            ..EngineStats::default()
        });
        while let Some(command) = self.receiver.recv() {
            match command {
                EngineCommand::Submit(submission) => self.play(*submission),
                EngineCommand::Abort(id) | EngineCommand::Complete(id) => {
                    self.open.remove(&id);
                    self.seen.lock().unwrap().num_aborted += 1;
                }
                EngineCommand::LoadAdapter {
                    name,
                    path,
                    replaces,
                    reply,
                } => {
                    if replaces {
                        adapters.retain(|adapter| adapter.name != name);
                    }
                    let result = if !path.exists() {
                        let reason = "no such folder".to_owned();
                        Err(AdapterError::NotFound { path, reason })
                    } else if adapters.iter().any(|adapter| adapter.name == name) {
                        Err(AdapterError::AlreadyLoaded { name })
                    } else {
                        adapters.push(AdapterInfo { name, path });
                        self.receiver.set_adapters(adapters.clone());
                        Ok(())
                    };
                    reply.send(result).unwrap();
                }
                EngineCommand::UnloadAdapter { name, reply } => {
                    let before = adapters.len();
                    adapters.retain(|adapter| adapter.name != name);
                    self.receiver.set_adapters(adapters.clone());
                    let removed = adapters.len() < before;
                    reply
                        .send(if removed {
                            Ok(())
                        } else {
                            Err(AdapterError::Unknown { name })
                        })
                        .unwrap();
                }
                EngineCommand::Shutdown => {}
            }
        }
    }

    fn play(&mut self, submission: Submission) {
        let request = &submission.request;
        self.seen.lock().unwrap().requests.push(request.clone());
        let fake = |id: u32, n: usize| TokenLogprobs {
            id,
            logprob: -0.25,
            top: [
                (id, -0.25),
                (0xf0, f32::NEG_INFINITY),
                (u32::from(b'z'), -4.0),
            ][..n.min(3)]
                .to_vec(),
        };
        if submission.pooling.is_some() {
            let ids = [request.prompt.first(), request.prompt.last()];
            let [first, last] = ids.map(|id| *id.unwrap() as f32);
            submission.sink.send(EngineOutput::Pooled {
                values: vec![request.prompt.len() as f32, first, last, 1.0],
                num_cached_tokens: 1,
            });
            let reason = FinishReason::Length;
            submission.sink.send(EngineOutput::Finished { reason });
            return;
        }
        let play = (self.script)(request);
        if let Some(n) = request.prompt_logprobs {
            let logprobs = request
                .prompt
                .iter()
                .enumerate()
                .map(|(i, &id)| (i > 0).then(|| fake(id, n)));
            submission
                .sink
                .send(EngineOutput::PromptLogprobs(logprobs.collect()));
        }
        let (tokens, end, stays) = match play {
            Play::Tokens(tokens, reason) => {
                (tokens, Some(EngineOutput::Finished { reason }), false)
            }
            Play::Fails(tokens, error) => (tokens, Some(EngineOutput::Failed(error)), false),
            Play::Hang(tokens) => (tokens, None, true),
            Play::Queue => {
                self.open.insert(submission.id, submission);
                return;
            }
            Play::Die(tokens) => (tokens, None, false),
        };
        for id in tokens {
            let logprobs = request.sampling.logprobs.map(|n| fake(id, n));
            submission.sink.send(EngineOutput::Token {
                id,
                logprobs,
                num_cached_tokens: 2,
            });
        }
        if let Some(end) = end {
            submission.sink.send(end);
        }
        if stays {
            self.open.insert(submission.id, submission);
        }
    }
}

fn model() -> ModelInfo {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    write_tokenizer(&path);
    ModelInfo {
        tokenizer: Tokenizer::from_file(&path).unwrap(),
        chat_template: Some(ChatTemplate::from_source(TEMPLATE, Map::new()).unwrap()),
        generation_config: GenerationConfig {
            eos_token_ids: vec![IM_END],
            temperature: Some(0.7),
            top_k: Some(20),
            ..GenerationConfig::default()
        },
        model_id: "org/tiny".to_owned(),
        dir: std::path::PathBuf::new(),
        pooling: None,
        max_model_len: MAX_MODEL_LEN,
        memory_table: String::new(),
        details: ModelDetails {
            architecture: "qwen2".to_owned(),
            num_parameters: 494_032_768,
            num_bytes: 988_097_536,
            quantization: "BF16",
            context_length: 32_768,
            num_layers: 24,
            hidden_size: 896,
            ..ModelDetails::default()
        },
    }
}

/// GPT-2's byte-to-character table without merges.
fn write_tokenizer(path: &Path) {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256;
    let vocab: Map<String, Value> = (0..256)
        .map(|byte| {
            let code = if printable(byte) { byte } else { shifted };
            shifted += u32::from(!printable(byte));
            (char::from_u32(code).unwrap().to_string(), json!(byte))
        })
        .collect();
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(IM_START, "<|im_start|>"), special(IM_END, "<|im_end|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    std::fs::write(path, tokenizer.to_string()).unwrap();
}
