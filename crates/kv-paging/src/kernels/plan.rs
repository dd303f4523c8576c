//! A step as the kernels take it: its plain description, and the index tensors made of it at their first use.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Int, Tensor};

use super::gather::{Gather, Padding};
use crate::batch_layout::BatchLayout;

/// A packed step over a paged cache. All layers of the step share its index tensors.
#[derive(Debug)]
pub struct BatchPlan {
    layout: Arc<BatchLayout>,
    /// For the twin made of tensor operations.
    gather: OnceLock<Gather>,
    /// For the kernels of a GPU.
    #[cfg(feature = "gpu")]
    indices: OnceLock<Tensor<1, Int>>,
    /// For the kernels of many queries of a GPU.
    #[cfg(feature = "gpu")]
    tiles: OnceLock<Tensor<1, Int>>,
}

impl BatchPlan {
    /// The plan of a step; uploads nothing yet.
    pub fn new(layout: BatchLayout) -> Self {
        Self {
            layout: Arc::new(layout),
            gather: OnceLock::new(),
            #[cfg(feature = "gpu")]
            indices: OnceLock::new(),
            #[cfg(feature = "gpu")]
            tiles: OnceLock::new(),
        }
    }

    /// The plain description.
    pub fn layout(&self) -> &Arc<BatchLayout> {
        &self.layout
    }

    pub(super) fn gather(&self, device: &Device) -> &Gather {
        let upload = || Gather::new(&self.layout, &device.clone().without_autodiff());
        self.gather.get_or_init(upload)
    }

    /// For the kernels of a GPU: the step as one list of integers, in the form that `upload` gives it.
    #[cfg(feature = "gpu")]
    pub(super) fn indices(
        &self,
        upload: impl FnOnce(&BatchLayout) -> Tensor<1, Int>,
    ) -> Tensor<1, Int> {
        self.indices.get_or_init(|| upload(&self.layout)).clone()
    }

    /// For the kernels of many queries of a GPU: tiles of queries, in the form that `upload` gives them.
    #[cfg(feature = "gpu")]
    pub(super) fn tiles(
        &self,
        upload: impl FnOnce(&BatchLayout) -> Tensor<1, Int>,
    ) -> Tensor<1, Int> {
        self.tiles.get_or_init(|| upload(&self.layout)).clone()
    }
}

/// Documents that are packed one after another and do not see each other.
#[derive(Debug)]
pub struct DocumentPlan {
    lengths: Arc<[usize]>,
    /// For the twin made of tensor operations.
    padding: OnceLock<Padding>,
}

impl DocumentPlan {
    /// Documents of these lengths, in tokens; uploads nothing yet. Empty documents are skipped.
    pub fn new(lengths: &[usize]) -> Self {
        Self {
            lengths: lengths.iter().copied().filter(|&len| len > 0).collect(),
            padding: OnceLock::new(),
        }
    }

    /// Lengths of the documents, in tokens; none is zero.
    pub fn lengths(&self) -> &Arc<[usize]> {
        &self.lengths
    }

    /// Packed tokens: the sum of the lengths.
    pub fn num_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    pub(super) fn padding(&self, device: &Device) -> &Padding {
        let upload = || Padding::new(&self.lengths, &device.clone().without_autodiff());
        self.padding.get_or_init(upload)
    }
}

/// What a recorded step reads and writes besides its own tokens.
pub(crate) struct RecordedStep<'a> {
    /// Keys and values, each `[slots, kv_heads, head_dim]`. The kernels write to their memory, which other handles share.
    pub(crate) caches: [&'a Tensor<3>; 2],
    /// The description of the step, see [`crate::DecodeStep`].
    pub(crate) indices: &'a Tensor<1, Int>,
    /// Tokens per block.
    pub(crate) block_size: usize,
    /// Whether all keys and values are written before any is read, since rows may see those of other rows.
    pub(crate) writes_first: bool,
}
