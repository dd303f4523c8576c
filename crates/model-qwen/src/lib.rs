//! Qwen models as a library: Qwen2, Qwen2.5, Qwen3 (dense) and DeepSeek-R1-Distill-Qwen.
//!
//! One file holds the forward pass ([`model`]), in the names of the checkpoint. It never sees a
//! KV block: every layer asks a [`kv_paging::Attention`]. Every linear layer is a
//! [`lora_4bit::Linear`], dense or NF4, with any number of LoRA adapters, so that training and
//! serving run the same code. [`choose()`] takes hidden states to tokens, and a [`GraphRunner`] runs steps of one token per
//! sequence, as CUDA graphs where a device has them. [`ChatModel`] joins model, tokenizer and template.
//!
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod adapter;
mod bundled;
mod causes;
pub mod chat;
pub mod chat_template;
pub mod checkpoint;
pub mod choose;
pub mod config;
pub mod constraint;
pub mod detokenizer;
pub mod device;
mod device_failure;
mod dtype;
mod end_tokens;
#[cfg(feature = "clap")]
pub mod flags;
pub mod generate;
pub mod generation_config;
pub mod gguf;
pub mod graph_runner;
pub mod hub;
mod json_file;
pub mod kernels;
mod links;
pub mod load;
pub mod merge;
mod mlp;
pub mod model;
mod model_folder;
mod modules;
mod packed_step;
pub mod pooling;
pub mod quantize;
mod random;
pub mod rotary;
mod row_boundaries;
pub mod sampling;
pub mod save;
mod special_tokens;
pub mod sys;
mod throttle;
pub mod tokenizer;
pub mod wide_integers;

pub use burn;

pub use adapter::AdapterError;
pub use bundled::{DATA_VARIABLE, NoBundledData, bundled_data_dir, bundled_model_dir};
pub use causes::with_causes;
pub use chat::{ChatError, ChatModel, ReplyOptions};
pub use chat_template::{ChatTemplate, RenderOptions, TemplateError};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use choose::{Choice, ChoiceRow, MAX_LOGIT_ROWS, Want, choose};
pub use config::{ConfigError, Llama3, LongRope, QwenConfig, RopeScaling, Yarn};
pub use constraint::{
    Constraint, ConstraintFactory, Grammar, GrammarError, JsonStyle, TokenMask, drop_null_keywords,
};
pub use detokenizer::Detokenizer;
pub use device::{
    DeviceError, DeviceMemory, GPU_MEMORY_UTILIZATION, device_memory, device_name, has_nccl,
    is_gpu, parse_device,
};
pub use device_failure::{catch_device_failure, device_causes};
pub use dtype::Dtype;
pub use end_tokens::end_tokens;
pub use generate::{GenerateError, GenerateRequest, generate};
pub use generation_config::{GenerationConfig, GenerationConfigError};
pub use graph_runner::{DecodeRow, GraphRunner, Pending};
pub use hub::{HubOptions, ResolveError, resolve_model, resolve_model_with, unfetched};
pub use json_file::{JsonFileError, json_type};
pub use load::{
    FolderShapes, LayerProgress, LoadError, LoadOptions, Quantization, is_headless, score_weights,
};
pub use merge::{MergeError, MergedWeights};
pub use model::{DecoderLayer, LINEARS, QwenModel, linear_features, linear_names};
pub use model_folder::{ModelFolderError, RUN_FILES, TEMPLATES, TEXT_FILES, copy_modules};
pub use packed_step::PackedStep;
pub use pooling::{Architecture, PoolingType, ScoreHead, ScoreTokens, SentenceTransformer};
pub use sampling::{
    Ahead, Draw, LogprobsMode, RowMask, SampledToken, Sampler, SamplingError, SamplingParams,
    ThinkingBudget, TopLogits, logprobs_of,
};
pub use save::{SaveError, stored_dtype};
pub use special_tokens::special_tokens;
pub use throttle::Throttle;
pub use tokenizer::{Tokenizer, TokenizerError};
