//! What a backend computes.

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

use crate::batch_layout::BatchLayout;

/// Rotary position embedding.
#[backend_extension(Flex, Autodiff)]
pub(super) trait RopeOps: Backend {
    /// Turns dimension `i` of each head of `x` `[tokens, heads, head_dim]` together with dimension `i + head_dim / 2`, by
    /// the angle whose cosine and sine are `cos` and `sin` `[tokens, 1, head_dim / 2]`; all f32.
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Operations on a paged cache. They have no backward: a cache holds values, not a graph.
#[backend_extension(Flex)]
pub(super) trait PagedOps: Backend {
    /// Writes `new` `[tokens, kv_heads, head_dim]` to the rows `layout.slot_mapping` of `cache`
    /// `[slots, kv_heads, head_dim]`, converted to its element type, and returns the handle of
    /// `cache`. In place when that handle is the only one.
    fn kv_write(
        cache: FloatTensor<Self>,
        new: FloatTensor<Self>,
        layout: Arc<BatchLayout>,
    ) -> FloatTensor<Self>;

    /// Attention of `q` `[tokens, heads, head_dim]` over the sequences of `layout` in `k` and `v`
    /// `[slots, kv_heads, head_dim]`: the query at context position `p` sees keys `0..=p`.
    fn paged_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: Arc<BatchLayout>,
    ) -> FloatTensor<Self>;
}

/// Attention within packed documents.
#[backend_extension(Flex, Autodiff)]
pub(super) trait CausalOps: Backend {
    /// Causal attention of `q` `[tokens, heads, head_dim]` over `k` and `v`
    /// `[tokens, kv_heads, head_dim]` within documents of `lengths` tokens.
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> FloatTensor<Self>;
}

/// Attention on the plain CPU backend, of tokens `[tokens, heads or kv_heads, head_dim]` in f32.
#[backend_extension(Flex)]
pub(super) trait HostOps: Backend {
    /// Output `[tokens, heads, head_dim]` and log-sum-exp `[tokens, heads, 1]`.
    fn host_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of queries, keys and values.
    fn host_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        d_out: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
