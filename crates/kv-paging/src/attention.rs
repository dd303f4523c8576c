//! The one method that a model calls to attend, and its paged implementation.

use burn::tensor::{DType, Tensor};

use crate::batch::AttentionBatch;
use crate::cache::PagedKvCache;
use crate::kernels;
use crate::rotary::Rotary;

/// What a decoder layer gets its attention from.
///
/// The model never sees a block, a cache or a document boundary. Serving passes [`PagedAttention`], a step that a GPU
/// replays has [`RecordedAttention`](crate::RecordedAttention), training passes
/// [`CausalAttention`](crate::CausalAttention).
pub trait Attention: Send {
    /// Rotates `q` and `k`, stores `k` and `v` as the step's tokens of `layer`, and returns the causal attention of `q`
    /// over all keys of each token's own sequence so far.
    ///
    /// Scores are scaled by `1/sqrt(head_dim)`; query head `h` reads key/value head `h / (heads / kv_heads)`.
    ///
    /// # Shapes
    ///
    /// - `q`: `[tokens, heads, head_dim]`, not rotated yet, the tokens of all sequences packed one after another
    /// - `k`, `v`: `[tokens, kv_heads, head_dim]`, not rotated yet
    /// - `rotary`: the angles of the same tokens, `[tokens, 1, head_dim / 2]`
    /// - returns `[tokens, heads, head_dim]` of type `dtype`: f32, but where the next product runs on a GPU and takes
    ///   bf16
    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        rotary: &Rotary,
        dtype: DType,
    ) -> Tensor<3>;
}

/// One packed step over a paged cache: prefill chunks and decodes mixed.
#[derive(Debug)]
pub struct PagedAttention<'a> {
    /// The keys and values of all sequences.
    pub cache: &'a mut PagedKvCache,
    /// Which rows of the cache belong to the sequences of this step.
    pub batch: &'a AttentionBatch,
}

impl<'a> PagedAttention<'a> {
    /// Attention of the sequences in `batch` over `cache`.
    pub fn new(cache: &'a mut PagedKvCache, batch: &'a AttentionBatch) -> Self {
        Self { cache, batch }
    }
}

impl Attention for PagedAttention<'_> {
    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        rotary: &Rotary,
        dtype: DType,
    ) -> Tensor<3> {
        let (q, k) = kernels::apply_rope(q, k, rotary); // [tokens, heads or kv_heads, head_dim]
        self.cache.write(layer, k, v, self.batch);
        let (keys, values) = self.cache.layer(layer); // [slots, kv_heads, head_dim]
        kernels::paged_attention(q, [keys, values], self.batch.plan(), dtype) // [tokens, heads, head_dim]
    }
}
