//! What every request handler shares.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model_qwen::{JsonStyle, Tokenizer};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::{ApiConfig, ApiKey, Config, LoraRoots};
use crate::engine::{EngineHandle, ModelInfo};
use crate::error::ApiError;
use crate::finetuning::FineTuning;
use crate::grammars::Grammars;
use crate::metrics::{HttpMetrics, Metrics};
use crate::special_tokens::SpecialTokens;
use crate::stored_responses::ResponseStore;
use crate::traces::Tracer;

/// Bytes of large bodies that are in memory at once.
const BODY_MEMORY: usize = 40 << 20;
/// Bytes of bodies whose texts are tokenized at once, which takes a hundred times their memory.
const TOKENIZER_MEMORY: usize = 512 << 10;
/// Grammars that are compiled at once.
const MAX_COMPILING: usize = 4;

/// Shared by all handlers; clones are cheap.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    engine: EngineHandle,
    model: ModelInfo,
    served_model_names: Vec<String>,
    api_keys: Vec<ApiKey>,
    lora_roots: Option<LoraRoots>,
    shutdown_timeout: Duration,
    started: u64,
    metrics: Metrics,
    stored_responses: ResponseStore,
    grammars: Grammars,
    http_metrics: HttpMetrics,
    tracer: Option<Tracer>,
    api: ApiConfig,
    fingerprint: String,
    longest_token: usize,
    special_tokens: Option<SpecialTokens>,
    body_memory: Arc<Semaphore>,
    tokenizer_memory: Arc<Semaphore>,
    compile_turns: Arc<Semaphore>,
    finetuning: OnceLock<FineTuning>,
    api_description: OnceLock<Value>,
    cut: watch::Sender<bool>,
}

impl AppState {
    /// Joins engine, model and configuration.
    pub fn new(config: &Config, engine: EngineHandle, model: ModelInfo) -> Self {
        let served_model_names = match config.served_model_names.as_slice() {
            [] => vec![model.model_id.clone()],
            names => names.to_vec(),
        };
        let stored = &config.api.stored_responses;
        let stored_bytes = usize::try_from(stored.max_bytes).unwrap_or(usize::MAX);
        Self(Arc::new(Shared {
            stored_responses: ResponseStore::new(stored.max_num, stored_bytes),
            fingerprint: fingerprint(&model),
            longest_token: longest_token(&model.tokenizer),
            special_tokens: SpecialTokens::of(&model.tokenizer),
            grammars: Grammars::new(&model, engine.vocab_size()),
            tracer: (config.traces.as_ref())
                .and_then(|traces| Tracer::start(traces, &served_model_names[0])),
            api: config.api.clone(),
            body_memory: Arc::new(Semaphore::new(BODY_MEMORY)),
            tokenizer_memory: Arc::new(Semaphore::new(TOKENIZER_MEMORY)),
            compile_turns: Arc::new(Semaphore::new(MAX_COMPILING)),
            finetuning: OnceLock::new(),
            api_description: OnceLock::new(),
            cut: watch::Sender::new(false),
            engine,
            model,
            served_model_names,
            api_keys: config.api_keys.clone(),
            lora_roots: config.lora.as_ref().map(|lora| lora.roots.clone()),
            shutdown_timeout: config.shutdown_timeout,
            started: unix_time(),
            metrics: Metrics::default(),
            http_metrics: HttpMetrics::default(),
        }))
    }

    /// Begins to work on fine-tuning jobs, if the configuration says so.
    ///
    /// # Errors
    /// When `--finetuning-dir` cannot be used.
    pub fn start_finetuning(&self, config: &Config) -> std::io::Result<()> {
        let started = FineTuning::start(config, &self.0.engine, &self.0.model)?;
        if let Some(finetuning) = started {
            // A second call is refused by the lock of the folder.
            let _ = self.0.finetuning.set(finetuning);
        }
        Ok(())
    }

    /// Files and jobs; `None` where the server trains nothing.
    pub fn finetuning(&self) -> Option<&FineTuning> {
        self.0.finetuning.get()
    }

    /// The engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }

    /// The model.
    pub fn model(&self) -> &ModelInfo {
        &self.0.model
    }

    /// Names of the base model; the first is the main one.
    pub fn served_model_names(&self) -> &[String] {
        &self.0.served_model_names
    }

    /// Where the adapters must lie that clients load; `None` if there are no adapters.
    pub fn lora_roots(&self) -> Option<&LoraRoots> {
        self.0.lora_roots.as_ref()
    }

    /// Ends the answers that are not complete with an error, because the server ends.
    pub(crate) fn cut_answers(&self) {
        self.0.cut.send_replace(true);
    }

    /// Becomes true when [`Self::cut_answers`] is called.
    pub(crate) fn cut(&self) -> watch::Receiver<bool> {
        self.0.cut.subscribe()
    }

    /// How long running requests may go on after a signal.
    pub fn shutdown_timeout(&self) -> Duration {
        self.0.shutdown_timeout
    }

