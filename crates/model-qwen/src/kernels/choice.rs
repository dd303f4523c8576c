//! Tokens chosen where the logits are, by devices that have kernels for it. Elsewhere the answer is `None`, and the host chooses.

#[cfg_attr(not(feature = "gpu"), path = "choice/no_gpu.rs")]
mod gpu;

#[cfg(feature = "gpu")]
pub(crate) use gpu::{GpuChoiceOps, argmax_into, draw_step, read_ids};
pub(crate) use gpu::{
    GpuInt8Head, PendingIds, draw_tokens, largest_logits, mask_logits, queues_reads,
};
