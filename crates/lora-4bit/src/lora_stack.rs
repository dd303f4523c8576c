//! The adapters of a layer in one tensor: one kernel serves rows with different adapters.

use burn::tensor::{DType, Tensor};

use crate::linear::LoraWeights;

/// A stack's rank is a multiple of this.
pub(crate) const RANKS: usize = 8;

/// Values behind the last row of `b`: kernels read rows in parts of this size.
pub(crate) const PADDING: usize = 64;

/// The adapters of a layer, one after the other; slots without one and ranks that one lacks are zero.
///
/// The tensors have one dimension, since a device may leave room between the rows of others.
#[derive(Clone, Debug)]
pub(crate) struct LoraStack {
    /// `[slots * rank * in]`.
    pub(crate) a: Tensor<1>,
    /// Times the scaling: `[out * slots * rank]`, the ranks of all slots next to each other, and [`PADDING`].
    pub(crate) b: Tensor<1>,
    pub(crate) rank: usize,
    pub(crate) num_slots: usize,
}

impl LoraStack {
    /// `None` if no slot has an adapter.
    pub(crate) fn new(adapters: &[Option<LoraWeights>], dtype: DType) -> Option<Self> {
        let ranks = adapters.iter().flatten().map(|adapter| adapter.a.dims()[0]);
        let rank = ranks.max()?.next_multiple_of(RANKS);
        let first = adapters.iter().flatten().next()?;
        let (inner, outer) = (first.a.dims()[1], first.b_t.dims()[1]);
        let (device, num_slots) = (first.a.device(), adapters.len());
        let padded = |rows: Option<Tensor<2>>, width: usize| {
            let len = rows.as_ref().map_or(0, |rows| rows.dims()[0]);
            let zeros = || Tensor::zeros([rank - len, width], (&device, DType::F32));
            let rows = match rows {
                Some(rows) if len == rank => rows,
                Some(rows) => Tensor::cat(vec![rows, zeros()], 0),
                None => zeros(),
            };
            rows.cast(dtype)
        };
        let a = adapters.iter().map(|adapter| {
            let a = adapter.as_ref().map(|adapter| adapter.a.clone());
            padded(a, inner).reshape([rank * inner])
        });
        let b_t = adapters.iter().map(|adapter| {
            let b_t = adapter.as_ref().map(|a| a.b_t.clone() * a.scaling);
            padded(b_t, outer)
        });
        let b = Tensor::cat(b_t.collect(), 0).transpose(); // [out, slots * rank]
        let b = b.reshape([outer * num_slots * rank]);
        let padding = Tensor::zeros([PADDING], (&device, dtype));
        Some(Self {
            a: Tensor::cat(a.collect(), 0),
            b: Tensor::cat(vec![b, padding], 0),
            rank,
            num_slots,
        })
    }
}
