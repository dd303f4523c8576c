//! What fits: weights, adapters, activations and KV blocks within the memory the server may use.

mod estimate;
mod room;
mod table;
mod units;

use burn::tensor::{DType, Device};
use kv_paging::KvShape;
use model_qwen::{DeviceMemory, GPU_MEMORY_UTILIZATION, QwenModel, device_memory};
use sysinfo::System;

use crate::config::{Config, MaxModelLen};
use estimate::{activation_bytes, adapter_bytes, unpacked_bytes};
use room::Room;
pub use table::MemoryTable;
use units::{GIB, KIB, MIB};

/// Context, compiled kernels, CUDA graphs and pools of a CUDA process. Besides weights, cache and activations, `nvidia-smi`
/// showed 0.87 GiB on an H200 while 8 sequences of 4,000 tokens ran (docs/benchmarks/2026-11-23-cuda.md).
const GPU_CONTEXT: u64 = 960 << 20;
/// Tokens of a step, and those on a GPU that has room for their activations anyway; both as in vLLM's server.
const BATCHED_TOKENS: usize = 2048;
const BATCHED_TOKENS_OF_LARGE: usize = 8192;
/// Memory of such a GPU.
const LARGE_GPU: u64 = 70 << 30;
/// Without any flag the KV cache of a CPU server gets at most this.
const CPU_KV_LIMIT: u64 = 4 << 30;

/// Why the model does not fit.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The budget is spent before the first KV block.
    #[error(
        "no memory is left for the KV cache: the budget is {}, and weights, adapters, activations and the smallest cache, or the \
         one that is asked for, need {}; increase --device-memory or --gpu-memory-utilization (or --kv-cache-memory-bytes), or use a smaller model",
        size(*.budget), size(*.needed)
    )]
    NoRoom {
        /// Bytes this process may use.
        budget: u64,
        /// Bytes needed with the smallest KV cache.
        needed: u64,
    },
    /// One sequence of `--max-model-len` tokens does not fit.
    #[error(
        "--max-model-len {max_model_len} needs {} of KV cache, {} are available, which is enough for {fits} tokens; \
         increase --gpu-memory-utilization (or --kv-cache-memory-bytes) or decrease --max-model-len",
        size(*.needed), size(*.available)
    )]
    TooLong {
        /// The asked length.
        max_model_len: usize,
        /// Bytes of KV cache for one sequence of that length.
        needed: u64,
        /// Bytes of KV cache there are.
        available: u64,
        /// The largest length that fits.
        fits: usize,
    },
    /// Longer than the model can be.
    #[error(
        "--max-model-len {max_model_len}: the model's own limit is {limit} tokens (max_position_embeddings, rope_scaling where it reaches further, or sliding_window where it is shorter)"
    )]
    BeyondModel {
        /// The asked length.
        max_model_len: usize,
        /// See `QwenConfig::context_length`.
        limit: usize,
    },
}

/// The division of the memory.
#[derive(Clone, Debug)]
pub(super) struct MemoryPlan {
    /// Layout of the KV cache.
    pub(super) kv: KvShape,
    /// Longest prompt plus output.
    pub(super) max_model_len: usize,
    /// Most tokens in one step.
    pub(super) max_num_batched_tokens: usize,
    /// Whether to call [`QwenModel::copy_lm_head_int8`], for which there is room.
    pub(super) copies_lm_head: bool,
    /// All of it in numbers.
    pub(super) table: MemoryTable,
}

/// Bytes of memory of the device (or of `--device-memory`).
struct Available {
    total: u64,
    free: u64,
    /// What the driver takes for this process besides what the engine asks for.
    context: u64,
    /// Whether it is a GPU that tells how much memory it has: today with CUDA.
    is_gpu: bool,
}

impl Available {
    fn on(device: &Device, config: &Config) -> Self {
        let (DeviceMemory { free, total }, is_gpu) = match device_memory(device) {
            Some(memory) => (memory, true),
            None => {
                let mut system = System::new();
                system.refresh_memory();
                let (free, total) = (system.available_memory(), system.total_memory());
                (DeviceMemory { free, total }, false)
            }
        };
        let total = config.memory.device_memory.unwrap_or(total);
        Self {
            total,
            free: free.min(total),
            context: if is_gpu { GPU_CONTEXT } else { 0 },
            is_gpu,
        }
    }

