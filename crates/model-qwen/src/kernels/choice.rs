//! Tokens chosen where the logits are, by devices that have kernels for it. Elsewhere the answer is `None`, and the host chooses.

#[cfg_attr(not(feature = "gpu"), path = "choice/no_gpu.rs")]
mod gpu;
#[cfg(feature = "gpu")]
mod masks;

#[cfg(not(feature = "gpu"))]
pub(crate) use gpu::mask_logits;
#[cfg(feature = "gpu")]
pub(crate) use gpu::{
    GpuChoiceOps, argmax_into, change_logits, changes_of, draw_step, read_ids, read_logits,
};
pub(crate) use gpu::{
    GpuInt8LmHead, PendingIds, PendingLogits, draw_tokens, largest_logits, queues_reads,
};
#[cfg(feature = "gpu")]
pub(crate) use masks::{MaskTable, mask_logits};
