//! The three operations under paged and causal attention.
//!
//! | operation | computes | twin |
//! |---|---|---|
//! | `kv_write` | `cache[slots[t]] = new[t]` for every packed token `t`, in place | [`naive::kv_write`] |
//! | `paged_attention` | causal attention of packed queries over block tables | [`naive::paged_attention`] |
//! | `causal_attention` | block-diagonal causal attention, differentiable | [`naive::causal_attention`] |
//!
//! The rooms: `cpu` has the fast paths of the plain CPU backend, `autodiff` the backward of
//! `causal_attention`, `cube` is for GPU kernels, and [`naive`] holds the twins made of tensor
//! operations, which run on every other backend and are the reference in tests.

pub(crate) mod autodiff;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod cube;
pub mod naive;

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
#[cfg(feature = "gpu")]
use burn::backend::tensor::IntTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

use crate::batch::{AttentionBatch, BatchLayout};
use crate::causal::CausalAttention;

/// Operations on a paged cache. They have no backward: a cache holds values, not a graph.
#[backend_extension(Flex)]
pub(crate) trait PagedOps: Backend {
    /// Writes `new` `[tokens, kv_heads, head_dim]` to the rows `layout.slots` of `cache`
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

/// The same on a GPU, where a step is described by a tensor: [`cube::indices`].
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait DevicePagedOps: Backend {
    /// See [`PagedOps::kv_write`], for keys and values; always in place.
    fn device_kv_write(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        new_keys: FloatTensor<Self>,
        new_values: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`PagedOps::paged_attention`]; no token sees more than `max_context` keys.
    fn device_paged_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        indices: IntTensor<Self>,
        block_size: usize,
        max_context: usize,
        tiles: cube::Tiles,
    ) -> FloatTensor<Self>;

    /// Rotates `q` and `k`, writes `k` and `v` to the caches and attends to these, in a step of one token per sequence
    /// whose description is `step`. The result has the type `dtype`.
    #[allow(clippy::too_many_arguments)]
    fn device_step_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        step: IntTensor<Self>,
        block_size: usize,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// Writes `new` over the beginning of `old`, in place, whoever else holds it.
    fn device_overwrite(old: IntTensor<Self>, new: IntTensor<Self>) -> IntTensor<Self>;
}

/// Writes `new` over the beginning of `old`, in place: all handles of `old` see it.
///
/// # Panics
///
/// If `new` is longer.
#[cfg(feature = "gpu")]
pub(crate) fn overwrite(old: &Tensor<1, burn::tensor::Int>, new: Tensor<1, burn::tensor::Int>) {
    assert!(
        new.dims()[0] <= old.dims()[0],
        "more values than there is room for"
    );
    // The handle that comes back is another one of the same memory.
    let _ = Dispatch::device_overwrite(old.clone().into_dispatch(), new.into_dispatch());
}

/// Writes keys and values of a step that is described by `step` ([`crate::DecodeStep`]) and attends to the cache.
#[cfg(feature = "gpu")]
pub(crate) fn decode_attention(
    q: Tensor<3>,
    [k, v]: [Tensor<3>; 2],
    [keys, values]: [&Tensor<3>; 2],
    step: Tensor<1, burn::tensor::Int>,
    block_size: usize,
) -> Tensor<3> {
    let _span = trace_span!("decode_attention").entered();
    let [slots, ..] = keys.dims();
    let step = step.into_dispatch();
    let [keys, values] = [keys, values].map(|cache| cache.clone().into_dispatch());
    let (k, v) = (k.into_dispatch(), v.into_dispatch());
    let (keys, values) = Dispatch::device_kv_write(keys, values, k, v, step.clone());
    let q = q.into_dispatch();
    Tensor::from_dispatch(Dispatch::device_paged_attention(
        q,
        keys,
        values,
        step,
        block_size,
        slots,
        cube::Tiles::default(),
    ))
}

/// Rotates queries and keys, writes keys and values of a step that is described by `step` ([`crate::DecodeStep`]) and
/// attends to the cache.
#[cfg(feature = "gpu")]
pub(crate) fn step_attention(
    [q, k, v]: [&Tensor<3>; 3],
    [cos, sin]: [&Tensor<3>; 2],
    [keys, values]: [&Tensor<3>; 2],
    step: Tensor<1, burn::tensor::Int>,
    block_size: usize,
    dtype: DType,
) -> Tensor<3> {
    let _span = trace_span!("step_attention").entered();
    let ([rows, heads, head_dim], [_, kv_heads, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), [rows, kv_heads, head_dim], "keys");
    assert_eq!(v.dims(), k.dims(), "keys and values differ in shape");
    assert_eq!(keys.dims()[1..], [kv_heads, head_dim], "the cache's heads");
    assert_eq!(keys.dims(), values.dims(), "the caches differ in shape");
    assert_eq!(keys.dtype(), values.dtype(), "the caches differ in type");
    assert_eq!(heads % kv_heads, 0, "query heads per key/value head");
    assert!(
        step.dims()[0] >= crate::decode_step::FIELDS * rows,
        "rows of the step"
    );
    for angles in [cos, sin] {
        assert_eq!(angles.dims(), [rows, 1, head_dim / 2], "angles");
    }
    for tensor in [q, k, v, cos, sin] {
        assert_eq!(tensor.dtype(), DType::F32, "queries, keys, values, angles");
    }
    let dispatch = |tensor: &Tensor<3>| tensor.clone().into_dispatch();
    let [q, k, v] = [q, k, v].map(dispatch);
    let [cos, sin, keys, values] = [cos, sin, keys, values].map(dispatch);
    let step = step.into_dispatch();
    Tensor::from_dispatch(Dispatch::device_step_attention(
        q, k, v, cos, sin, keys, values, step, block_size, dtype,
    ))
}

