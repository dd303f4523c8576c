//! Attention without a cache: packed documents that do not see each other.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

use crate::attention::KvCache;
use crate::kernels;
use crate::kernels::naive::DocumentPlan;

/// Block-diagonal causal attention over packed documents, differentiable. The trainer's
/// [`KvCache`]: nothing is stored, every layer attends over the keys it is given.
#[derive(Clone, Debug)]
pub struct CausalAttention {
    lengths: Arc<[usize]>,
    /// Index tensors of the twin made of tensor operations, uploaded at its first use.
    plan: Arc<OnceLock<DocumentPlan>>,
}

impl CausalAttention {
    /// Documents of these lengths, in tokens, packed one after another. Empty ones are skipped.
    pub fn new(lengths: &[usize]) -> Self {
        Self {
            lengths: lengths.iter().copied().filter(|&len| len > 0).collect(),
            plan: Arc::default(),
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

    /// Attention within each document; the same contract as [`KvCache::attend`].
    ///
    /// # Shapes
    ///
    /// - `q`: `[tokens, heads, head_dim]`; `k`, `v`: `[tokens, kv_heads, head_dim]`
    /// - returns `[tokens, heads, head_dim]`
    ///
    /// # Panics
    ///
    /// If the tensors do not have [`num_tokens`](Self::num_tokens) rows.
    pub fn forward(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        kernels::causal_attention(q, k, v, self) // [tokens, heads, head_dim]
    }

    pub(crate) fn plan(&self) -> &OnceLock<DocumentPlan> {
        &self.plan
    }
}

impl KvCache for CausalAttention {
    fn attend(&mut self, _layer: usize, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        self.forward(q, k, v) // [tokens, heads, head_dim]
    }
}
