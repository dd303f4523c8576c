//! Fast paths of the plain CPU backend, in f32 arithmetic; the caches may be bf16.
//!
//! - `lanes`: vectors of lanes for AVX-512, AVX2 with FMA, and plain Rust, chosen at run time
//! - `gemm`, `tile`: the products of one tile, and what a tile is
//! - `forward`, `backward`: the kernels of one tile
//! - `paged`, `documents`: cutting a call into tiles and running them on all threads
//! - `rope`: rotary position embedding
//! - `training`: causal attention without a graph
#![allow(unsafe_code)]
// Whole functions here are unsafe for one reason, named in their `# Safety` section or their
// trait; a block per line would hide it.
#![allow(unsafe_op_in_unsafe_fn)]

mod backward;
mod documents;
mod forward;
mod gemm;
mod lanes;
mod paged;
mod rope;
mod shared_mut;
mod tile;
mod training;

use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, TensorData};
use half::bf16;

use self::tile::Heads;
use super::ops::{CausalOps, PagedOps, RopeOps};
use crate::batch_layout::BatchLayout;

pub(super) use self::rope::rope;

/// Whether the kernels can run rows of this length; otherwise the twin does.
pub(crate) fn supports(head_dim: usize) -> bool {
    head_dim > 0 && head_dim.is_multiple_of(8)
}

fn dims(tensor: &FlexTensor) -> [usize; 3] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1], shape[2]]
}

fn heads(q: &FlexTensor, k: &FlexTensor) -> Heads {
    let ([_, heads, head_dim], [_, kv_heads, _]) = (dims(q), dims(k));
    Heads {
        heads,
        kv_heads,
        head_dim,
    }
}

fn tensor(values: Vec<f32>, like: &FlexTensor) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, dims(like)))
}

impl RopeOps for Flex {
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        rope(x, cos, sin, 1.0) // [tokens, heads, head_dim]
    }
}

impl PagedOps for Flex {
    fn kv_write(
        mut cache: FloatTensor<Self>,
        new: FloatTensor<Self>,
        layout: Arc<BatchLayout>,
    ) -> FloatTensor<Self> {
        let [_, kv_heads, head_dim] = dims(&cache);
        let new = new.to_contiguous(); // [tokens, kv_heads, head_dim]
        let row = kv_heads * head_dim;
        let slots = layout.slot_mapping.iter().map(|&slot| slot as usize * row);
        match (cache.dtype(), new.dtype()) {
            (DType::F32, DType::F32) => {
                let (cache, new) = (cache.storage_mut::<f32>(), new.storage::<f32>());
                for (slot, new) in slots.zip(new.chunks_exact(row)) {
                    cache[slot..slot + row].copy_from_slice(new);
                }
            }
            (DType::BF16, DType::BF16) => {
                let (cache, new) = (cache.storage_mut::<bf16>(), new.storage::<bf16>());
                for (slot, new) in slots.zip(new.chunks_exact(row)) {
                    cache[slot..slot + row].copy_from_slice(new);
                }
            }
            (DType::BF16, _) => {
                let (cache, new) = (cache.storage_mut::<bf16>(), new.storage::<f32>());
                for (slot, new) in slots.zip(new.chunks_exact(row)) {
                    for (to, from) in cache[slot..slot + row].iter_mut().zip(new) {
                        *to = bf16::from_f32(*from);
                    }
                }
            }
            _ => {
                let (cache, new) = (cache.storage_mut::<f32>(), new.storage::<bf16>());
                for (slot, new) in slots.zip(new.chunks_exact(row)) {
                    for (to, from) in cache[slot..slot + row].iter_mut().zip(new) {
                        *to = from.to_f32();
                    }
                }
            }
        }
        cache
    }

    fn paged_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: Arc<BatchLayout>,
    ) -> FloatTensor<Self> {
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let heads = heads(&q, &k);
        let queries = q.storage::<f32>();
        // SAFETY: the wrapper in `kernels` has compared the shapes with each other and the
        // layout's tokens and highest slot with them.
        let out = unsafe {
            match k.dtype() {
                DType::BF16 => {
                    let (k, v) = (k.storage::<bf16>(), v.storage::<bf16>());
                    paged::paged_attention(heads, &layout, queries, k, v)
                }
                _ => {
                    let (k, v) = (k.storage::<f32>(), v.storage::<f32>());
                    paged::paged_attention(heads, &layout, queries, k, v)
                }
            }
        };
        tensor(out, &q) // [tokens, heads, head_dim]
    }
}

impl CausalOps for Flex {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> FloatTensor<Self> {
        causal_forward(q, k, v, lengths).out // [tokens, heads, head_dim]
    }
}

/// What the backward of causal attention needs from its forward.
#[derive(Clone, Debug)]
pub(super) struct CausalState {
    /// `[tokens, heads, head_dim]`, as `out`.
    q: FlexTensor,
    /// `[tokens, kv_heads, head_dim]`, as `v`.
    k: FlexTensor,
    v: FlexTensor,
    pub(super) out: FlexTensor,
    /// `[tokens, heads]`
    lse: Arc<Vec<f32>>,
    lengths: Arc<[usize]>,
}

/// Forward of causal attention within documents.
pub(super) fn causal_forward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    lengths: Arc<[usize]>,
) -> CausalState {
    let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
    let inputs = [&q, &k, &v].map(|tensor| tensor.storage::<f32>());
    // SAFETY: the wrapper in `kernels` has checked the shapes and the sum of the lengths.
    let (out, lse) = unsafe { documents::forward(heads(&q, &k), &lengths, inputs) };
    CausalState {
        out: tensor(out, &q), // [tokens, heads, head_dim]
        lse: Arc::new(lse),
        q,
        k,
        v,
        lengths,
    }
}

/// Gradients of `q`, `k` and `v` from the gradient `d_out` `[tokens, heads, head_dim]`.
pub(super) fn causal_backward(state: &CausalState, d_out: FlexTensor) -> [FlexTensor; 3] {
    let d_out = d_out.to_contiguous(); // [tokens, heads, head_dim]
    assert_eq!(dims(&d_out), dims(&state.q), "gradient of the output");
    let saved = backward::Saved {
        heads: heads(&state.q, &state.k),
        q: state.q.storage(),
        k: state.k.storage(),
        v: state.v.storage(),
        d_out: d_out.storage(),
        lse: &state.lse,
        delta: &[],
    };
    // SAFETY: the forward ran with these shapes; that of `d_out` is checked above.
    let [dq, dk, dv] = unsafe { documents::backward(saved, state.out.storage(), &state.lengths) };
    [
        tensor(dq, &state.q), // [tokens, heads, head_dim]
        tensor(dk, &state.k), // [tokens, kv_heads, head_dim]
        tensor(dv, &state.v), // [tokens, kv_heads, head_dim]
    ]
}