    /// Most tokens in one step, unless the user says something else.
    fn batched_tokens(&self) -> usize {
        match self.is_gpu && self.total >= LARGE_GPU {
            true => BATCHED_TOKENS_OF_LARGE,
            false => BATCHED_TOKENS,
        }
    }
}

/// What a server takes besides its KV cache, in bytes.
struct Fixed {
    weights: u64,
    adapters: u64,
    activations: u64,
    /// See [`Available::context`].
    driver: u64,
}

impl Fixed {
    fn of(
        config: &Config,
        device: &Available,
        model: &QwenModel,
        max_num_batched_tokens: usize,
    ) -> Self {
        let unpacked = match device.is_gpu {
            true => unpacked_bytes(model, max_num_batched_tokens),
            false => 0,
        };
        let activations = activation_bytes(config, max_num_batched_tokens, &model.config);
        Self {
            weights: model.num_bytes() as u64,
            adapters: adapter_bytes(config, &model.config, device.is_gpu),
            activations: activations + unpacked,
            driver: device.context,
        }
    }

    fn total(&self) -> u64 {
        self.weights + self.adapters + self.activations + self.driver
    }

    /// What is left of `free` bytes of a GPU. Weights and adapters are there already, and so is about half of the driver's part.
    fn left_of(&self, free: u64) -> u64 {
        free.saturating_sub(self.activations + self.driver / 2)
    }
}

/// Bytes that this process may use, where a flag or the kind of device says so.
fn budget(config: &Config, device: &Available) -> Option<u64> {
    let default = device.is_gpu.then_some(GPU_MEMORY_UTILIZATION);
    let utilization = config.memory.gpu_memory_utilization.or(default);
    utilization.map(|fraction| (device.total as f64 * fraction) as u64)
}

/// Bytes for the KV cache, and for a copy of lm_head besides.
fn kv_budget(
    config: &Config,
    device: &Available,
    fixed: &Fixed,
    budget: Option<u64>,
) -> (u64, Room) {
    if let Some(bytes) = config.memory.kv_cache_memory_bytes {
        let left = budget.unwrap_or(device.total).saturating_sub(fixed.total());
        let left = left.min(fixed.left_of(device.free));
        return (bytes, Room::Beside(left.saturating_sub(bytes)));
    }
    let available = match budget {
        Some(budget) => {
            let left = budget.saturating_sub(fixed.total());
            match device.is_gpu {
                true => left.min(fixed.left_of(device.free)),
                false => left,
            }
        }
        None => {
            let asked = config.memory.device_memory;
            let left = asked.map_or(u64::MAX, |total| total.saturating_sub(fixed.total()));
            CPU_KV_LIMIT.min(device.free / 4).min(left)
        }
    };
    (available, Room::ToShare)
}

/// The longest sequence: as long as the flag says or, without it, as the model can be and the KV cache has room for.
fn max_model_len(
    asked: MaxModelLen,
    limit: usize,
    kv: &KvShape,
    available: u64,
) -> Result<usize, MemoryError> {
    let bytes_per_block = kv.bytes_per_block() as u64;
    let fits = (available / bytes_per_block) as usize * kv.block_size;
    match asked {
        MaxModelLen::Auto => Ok(limit.min(fits)),
        MaxModelLen::Tokens(max_model_len) if max_model_len <= fits => Ok(max_model_len),
        MaxModelLen::Tokens(max_model_len) => Err(MemoryError::TooLong {
            max_model_len,
            needed: max_model_len.div_ceil(kv.block_size) as u64 * bytes_per_block,
            available,
            fits,
        }),
    }
}

