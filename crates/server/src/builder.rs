//! An engine from a program's own values, without a command line.

use std::path::PathBuf;

use burn::tensor::Device;
use lora_4bit::ComputeDtype;
use model_qwen::{Dtype, Quantization, parse_device};

use crate::config::{Config, LoraModule, LoraOptions, MaxModelLen};
use crate::engine::{DeviceUse, Engine, StartError, StartProgress};
use crate::text::TextEngine;

impl Engine {
    /// An engine for `model`, a folder or (with the cargo feature `hub`) a name on the Hub.
    ///
    /// ```no_run
    /// use server::engine::Engine;
    /// use server::text::TextRequest;
    ///
    /// let engine = Engine::builder("Qwen/Qwen2.5-0.5B-Instruct").max_model_len(4096).start()?;
    /// let names = ["Ada", "Grace"].map(|name| TextRequest::chat(format!("Who was {name}?")));
    /// for completion in engine.generate(names) {
    ///     println!("{}", completion?.text);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(model: impl Into<String>) -> EngineBuilder {
        Config {
            model: Some(model.into()),
            ..Config::default()
        }
        .into()
    }
}

impl From<Config> for EngineBuilder {
    /// The engine's part of a configuration, as of a command line.
    fn from(config: Config) -> Self {
        Self {
            config,
            device: None,
        }
    }
}

/// Settings of an engine, those of the `server` program without its flags. What is not set is as [`Config::default`] has it.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct EngineBuilder {
    config: Config,
    device: Option<Device>,
}

impl EngineBuilder {
    /// Where the model runs; otherwise what [`parse_device`] finds for `auto`.
    pub fn device(mut self, device: &Device) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// Type of the weights in memory.
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.config.dtype = dtype;
        self
    }

    /// Quantization while loading; [`Quantization::Nf4`] with double quantization.
    pub fn quantization(mut self, quantization: Quantization) -> Self {
        self.config.quantization = quantization;
        self
    }

    /// Type in which weights are multiplied.
    pub fn compute_dtype(mut self, compute_dtype: ComputeDtype) -> Self {
        self.config.compute_dtype = compute_dtype;
        self
    }

    /// Type of the KV cache, f32 or bf16.
    pub fn kv_cache_dtype(mut self, dtype: Dtype) -> Self {
        self.config.kv_cache_dtype = dtype;
        self
    }

    /// Size of the KV cache in bytes; otherwise it is made from the free memory.
    pub fn kv_cache_memory_bytes(mut self, bytes: u64) -> Self {
        self.config.memory.kv_cache_memory_bytes = Some(bytes);
        self
    }

    /// Longest prompt plus output in tokens; otherwise the most that fits, at most the model's own limit.
    pub fn max_model_len(mut self, tokens: usize) -> Self {
        self.config.max_model_len = MaxModelLen::Tokens(tokens);
        self
    }

    /// Most sequences in one step.
    pub fn max_num_seqs(mut self, num: usize) -> Self {
        self.config.max_num_seqs = num;
        self
    }

    /// Most tokens in one step; otherwise as many as suit the device.
    pub fn max_num_batched_tokens(mut self, num: usize) -> Self {
        self.config.max_num_batched_tokens = Some(num);
        self
    }

    /// Fraction of the device's total memory for this process, above 0 and at most 1.
    pub fn gpu_memory_utilization(mut self, fraction: f64) -> Self {
        self.config.memory.gpu_memory_utilization = Some(fraction);
        self
    }

    /// Memory in bytes that the device is taken to have, whatever it has.
    pub fn device_memory(mut self, bytes: u64) -> Self {
        self.config.memory.device_memory = Some(bytes);
        self
    }

    /// Tokens per block of the KV cache.
    pub fn block_size(mut self, tokens: usize) -> Self {
        self.config.block_size = tokens;
        self
    }

    /// Whether every kernel is launched by itself, without CUDA graphs; for finding errors.
    pub fn enforce_eager(mut self, eager: bool) -> Self {
        self.config.enforce_eager = eager;
        self
    }

    /// Whether a GPU compiles kernels and captures graphs before the first request, so that none waits for them.
    pub fn warm_up(mut self, warm_up: bool) -> Self {
        self.config.warm_up = warm_up;
        self
    }

    /// Whether equal prompt beginnings share blocks of the KV cache.
    pub fn enable_prefix_caching(mut self, enable: bool) -> Self {
        self.config.enable_prefix_caching = enable;
        self
    }

    /// Most requests that wait for their first step; one more is refused.
    pub fn max_num_queued_reqs(mut self, num: usize) -> Self {
        self.config.max_num_queued_reqs = num;
        self
    }

    /// Seed for requests that bring none; otherwise a random one.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = Some(seed);
        self
    }

    /// A chat template's source that replaces the model's.
    pub fn chat_template(mut self, source: impl Into<String>) -> Self {
        self.config.chat_template = Some(source.into());
        self
    }

    /// Loads the PEFT folder `path` under `name`, by which requests choose it. Call it once for each adapter.
    pub fn adapter(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let lora = self.config.lora.get_or_insert_with(LoraOptions::default);
        lora.modules.push(LoraModule {
            name: name.into(),
            path: path.into(),
        });
        lora.max_loras = lora.max_loras.max(lora.modules.len());
        self
    }

    /// Room for this many adapters, so that [`EngineHandle::load_adapter`](crate::engine::EngineHandle::load_adapter) may load some
    /// later.
    pub fn max_loras(mut self, num: usize) -> Self {
        let lora = self.config.lora.get_or_insert_with(LoraOptions::default);
        lora.max_loras = num.max(lora.modules.len());
        self
    }

    /// Largest rank of an adapter; each takes only the memory of its own rank.
    pub fn max_lora_rank(mut self, rank: usize) -> Self {
        let lora = self.config.lora.get_or_insert_with(LoraOptions::default);
        lora.max_lora_rank = rank;
        self
    }

    /// Loads the model and the adapters, and starts the engine's thread, which lives as long as the [`TextEngine`] and the
    /// handles made from it.
    ///
    /// # Errors
    /// [`StartError`]: whatever is missing, broken, out of range, or does not fit into memory.
    pub fn start(self) -> Result<TextEngine, StartError> {
        self.config.check()?;
        let device = match self.device {
            Some(device) => device,
            None => parse_device(&self.config.device)?,
        };
        let progress = StartProgress::default();
        let (handle, model) = Engine::start_on(&self.config, device, DeviceUse::Shared, &progress)?;
        Ok(TextEngine::new(handle, model))
    }
}
