//! Paged key/value memory for serving decoder models: who owns which block, which sequence computes which tokens
//! in the next step, and the attention that reads keys and values through block tables.
//!
//! The crate has two halves that meet only in a list of block numbers:
//!
//! * **Bookkeeping, without tensors.** [`BlockPool`] counts references and keeps free blocks in LRU order,
//!   [`BlockTable`] maps a sequence's positions to blocks, the prefix cache finds blocks that already hold a
//!   prompt's keys and values, and [`Scheduler`] fills every step up to one token budget. It is plain Rust that
//!   never sees a device, and is property-tested as such.
//! * **Tensors.** The paged cache on a device, the packed description of one step, and attention over both.
//!
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

// Bookkeeping, without tensors.
mod block_pool;
mod block_table;
mod prompt_lookup;
mod scheduler;
mod stats;

pub use burn;

pub use block_pool::{AdapterKey, BlockId, BlockPool, CacheEvent, CacheKey, PrefixId, PrefixMatch};
pub use block_table::BlockTable;
pub use prompt_lookup::{Guess, LookupConfig, PromptLookup};
pub use scheduler::{
    AddError, Chunk, ConfigError, NewSequence, Sampled, Scheduler, SchedulerConfig, SequenceId,
    Step,
};
pub use stats::SchedulerStats;

// Plain descriptions of a step, which the kernels read.
mod batch_layout;
mod rotary;
mod step_layout;

pub use batch_layout::{BatchLayout, SequenceChunk, SequenceSpan};
pub use rotary::Rotary;
pub use step_layout::{CHOICE_WORDS, DecodeToken, StepRow};

// Tensors: the kernels import the descriptions above, and the modules below import the kernels.
mod attention;
mod batch;
mod cache;
mod causal;
mod decode_step;
pub mod kernels;
mod training;

pub use attention::{Attention, PagedAttention};
pub use batch::AttentionBatch;
pub use cache::{KvShape, PagedKvCache};
pub use causal::CausalAttention;
pub use decode_step::{DecodeStep, RecordedAttention};
pub use kernels::training::{HeadNormInput, HeadNorms, HeadShape};
pub use training::TrainingAttention;