/// Divides the memory for `model`, which is loaded already. A model that pools computes no logits.
///
/// # Errors
/// [`MemoryError`] with the numbers.
pub(super) fn plan(
    config: &Config,
    device: &Device,
    model: &QwenModel,
    kv_dtype: DType,
    pools: bool,
) -> Result<MemoryPlan, MemoryError> {
    let limit = model.config.context_length();
    let longest = match config.max_model_len {
        MaxModelLen::Auto => limit,
        MaxModelLen::Tokens(max_model_len) if max_model_len > limit => {
            return Err(MemoryError::BeyondModel {
                max_model_len,
                limit,
            });
        }
        MaxModelLen::Tokens(max_model_len) => max_model_len,
    };
    let device = Available::on(device, config);
    let max_num_batched_tokens = (config.max_num_batched_tokens).unwrap_or(device.batched_tokens());
    let fixed = Fixed::of(config, &device, model, max_num_batched_tokens);
    let budget = budget(config, &device);
    let mut kv = KvShape {
        num_layers: model.config.num_hidden_layers,
        num_kv_heads: model.config.num_key_value_heads,
        head_dim: model.config.head_dim,
        block_size: config.block_size,
        num_blocks: 1,
        dtype: kv_dtype,
    };
    let bytes_per_block = kv.bytes_per_block() as u64;

    let (available, room) = kv_budget(config, &device, &fixed, budget);
    let copy = match device.is_gpu && !pools {
        true => model.int8_lm_head_bytes() as u64,
        false => 0,
    };
    let of_longest = longest.div_ceil(config.block_size) as u64 * bytes_per_block;
    let of_all = of_longest.saturating_mul(config.max_num_seqs as u64);
    let copies_lm_head = copy > 0 && room.holds(copy, available, of_longest, of_all);
    let (copy, available) = match (copies_lm_head, room) {
        (false, _) => (0, available),
        (true, Room::Beside(_)) => (copy, available),
        (true, Room::ToShare) => (copy, available - copy),
    };
    if available < bytes_per_block {
        let asked = budget.or(config.memory.device_memory);
        return Err(MemoryError::NoRoom {
            budget: asked.unwrap_or(fixed.total() + available),
            needed: fixed.total() + bytes_per_block,
        });
    }
    let max_model_len = max_model_len(config.max_model_len, limit, &kv, available)?;
    // More blocks than all sequences at full length can use would stay empty.
    let of_all = (max_model_len.div_ceil(config.block_size)).saturating_mul(config.max_num_seqs);
    kv.num_blocks = ((available / bytes_per_block) as usize).min(of_all);
    let needed = fixed.total() + kv.num_blocks as u64 * bytes_per_block;
    if let (Some(budget), Some(_)) = (
        config.memory.device_memory,
        config.memory.kv_cache_memory_bytes,
    ) && needed > budget
    {
        return Err(MemoryError::NoRoom { budget, needed });
    }

    let table = MemoryTable {
        device_total: device.total,
        free_before_kv_cache: device.free,
        budget: budget.unwrap_or(needed),
        weights: fixed.weights,
        adapters: fixed.adapters,
        activations: fixed.activations,
        lm_head_int8: device.is_gpu.then_some(copy),
        driver: device.is_gpu.then_some(fixed.driver),
        ..MemoryTable::default()
    };
    Ok(MemoryPlan {
        kv,
        max_model_len,
        max_num_batched_tokens,
        copies_lm_head,
        table: table.with_kv_cache(&kv, max_model_len),
    })
}

/// A number of bytes in the unit that suits it.
fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes >= GIB {
        format!("{:.2} GiB", bytes / GIB)
    } else if bytes >= MIB {
        format!("{:.2} MiB", bytes / MIB)
    } else {
        format!("{:.2} KiB", bytes / KIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_gpus_take_many_tokens_at_once() {
        let tokens = |total, is_gpu| {
            let available = Available {
                total,
                free: total,
                context: 0,
                is_gpu,
            };
            available.batched_tokens()
        };
        assert_eq!(tokens(8 << 30, true), 2048);
        assert_eq!(tokens(80 << 30, true), 8192);
        assert_eq!(tokens(80 << 30, false), 2048);
    }
}
