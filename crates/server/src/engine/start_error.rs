//! Why the engine does not start.

use model_qwen::{
    DeviceError, GenerationConfigError, LoadError, NoBundledData, ResolveError, TemplateError,
    TokenizerError,
};

use super::error::AdapterError;
use super::memory::MemoryError;
use crate::config::ConfigError;
use crate::kv_events::ListenError;

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum StartError {
    /// A setting.
    Config(#[from] ConfigError),
    /// There is no bundled model here.
    NoModel(#[from] NoBundledData),
    /// `--device`.
    Device(#[from] DeviceError),
    /// The hub, or a folder that is not there.
    Resolve(#[from] ResolveError),
    /// Tokenizer files.
    Tokenizer(#[from] TokenizerError),
    /// The chat template of the model.
    Template(#[from] TemplateError),
    /// The chat template that replaces it.
    #[error("--chat-template: {0}")]
    ChatTemplate(TemplateError),
    /// `generation_config.json`.
    GenerationConfig(#[from] GenerationConfigError),
    /// Config or weights.
    Load(#[from] LoadError),
    /// It does not fit.
    Memory(#[from] MemoryError),
    /// Where events of the KV cache are published.
    KvEvents(#[from] ListenError),
    /// Limits that contradict each other.
    Scheduler(#[from] kv_paging::ConfigError),
    /// `--lora-modules`.
    Adapter(#[from] AdapterError),
    /// The device has failed before the first request.
    #[error(
        "the device cannot compute a step that requests may need: {0}; decrease --gpu-memory-utilization, --max-num-seqs or \
         --max-num-batched-tokens, or start with --no-warm-up"
    )]
    WarmUp(String),
    /// It has panicked.
    #[error("loading the model failed: {0}")]
    Loading(std::io::Error),
    /// The operating system refused a thread.
    #[error("cannot start the engine thread: {0}")]
    Thread(std::io::Error),
}

impl StartError {
    /// Whether the settings are wrong, whatever the model and the machine.
    pub fn is_of_settings(&self) -> bool {
        matches!(
            self,
            Self::Config(_) | Self::Device(_) | Self::ChatTemplate(_) | Self::Scheduler(_)
        )
    }
}
