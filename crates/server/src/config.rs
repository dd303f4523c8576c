//! One validated configuration, made from the command line and an optional TOML file.
//!
//! The file's entries are turned into flags and parsed by the same rules, so that both know the same settings with the same
//! checks. A flag wins over the file, the file wins over the environment.

mod api;
mod api_flags;
pub mod args;
mod check;
mod command_line;
mod dotted;
mod error;
mod file;
mod finetuning;
mod flags;
mod job_priority;
mod keys;
mod kv_events;
mod lora_module;
mod lora_roots;
mod max_model_len;
mod parsers;
pub mod pooling;
mod speculative;
mod stored_responses;
mod structured_outputs;
mod text_file;
mod traces;
pub mod units;
mod vllm_flags;

use std::path::{Path, PathBuf};
use std::time::Duration;

use lora_4bit::ComputeDtype;
use model_qwen::{Dtype, Quantization};

pub use api::{Allowed, ApiConfig, CorsConfig};
pub use api_flags::TEMPLATE_FIELDS;
pub use error::ConfigError;
pub use finetuning::FineTuningConfig;
pub use job_priority::JobPriority;
pub use keys::ApiKey;
pub use kv_events::{Endpoint, EventFormat, KvEventsConfig, KvEventsFlag};
pub use lora_module::LoraModule;
pub use lora_roots::{LoraRootError, LoraRoots};
pub use max_model_len::MaxModelLen;
pub use parsers::{ReasoningParser, ToolCallParser};
pub use pooling::{Convert, PoolerConfig, PoolingConfig, Runner, ScoreMethod, Task};
pub use speculative::{NgramConfig, Speculation};
pub use stored_responses::StoredResponses;
pub use traces::{Sampler, TracesConfig};
pub use vllm_flags::{VLLM_FLAGS, VllmFlag};

use args::Args;
pub(crate) use command_line::{QWEN_BURN, dashes, is_of_qwen_burn, parse, refuse};
pub(crate) use flags::{Flags, OF_API};

/// Everything the server needs to start, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Model folder or hub id; `None` = the bundled model.
    pub model: Option<String>,
    /// Names that requests may use; empty = the model as given.
    pub served_model_names: Vec<String>,
    /// Where to listen.
    pub listen: Listen,
    /// How the HTTP API answers.
    pub api: ApiConfig,
    /// Accepted API keys; empty = no authentication.
    pub api_keys: Vec<ApiKey>,
    /// `--device` as given; `model_qwen::parse_device` reads it.
    pub device: String,
    /// Type of the weights.
    pub dtype: Dtype,
    /// Quantization on load.
    pub quantization: Quantization,
    /// Whether the model generates text or computes embeddings and scores.
    pub pooling: PoolingConfig,
    /// What memory may be used.
    pub memory: MemoryConfig,
    /// Longest prompt plus output.
    pub max_model_len: MaxModelLen,
    /// Most sequences in one step.
    pub max_num_seqs: usize,
    /// Most tokens in one step; otherwise as many as suit the device.
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Whether equal prompt beginnings share blocks.
    pub enable_prefix_caching: bool,
    /// Type in which weights are multiplied.
    pub compute_dtype: ComputeDtype,
    /// Whether no step is captured as a CUDA graph.
    pub enforce_eager: bool,
    /// Whether a GPU compiles kernels and captures graphs before the first request.
    pub warm_up: bool,
    /// Type of the KV cache.
    pub kv_cache_dtype: Dtype,
    /// Adapter limits and the adapters to load at start; `None` without `--enable-lora`.
    pub lora: Option<LoraOptions>,
    /// Whether sampling defaults are those of the model's `generation_config.json`.
    pub model_sampling_defaults: bool,
    /// A Jinja template's source that replaces the model's.
    pub chat_template: Option<String>,
    /// Most requests that wait for their first step.
    pub max_num_queued_reqs: usize,
    /// How long running requests may go on after a signal.
    pub shutdown_timeout: Duration,
    /// Seed for requests without one.
    pub seed: Option<u64>,
    /// Whether tokens are guessed and checked several at once.
    pub speculation: Speculation,
    /// Where changes of the prefix cache are published; `None` = nowhere.
    pub kv_events: Option<KvEventsConfig>,
    /// Where spans of requests are sent; `None` = nowhere.
    pub traces: Option<TracesConfig>,
    /// Training over HTTP; `None` without `--enable-finetuning`.
    pub finetuning: Option<FineTuningConfig>,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port, 0 = any.
        port: u16,
    },
    /// A Unix domain socket.
    Unix(PathBuf),
}

/// What memory may be used; all `None` = the defaults of the device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryConfig {
    /// Fraction of the total memory, 0–1.
    pub gpu_memory_utilization: Option<f64>,
    /// Assumed total memory in bytes.
    pub device_memory: Option<u64>,
    /// KV cache in bytes; wins over the fraction.
    pub kv_cache_memory_bytes: Option<u64>,
}

/// LoRA limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraOptions {
    /// Most adapters in one step.
    pub max_loras: usize,
    /// Adapters that are kept on the host while others are in use; `None` = none.
    pub max_cpu_loras: Option<usize>,
    /// Largest rank.
    pub max_lora_rank: usize,
    /// Adapters to load at start.
    pub modules: Vec<LoraModule>,
    /// Where the adapters must lie that clients load by their path.
    pub roots: LoraRoots,
}

