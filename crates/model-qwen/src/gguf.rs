//! GGUF, the file format of llama.cpp: models and LoRA adapters written as its own converters write them.
//!
//! [`write_model`] writes one file with the weights, the architecture, the tokenizer and the chat template of a model
//! folder; [`write_adapter`] writes the matrices of an adapter. Of a model, memory holds a few rows of one tensor, or one
//! matrix whole where it was stored in NF4.
//!
//! Sources: `docs/gguf.md` of ggml, and `convert_hf_to_gguf.py`, `convert_lora_to_gguf.py`, `gguf-py` and
//! `ggml/src/ggml-quants.c` of llama.cpp.

mod adapter;
mod error;
mod metadata;
mod model;
mod names;
mod quants;
mod vocabulary;
mod writer;

pub use adapter::write_adapter;
pub use error::GgufError;
pub use model::{GgufPlan, write_model};
pub use names::gguf_name;
pub use quants::TensorType;
