//! Attention without a cache: packed documents that do not see each other.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};

use crate::attention::Attention;
use crate::kernels::{self, DocumentPlan};
use crate::rotary::Rotary;

/// Block-diagonal causal attention over packed documents, differentiable. The trainer's
/// [`Attention`]: nothing is stored, every layer attends over the keys it is given.
#[derive(Clone, Debug)]
pub struct CausalAttention {
    plan: Arc<DocumentPlan>,
}

impl CausalAttention {
    /// Documents of these lengths, in tokens, packed one after another. Empty documents are skipped.
    pub fn new(lengths: &[usize]) -> Self {
        Self {
            plan: Arc::new(DocumentPlan::new(lengths)),
        }
    }

    /// Lengths of the documents, in tokens; none is zero.
    pub fn lengths(&self) -> &Arc<[usize]> {
        self.plan.lengths()
    }

    /// Packed tokens: the sum of the lengths.
    pub fn num_tokens(&self) -> usize {
        self.plan.num_tokens()
    }

    /// The documents as the kernels take them.
    pub fn plan(&self) -> &DocumentPlan {
        &self.plan
    }
}

impl Attention for CausalAttention {
    /// # Panics
    ///
    /// If the tensors do not have [`num_tokens`](Self::num_tokens) rows.
    fn attend(
        &mut self,
        _layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        rotary: &Rotary,
        dtype: DType,
    ) -> Tensor<3> {
        let (q, k) = kernels::apply_rope(q, k, rotary); // [tokens, heads or kv_heads, head_dim]
        kernels::causal_attention(q, k, v, &self.plan, dtype) // [tokens, heads, head_dim]
    }
}