    /// When the server started, in Unix seconds.
    pub fn started(&self) -> u64 {
        self.0.started
    }

    /// Latency histograms.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Counts of HTTP requests.
    pub fn http_metrics(&self) -> &HttpMetrics {
        &self.0.http_metrics
    }

    /// What makes spans of requests, if they are sent somewhere.
    pub fn tracer(&self) -> Option<&Tracer> {
        self.0.tracer.as_ref()
    }

    /// Whether a request may pass: there are no keys, or it brought one of them.
    pub fn authorizes(&self, bearer: Option<&str>) -> bool {
        let keys = &self.0.api_keys;
        // Every key is compared, so that the time does not tell which one matched.
        keys.is_empty()
            || bearer.is_some_and(|token| {
                keys.iter()
                    .fold(false, |found, key| found | key.matches(token))
            })
    }

    /// The model name for the answer and the adapter it selects.
    ///
    /// # Errors
    /// 404 for an unknown name.
    pub fn resolve_model(
        &self,
        requested: Option<&str>,
    ) -> Result<(String, Option<String>), ApiError> {
        match requested {
            None | Some("") => Ok((self.0.served_model_names[0].clone(), None)),
            Some(name)
                if self
                    .0
                    .served_model_names
                    .iter()
                    .any(|served| served == name) =>
            {
                Ok((name.to_owned(), None))
            }
            Some(name)
                if self
                    .0
                    .engine
                    .adapters()
                    .iter()
                    .any(|adapter| adapter.name == name) =>
            {
                Ok((name.to_owned(), Some(name.to_owned())))
            }
            Some(name) => Err(ApiError::model_not_found(name)),
        }
    }

    /// How the API answers.
    pub fn api(&self) -> &ApiConfig {
        &self.0.api
    }

    /// The description of the API, which `make` makes when it is asked for first.
    pub(crate) fn api_description(&self, make: impl FnOnce() -> Value) -> &Value {
        self.0.api_description.get_or_init(make)
    }

    /// Answers that later requests refer to.
    pub fn stored_responses(&self) -> &ResponseStore {
        &self.0.stored_responses
    }

    /// Most alternatives per token in log-probabilities; `usize::MAX` = no limit.
    pub fn max_logprobs(&self) -> usize {
        self.0.api.max_logprobs
    }

    /// Whether requests may bring a chat template.
    pub fn trust_request_chat_template(&self) -> bool {
        self.0.api.trust_request_chat_template
    }

    /// Variables of the chat template that requests may override.
    pub fn default_chat_template_kwargs(&self) -> &Map<String, Value> {
        &self.0.api.default_chat_template_kwargs
    }

    /// How answers in JSON are written, unless a request says otherwise.
    pub(crate) fn json_style(&self) -> &JsonStyle {
        &self.0.api.json_style
    }

    /// Compiled grammars.
    pub(crate) fn grammars(&self) -> &Grammars {
        &self.0.grammars
    }

    /// `system_fingerprint`: the same as long as version, model and context are.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// Length in bytes of the longest token.
    pub(crate) fn longest_token(&self) -> usize {
        self.0.longest_token
    }

    /// What the tokenizer puts around a text, if it is the same for each.
    pub(crate) fn special_tokens(&self) -> Option<&SpecialTokens> {
        self.0.special_tokens.as_ref()
    }

    /// Waits until a large body of so many bytes has room in memory.
    pub(crate) async fn body_memory(&self, num_bytes: usize) -> Option<OwnedSemaphorePermit> {
        take(&self.0.body_memory, num_bytes.min(BODY_MEMORY)).await
    }

    /// Waits until a body of so many bytes may be tokenized.
    pub(crate) async fn tokenizer_memory(&self, num_bytes: usize) -> Option<OwnedSemaphorePermit> {
        take(&self.0.tokenizer_memory, num_bytes.min(TOKENIZER_MEMORY)).await
    }

    /// Waits until a grammar may be compiled.
    pub(crate) async fn compile_turn(&self) -> Option<OwnedSemaphorePermit> {
        take(&self.0.compile_turns, 1).await
    }
}

/// Waits for permits; the semaphores are never closed.
async fn take(semaphore: &Arc<Semaphore>, num: usize) -> Option<OwnedSemaphorePermit> {
    let num = u32::try_from(num).unwrap_or(u32::MAX);
    Arc::clone(semaphore).acquire_many_owned(num).await.ok()
}

fn longest_token(tokenizer: &Tokenizer) -> usize {
    let ids = 0..tokenizer.vocab_size() as u32;
    let lengths = ids.map(|id| tokenizer.token_bytes(id).len());
    lengths.max().unwrap_or(1).max(1)
}

fn fingerprint(model: &ModelInfo) -> String {
    let mut hasher = DefaultHasher::new();
    (&model.model_id, model.max_model_len).hash(&mut hasher);
    let hash = hasher.finish() as u32;
    format!("server-{}-{hash:08x}", env!("CARGO_PKG_VERSION"))
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
