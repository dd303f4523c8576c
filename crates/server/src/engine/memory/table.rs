//! The division of the memory in numbers, and as a text.

use std::fmt;

use kv_paging::KvShape;
use schemars::JsonSchema;
use serde::Serialize;

use super::units::GIB;

/// How the memory of the device is divided when the engine starts. Parts are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct MemoryTable {
    /// Memory of the device, or `--device-memory`.
    pub device_total: u64,
    /// What was free of it with the weights loaded, before the KV cache.
    pub free_before_kv_cache: u64,
    /// What the parts below may take together.
    pub budget: u64,
    /// The model's weights.
    pub weights: u64,
    /// Adapters, at most.
    pub adapters: u64,
    /// Activations of the largest step, at most.
    pub activations: u64,
    /// All blocks of the KV cache.
    pub kv_cache: u64,
    /// The int8 copy of lm_head, on a GPU.
    pub lm_head_int8: Option<u64>,
    /// What a GPU's driver takes for the process, at most.
    pub driver: Option<u64>,
    /// Blocks of the KV cache.
    pub kv_cache_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Tokens of all blocks.
    pub kv_cache_tokens: usize,
    /// Bytes of a token in the KV cache.
    pub kv_cache_bytes_per_token: usize,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// How many requests of that length the KV cache holds at once.
    pub max_concurrency: f64,
}

impl MemoryTable {
    /// Adds what the KV cache has.
    pub(super) fn with_kv_cache(self, kv: &KvShape, max_model_len: usize) -> Self {
        let tokens = kv.num_slots();
        Self {
            kv_cache: kv.num_blocks as u64 * kv.bytes_per_block() as u64,
            kv_cache_blocks: kv.num_blocks,
            block_size: kv.block_size,
            kv_cache_tokens: tokens,
            kv_cache_bytes_per_token: kv.bytes_per_block() / kv.block_size,
            max_model_len,
            max_concurrency: tokens as f64 / max_model_len as f64,
            ..self
        }
    }
}

impl fmt::Display for MemoryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Memory                          GiB")?;
        for (name, bytes) in [
            ("device total", Some(self.device_total)),
            ("free before the KV cache", Some(self.free_before_kv_cache)),
            ("budget", Some(self.budget)),
            ("weights", Some(self.weights)),
            ("adapters, at most", Some(self.adapters)),
            ("activations, at most", Some(self.activations)),
            ("KV cache", Some(self.kv_cache)),
            ("int8 copy of lm_head", self.lm_head_int8),
            ("driver, at most", self.driver),
        ] {
            if let Some(bytes) = bytes {
                writeln!(f, "  {name:<26} {:>8.3}", bytes as f64 / GIB)?;
            }
        }
        writeln!(
            f,
            "KV cache: {} blocks of {} tokens = {} tokens, {} KiB per token",
            self.kv_cache_blocks,
            self.block_size,
            self.kv_cache_tokens,
            self.kv_cache_bytes_per_token / 1024,
        )?;
        write!(
            f,
            "Maximum concurrency for {} tokens per request: {:.1}x",
            self.max_model_len, self.max_concurrency
        )
    }
}
