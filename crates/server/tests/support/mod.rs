//! A server on a free port with a scripted engine, and a small HTTP client.
//!
//! The tokenizer is byte-level without merges: token ids 0–255 are the bytes, so that a text's tokens are its UTF-8 bytes and
//! every multi-byte character spans tokens. 256 is `<|im_start|>`, 257 is `<|im_end|>` (the end-of-sequence token).

mod engine;
mod model;
mod schema;

use std::collections::HashMap;
use std::future::pending;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use model_qwen::pooling::{Labels, ProblemType};
use model_qwen::{ChatTemplate, PoolingType};
use serde_json::{Value, json};
use server::engine::{
    EngineLimits, GenerateRequest, PoolingInfo, ScoreTemplate, WhyPooling, channel,
};
use server::{AppState, Config, ModelInfo, api_description};
use tokio::sync::oneshot;

use engine::FakeEngine;
pub(crate) use engine::{Play, Seen, bytes, says};
pub(crate) use model::{IM_END, IM_START, MAX_MODEL_LEN};
use model::{model, with_tokens};

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) state: AppState,
    /// `/openapi.json`, once a body was compared with it.
    document: OnceLock<Value>,
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
        Self::start_classifier(flags, score, ProblemType::SingleLabel)
    }

    /// The same with a row of `score` for each label.
    pub(crate) fn start_classifier(
        flags: &[&str],
        score: Option<&[f32]>,
        problem_type: ProblemType,
    ) -> Self {
        let names = ["relevant", "other", "third"].into_iter();
        let num_labels = score.map_or(0, |score| score.len() / 4);
        let pooling = PoolingInfo {
            pooling_type: PoolingType::Last,
            use_activation: true,
            dimensions: None,
            hidden_size: 4,
            score: score.map(Arc::from),
            labels: Labels {
                names: names
                    .map(|name| Some(name.to_owned()))
                    .take(num_labels)
                    .collect(),
                problem_type,
            },
            template: ScoreTemplate::Joined,
            max_len: None,
            do_lower_case: false,
            why: WhyPooling::Flags,
        };
        let model = ModelInfo {
            pooling: Some(pooling),
            ..model()
        };
        Self::start_model(flags, model, |request| {
            match request.prompt == b"hang".map(u32::from) {
                true => Play::Hang(Vec::new()),
                false => says("x"),
            }
        })
    }

    /// A server whose model has a limit of its own, in tokens.
    pub(crate) fn start_limited(
        max_new_tokens: usize,
        script: impl Fn(&GenerateRequest) -> Play + Send + 'static,
    ) -> Self {
        let mut model = model();
        model.generation_config.max_new_tokens = Some(max_new_tokens);
        Self::start_model(&[], model, script)
    }

    /// A server whose model has these special tokens, from id 258 on.
    pub(crate) fn start_with_tokens(
        flags: &[&str],
        tokens: &[&str],
        script: impl Fn(&GenerateRequest) -> Play + Send + 'static,
    ) -> Self {
        Self::start_model(flags, with_tokens(tokens), script)
    }

    /// A server whose model has this chat template.
    pub(crate) fn start_with_template(
        template: &str,
        script: impl Fn(&GenerateRequest) -> Play + Send + 'static,
    ) -> Self {
        let template = ChatTemplate::from_source(template, serde_json::Map::new()).unwrap();
        let model = ModelInfo {
            chat_template: Some(template),
            ..model()
        };
        Self::start_model(&[], model, script)
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
            vocab_size: model.tokenizer.vocab_size(),
            max_num_queued_reqs: config.max_num_queued_reqs,
            pooling: model.pooling.as_ref().map(PoolingInfo::limits),
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
        state.start_finetuning(&config).unwrap();
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
            document: OnceLock::new(),
            shutdown: Some(shutdown),
            served: Some(served),
            runtime,
        }
    }

    /// Sends a request whose answer nobody reads yet.
    pub(crate) fn begin(&self, path: &str, body: &Value) -> TcpStream {
        begin(self.address, path, body)
    }

    /// Sends a request. If it is answered, `/openapi.json` has to say that it may be.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let answer = self.send(ureq::http::Method::POST, path, body.to_string(), None);
        if answer.status == 200
            && let Some(error) = self.schema_error(path, body)
        {
            panic!("{path} answers what its schema has not: {error}\n{body}");
        }
        answer
    }

    /// What is wrong with a body by `/openapi.json`.
    pub(crate) fn schema_error(&self, path: &str, body: &Value) -> Option<String> {
        let document = self.document.get_or_init(|| api_description(&self.state));
        schema::error(document, path, body)
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

/// Sends a request to the server at an address.
pub(crate) fn begin(address: SocketAddr, path: &str, body: &Value) -> TcpStream {
    let mut connection = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json");
    let len = body.len();
    write!(connection, "{head}\r\ncontent-length: {len}\r\n\r\n{body}").unwrap();
    connection
}

pub(crate) fn merged(mut base: Value, extra: Value) -> Value {
    let Value::Object(extra) = extra else {
        panic!("not an object")
    };
    base.as_object_mut().unwrap().extend(extra);
    base
}
