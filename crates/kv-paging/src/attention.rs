//! The one method the model knows about keys and values, and its paged implementation.

use burn::tensor::{DType, Tensor};

use crate::batch::AttentionBatch;
use crate::cache::PagedKvCache;
use crate::kernels;

/// Where a decoder layer puts its keys and values and gets its attention from.
///
/// The model never sees a block or a document boundary: serving passes [`PagedAttention`],
/// training passes [`CausalAttention`](crate::CausalAttention).
pub trait KvCache: Send {
    /// Stores the keys and values of this step's tokens in `layer` and returns the causal
    /// attention of `q` over all keys of each token's own sequence so far. Scores are scaled by
    /// `1/sqrt(head_dim)`; query head `h` reads key/value head `h / (heads / kv_heads)`.
    ///
    /// # Shapes
    ///
    /// - `q`: `[tokens, heads, head_dim]`, the tokens of all sequences packed one after another
    /// - `k`, `v`: `[tokens, kv_heads, head_dim]`
    /// - returns `[tokens, heads, head_dim]`
    fn attend(&mut self, layer: usize, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3>;

    /// [`attend`](Self::attend) that first rotates `q` and `k` itself, where one kernel does both. The result then has the
    /// type `dtype`. Otherwise nothing has happened.
    ///
    /// # Shapes
    ///
    /// - `q`, `k`, `v` and the result as in [`attend`](Self::attend)
    /// - `cos`, `sin`: `[tokens, 1, head_dim / 2]`, of the angle by which the dimensions `i` and `i + head_dim / 2` of a
    ///   head are turned
    fn rotate_and_attend(
        &mut self,
        layer: usize,
        qkv: [&Tensor<3>; 3],
        angles: [&Tensor<3>; 2],
        dtype: DType,
    ) -> Option<Tensor<3>> {
        let _ = (layer, qkv, angles, dtype);
        None
    }
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

impl KvCache for PagedAttention<'_> {
    fn attend(&mut self, layer: usize, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        self.cache.write(layer, k, v, self.batch);
        let (keys, values) = self.cache.layer(layer); // [slots, kv_heads, head_dim]
        kernels::paged_attention(q, keys, values, self.batch) // [tokens, heads, head_dim]
    }
}