/// Attention within packed documents.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait CausalOps: Backend {
    /// Causal attention of `q` `[tokens, heads, head_dim]` over `k` and `v`
    /// `[tokens, kv_heads, head_dim]` within documents of `lengths` tokens.
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> FloatTensor<Self>;
}

/// Whether `tensor` lives on the plain CPU backend, outside of any autodiff graph.
fn on_cpu(tensor: &Tensor<3>) -> bool {
    matches!(tensor.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Writes this step's keys and values to their caches; see [`PagedOps::kv_write`].
pub(crate) fn kv_write(
    caches: [Tensor<3>; 2],
    new: [Tensor<3>; 2],
    batch: &AttentionBatch,
) -> [Tensor<3>; 2] {
    let _span = trace_span!("kv_write").entered();
    for (cache, new) in caches.iter().zip(&new) {
        let ([slots, ..], [tokens, ..]) = (cache.dims(), new.dims());
        assert_eq!(cache.dims()[1..], new.dims()[1..], "[kv_heads, head_dim]");
        assert_fits(batch, tokens, slots);
    }
    let ([keys, values], [k, v]) = (caches, new);
    #[cfg(feature = "gpu")]
    if [&k, &v].iter().all(|new| new.dtype() == DType::F32)
        && keys.dtype() == values.dtype()
        && cube::supports(&keys.device(), keys.dims()[2])
    {
        let indices = batch.indices(&keys.device()).into_dispatch();
        let [keys, values, k, v] = [keys, values, k, v].map(Tensor::into_dispatch);
        let (keys, values) = Dispatch::device_kv_write(keys, values, k, v, indices);
        return [keys, values].map(Tensor::from_dispatch);
    }
    [write_rows(keys, k, batch), write_rows(values, v, batch)]
}

/// Writes to one cache.
fn write_rows(cache: Tensor<3>, new: Tensor<3>, batch: &AttentionBatch) -> Tensor<3> {
    let floats = |tensor: &Tensor<3>| matches!(tensor.dtype(), DType::F32 | DType::BF16);
    if on_cpu(&cache) && on_cpu(&new) && floats(&cache) && floats(&new) {
        Tensor::from_dispatch(Dispatch::kv_write(
            cache.into_dispatch(),
            new.into_dispatch(),
            batch.layout().clone(),
        ))
    } else {
        naive::kv_write(cache, new, batch)
    }
}

/// Attention over the cache; see [`PagedOps::paged_attention`].
pub(crate) fn paged_attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    batch: &AttentionBatch,
) -> Tensor<3> {
    let _span = trace_span!("paged_attention").entered();
    let ([tokens, heads, head_dim], [slots, kv_heads, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), v.dims(), "keys and values differ in shape");
    assert_eq!(heads % kv_heads, 0, "query heads per key/value head");
    assert_eq!(head_dim, k.dims()[2], "head_dim");
    assert_fits(batch, tokens, slots);
    let fast = q.dtype() == DType::F32
        && matches!(k.dtype(), DType::F32 | DType::BF16)
        && k.dtype() == v.dtype()
        && cpu::supports(head_dim);
    if fast && on_cpu(&q) && on_cpu(&k) && on_cpu(&v) {
        Tensor::from_dispatch(Dispatch::paged_attention(
            q.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            batch.layout().clone(),
        ))
    } else {
        #[cfg(feature = "gpu")]
        if q.dtype() == DType::F32
            && k.dtype() == v.dtype()
            && cube::supports(&q.device(), head_dim)
        {
            let indices = batch.indices(&q.device()).into_dispatch();
            let layout = batch.layout();
            let contexts = layout.sequences.iter().map(|s| s.context_len);
            return Tensor::from_dispatch(Dispatch::device_paged_attention(
                q.into_dispatch(),
                k.into_dispatch(),
                v.into_dispatch(),
                indices,
                layout.block_size,
                contexts.max().unwrap_or_default(),
                cube::Tiles::of(layout),
            ));
        }
        naive::paged_attention(q, k, v, batch)
    }
}

/// Attention within documents; see [`CausalOps::causal_attention`].
pub(crate) fn causal_attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    documents: &CausalAttention,
) -> Tensor<3> {
    let _span = trace_span!("causal_attention").entered();
    let ([tokens, heads, head_dim], [_, kv_heads, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), v.dims(), "keys and values differ in shape");
    assert_eq!(heads % kv_heads, 0, "query heads per key/value head");
    assert_eq!(k.dims(), [tokens, kv_heads, head_dim], "keys");
    assert_eq!(tokens, documents.num_tokens(), "tokens of all documents");
    let inputs = [&q, &k, &v];
    let fast = inputs.iter().all(|tensor| {
        let device = tensor.device().without_autodiff();
        tensor.dtype() == DType::F32 && matches!(device.as_dispatch(), DispatchDevice::Flex(_))
    });
    if fast && cpu::supports(head_dim) {
        Tensor::from_dispatch(Dispatch::causal_attention(
            q.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            documents.lengths().clone(),
        ))
    } else {
        naive::causal_attention(q, k, v, documents)
    }
}

/// The only check between a batch and a cache; the kernels index without any.
fn assert_fits(batch: &AttentionBatch, tokens: usize, slots: usize) {
    assert_eq!(tokens, batch.num_tokens(), "tokens of the batch");
    let needed = batch.layout().num_slots;
    assert!(
        needed <= slots,
        "the batch names cache row {} of {slots}",
        needed.saturating_sub(1)
    );
}

/// Forgets what this thread's kernels keep on devices between launches. Call it when a device has failed to compute
/// something: what the failed kernels should have left there is missing.
#[cfg(feature = "gpu")]
pub fn forget_device_state() {
    cube::forget_counters();
}
