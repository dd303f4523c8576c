//! One packed step over a paged cache, with what the kernels keep of it on a device.

use crate::batch_layout::{BatchLayout, SequenceChunk};
use crate::kernels::BatchPlan;

/// One packed step over a paged cache. Built once per step and used by every layer.
#[derive(Debug)]
pub struct AttentionBatch {
    plan: BatchPlan,
}

impl AttentionBatch {
    /// Lays out the chunks one after another.
    ///
    /// # Panics
    ///
    /// See [`BatchLayout::new`].
    pub fn new(chunks: &[SequenceChunk<'_>], block_size: usize) -> Self {
        Self {
            plan: BatchPlan::new(BatchLayout::new(chunks, block_size)),
        }
    }

    /// Packed tokens of the step.
    pub fn num_tokens(&self) -> usize {
        self.layout().num_tokens()
    }

    /// The plain data behind the batch.
    pub fn layout(&self) -> &BatchLayout {
        self.plan.layout()
    }

    /// The step as the kernels take it.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }
}
