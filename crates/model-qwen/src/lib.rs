//! Qwen models as a library: Qwen2, Qwen2.5, Qwen3 (dense) and DeepSeek-R1-Distill-Qwen.
//!
//! One file holds the forward pass ([`model`]), in the names of the checkpoint. It never sees a
//! KV block: keys and values go through [`kv_paging::KvCache`]. Every linear layer is a
//! [`lora_4bit::Linear`], dense or NF4, with any number of LoRA adapters, so that training and
//! serving run the same code. [`ChatModel`] joins model, tokenizer and template.
//!
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod adapter;
pub mod chat;
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod detokenizer;
pub mod device;
mod dtype;
mod exp;
#[cfg(feature = "clap")]
pub mod flags;
pub mod generate;
pub mod generation_config;
mod head;
pub mod hub;
pub mod kernels;
pub mod load;
mod mlp;
pub mod model;
pub mod quantize;
mod random;
pub mod rotary;
pub mod sampling;
pub mod save;
pub mod tokenizer;

pub use burn;

pub use adapter::AdapterError;
pub use chat::{ChatError, ChatModel, ReplyOptions};
pub use chat_template::{ChatTemplate, RenderOptions, TemplateError};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::{ConfigError, QwenConfig, Yarn};
pub use detokenizer::Detokenizer;
pub use device::{DeviceError, DeviceMemory, device_memory, is_gpu, parse_device};
pub use dtype::Dtype;
pub use generate::{GenerateRequest, generate};
pub use generation_config::{GenerationConfig, GenerationConfigError};
pub use hub::{HubOptions, ResolveError, bundled_model_dir, resolve_model, resolve_model_with};
#[cfg(feature = "gpu")]
pub use kernels::graph::CapturedStep;
pub use load::{LoadError, LoadOptions, Quantization};
#[cfg(feature = "gpu")]
pub use model::{DecodeKind, StepChoice};
pub use model::{DecoderLayer, QwenModel};
pub use rotary::Rotary;
pub use sampling::{
    Draw, SampledToken, Sampler, SamplingError, SamplingParams, TopLogits, logprobs_of,
};
pub use save::SaveError;
pub use tokenizer::{Tokenizer, TokenizerError};
