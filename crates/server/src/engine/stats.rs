//! What the engine tells the HTTP side about itself.

use std::path::PathBuf;

use model_qwen::PoolingType;

use super::why_pooling::WhyPooling;
use crate::kv_events::KvEventCounts;

/// What the HTTP side must know to refuse a request before it reaches the engine.
#[derive(Clone, Debug)]
pub struct EngineLimits {
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Most sequences that wait for their first step; one more is refused.
    pub max_num_queued_reqs: usize,
    /// How the hidden states of a text become one vector, and what says so; `None` for a model that generates text.
    pub pooling: Option<(PoolingType, WhyPooling)>,
}

/// A loaded LoRA adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Name that requests give as `model`.
    pub name: String,
    /// PEFT folder it was loaded from.
    pub path: PathBuf,
}

/// A snapshot of the engine, published after every step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences that hold blocks.
    pub num_running: usize,
    /// Sequences that wait for blocks or for a place in the batch.
    pub num_waiting: usize,
    /// Those of the waiting that wait for a slot for their adapter.
    pub num_deferred: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Blocks that no running sequence holds.
    pub num_free_blocks: usize,
    /// Share of the blocks that running sequences hold, 0 to 1.
    pub kv_cache_usage: f64,
    /// Tokens per block.
    pub block_size: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Preemptions. One sequence may be preempted many times.
    pub num_preemptions: u64,
    /// Steps that were launched before the tokens of the step before were known.
    pub num_steps_ahead: u64,
    /// Prompt tokens of all accepted sequences.
    pub prompt_tokens: u64,
    /// Generated tokens of all sequences.
    pub generation_tokens: u64,
    /// Adapters of running sequences.
    pub running_adapters: Vec<String>,
    /// Adapters of waiting sequences.
    pub waiting_adapters: Vec<String>,
    /// Adapter slots.
    pub max_loras: usize,
    /// What has come of drafts; `None` without speculative decoding.
    pub speculation: Option<SpeculationStats>,
    /// What has become of events of the KV cache; `None` without `--kv-events-config`.
    pub kv_events: Option<KvEventCounts>,
}

/// What has come of the drafts of speculative decoding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpeculationStats {
    /// Drafts that were computed.
    pub num_drafts: u64,
    /// Their tokens.
    pub num_draft_tokens: u64,
    /// How many of these were right.
    pub num_accepted_tokens: u64,
    /// How many of these were the first of their draft, the second and so on.
    pub accepted_per_position: Vec<u64>,
}