impl Config {
    /// Checks what clap cannot: ranges and contradictions.
    ///
    /// # Errors
    /// [`ConfigError::Flag`].
    pub fn from_args(args: Args) -> Result<Self, ConfigError> {
        if !args.lora_modules.is_empty() && !args.enable_lora {
            return Err(ConfigError::Flag {
                flag: "--lora-modules",
                message: "needs --enable-lora".to_owned(),
            });
        }
        if !args.lora_roots.is_empty() && !args.enable_lora {
            return Err(ConfigError::Flag {
                flag: "--lora-roots",
                message: "needs --enable-lora".to_owned(),
            });
        }
        let traces = args.otlp_traces_endpoint.as_deref();
        let traces = traces.map(|url| TracesConfig::read(url, |name| std::env::var(name).ok()));
        let pooling = PoolingConfig::new(
            (args.runner, args.convert),
            args.task,
            args.pooler_config,
            args.hf_overrides.clone(),
        );
        let pooling = pooling.map_err(|(flag, message)| ConfigError::Flag { flag, message })?;
        let finetuning = FineTuningConfig::from_args(&args)?;
        let api = ApiConfig::from_args(&args)?;
        let mut api_keys = args.api_key;
        if let Some(path) = &args.api_key_file {
            api_keys.extend(keys::read(path)?);
        }
        let lora = LoraOptions {
            roots: LoraRoots::new(&args.lora_roots, &args.lora_modules)?,
            max_loras: args.max_loras,
            max_cpu_loras: args.max_cpu_loras,
            max_lora_rank: args.max_lora_rank,
            modules: args.lora_modules,
        };
        // Wrong values are refused whether or not they are used.
        lora.check(&args.served_model_name)?;
        let lora = args.enable_lora.then_some(lora);
        let config = Self {
            model: args.model.or(args.model_positional),
            served_model_names: args.served_model_name,
            listen: match args.uds {
                Some(path) => Listen::Unix(path),
                None => Listen::Tcp {
                    host: without_brackets(args.host),
                    port: args.port,
                },
            },
            api,
            model_sampling_defaults: args.generation_config == "auto",
            api_keys,
            device: args.device,
            dtype: args.dtype,
            quantization: args.quantization.unwrap_or_default(),
            pooling,
            memory: MemoryConfig {
                gpu_memory_utilization: args.gpu_memory_utilization,
                device_memory: args.device_memory,
                kv_cache_memory_bytes: args.kv_cache_memory_bytes,
            },
            max_model_len: args.max_model_len,
            max_num_seqs: args.max_num_seqs,
            max_num_batched_tokens: args.max_num_batched_tokens,
            block_size: args.block_size,
            enable_prefix_caching: !args.no_enable_prefix_caching,
            compute_dtype: args.compute_dtype,
            enforce_eager: args.enforce_eager,
            warm_up: !args.no_warm_up,
            kv_cache_dtype: args.kv_cache_dtype,
            lora,
            chat_template: args.chat_template.map(template_source).transpose()?,
            max_num_queued_reqs: args.max_num_queued_reqs,
            shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
            seed: args.seed,
            speculation: args.speculative_config,
            traces: traces.transpose()?,
            kv_events: args.kv_events_config.unwrap_or_default().0,
            finetuning,
        };
        config.check()?;
        Ok(config)
    }
}

impl Default for Config {
    /// The bundled model, with the settings of a command line without flags.
    fn default() -> Self {
        Self {
            model: None,
            served_model_names: Vec::new(),
            listen: Listen::Tcp {
                host: "127.0.0.1".to_owned(),
                port: 8000,
            },
            api: ApiConfig::default(),
            model_sampling_defaults: true,
            api_keys: Vec::new(),
            device: "auto".to_owned(),
            dtype: Dtype::Auto,
            quantization: Quantization::None,
            pooling: PoolingConfig::default(),
            memory: MemoryConfig::default(),
            max_model_len: MaxModelLen::Auto,
            max_num_seqs: 256,
            max_num_batched_tokens: None,
            block_size: 16,
            enable_prefix_caching: true,
            compute_dtype: ComputeDtype::Auto,
            enforce_eager: false,
            warm_up: true,
            kv_cache_dtype: Dtype::Auto,
            lora: None,
            chat_template: None,
            max_num_queued_reqs: 1024,
            shutdown_timeout: Duration::from_secs(30),
            seed: None,
            speculation: Speculation::Auto,
            kv_events: None,
            traces: None,
            finetuning: None,
        }
    }
}

impl Default for LoraOptions {
    /// Eight adapters of any rank up to 256, none of them loaded at start.
    fn default() -> Self {
        Self {
            max_loras: 8,
            max_cpu_loras: None,
            max_lora_rank: 256,
            modules: Vec::new(),
            roots: LoraRoots::default(),
        }
    }
}

/// A file's content, or the text itself if it looks like a template.
fn template_source(text: String) -> Result<String, ConfigError> {
    if text.contains("{{") || text.contains("{%") {
        return Ok(text);
    }
    text_file::read(Path::new(&text)).map_err(|error| ConfigError::Flag {
        flag: "--chat-template",
        message: format!("{text} is neither a template nor a readable file: {error}"),
    })
}

/// An IPv6 address as URLs write it, `[::1]`, without what sets it apart from the port there.
fn without_brackets(host: String) -> String {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.map(str::to_owned).unwrap_or(host)
}

#[cfg(test)]
mod tests;
