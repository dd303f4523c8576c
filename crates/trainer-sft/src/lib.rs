//! Supervised fine-tuning of Qwen-architecture models: LoRA, QLoRA, and full-parameter training.
//!
//! A run reads top to bottom: [`args::Args`] → [`config::Config`] → [`data::Datasets`] (records of seven formats,
//! rendered with the model's chat template into tokens and a loss mask) → [`batch::DataLoader`] (packed batches) → the training
//! loop. [`Training`] starts it, also on records that a program has in memory.
//!
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod batch;
pub mod chat_format;
pub mod checkpoint;
mod commands;
pub mod config;
pub mod data;
mod digest;
mod endings;
mod error;
mod flat;
mod footprint;
pub mod full;
mod gate;
pub mod generation;
pub mod grpo;
mod identity;
pub mod lora;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod optimizer;
mod output;
pub mod parameters;
pub mod preference;
pub mod preview;
pub mod program;
pub mod prompts;
pub mod replicas;
mod report;
pub mod rewards;
mod run;
mod sample_data;
mod samples;
pub mod schedule;
mod setup;
mod space;
pub mod step;
mod summary;
mod template_facts;
mod tensorboard;
mod text_file;
pub mod tools;
pub mod trainer;
mod training;

pub use burn;

pub use config::args;
pub use data::render;
pub use error::TrainError;
pub use footprint::Footprint;
pub use gate::WorkUnit;
pub use identity::identity_of_base;
pub use output::discard_unused_output;
pub use preview::preview;
pub use samples::Sample;
pub use space::free as free_bytes;
pub use summary::{StepReport, Summary};
pub use training::{Training, train, train_until};
