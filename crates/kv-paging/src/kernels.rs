//! The operations under attention.
//!
//! | operation | computes | twin |
//! |---|---|---|
//! | `apply_rope` | queries and keys turned by the angles of their positions, differentiable | [`naive::apply_rope`] |
//! | `kv_write` | `cache[slot_mapping[t]] = new[t]` for every packed token `t`, in place | [`naive::kv_write`] |
//! | `paged_attention` | causal attention of packed queries over block tables | [`naive::paged_attention`] |
//! | `causal_attention` | block-diagonal causal attention, differentiable | [`naive::causal_attention`] |
//! | `step_attention` | the first three for a recorded step, whose rows have one token each | none: tests compare it with plain loops |
//!
//! [`training`] has the operations of a training step that is written by hand, without a graph.
//!
//! The rooms: `cpu` has the fast paths of the plain CPU backend, `autodiff` their backward, `device` and `cube` are for
//! GPUs, and [`naive`] holds the twins made of tensor operations, which run on every other backend and are the reference
//! in tests. `ops` and `device_ops` say what a backend computes: the kernels implement their traits, and the functions here
//! call them. Kernels read a step as its plain description ([`BatchLayout`]) and the index tensors made of it
//! ([`BatchPlan`], [`DocumentPlan`]).

pub(crate) mod autodiff;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod cube;
#[cfg(feature = "gpu")]
mod device;
#[cfg(not(feature = "gpu"))]
#[path = "kernels/no_device.rs"]
mod device;
#[cfg(feature = "gpu")]
mod device_ops;
mod gather;
pub mod naive;
mod on_cpu;
mod ops;
mod plan;
mod recorded;
pub mod training;

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

use self::device::Gpu;
use self::on_cpu::{is_f32_on_cpu, is_untracked_cpu};
use self::ops::{CausalOps, PagedOps, RopeOps};
pub(crate) use self::plan::RecordedStep;
pub use self::plan::{BatchPlan, DocumentPlan};
pub use self::recorded::overwrite;
pub(crate) use self::recorded::{records_steps, step_attention};
use crate::batch_layout::BatchLayout;
use crate::rotary::Rotary;

/// `x` in the type `dtype`.
fn in_dtype(x: Tensor<3>, dtype: DType) -> Tensor<3> {
    match x.dtype() == dtype {
        true => x,
        false => x.cast(dtype),
    }
}

/// Turns queries and keys by the angles of their positions; see [`RopeOps::rope`].
///
/// # Shapes
///
/// - `q`: `[tokens, heads, head_dim]`; `k`: `[tokens, kv_heads, head_dim]`; both are returned
pub(crate) fn apply_rope(q: Tensor<3>, k: Tensor<3>, rotary: &Rotary) -> (Tensor<3>, Tensor<3>) {
    let _span = trace_span!("apply_rope").entered();
    for x in [&q, &k] {
        let [tokens, _, head_dim] = x.dims();
        let angles = [tokens, 1, head_dim / 2];
        assert_eq!(rotary.cos.dims(), angles, "cosines");
        assert_eq!(rotary.sin.dims(), angles, "sines");
    }
    if let Some(gpu) = Gpu::of(&q.device())
        && [&q, &k].iter().all(|x| x.dtype() == DType::F32)
    {
        return gpu.apply_rope(q, k, rotary);
    }
    // The threads share the work of both instead of waiting for each other after the first.
    match is_untracked_cpu(&q) {
        true => rayon::join(|| rope(q, rotary), || rope(k, rotary)),
        false => (rope(q, rotary), rope(k, rotary)),
    }
}

/// [`apply_rope`] of one tensor.
fn rope(x: Tensor<3>, rotary: &Rotary) -> Tensor<3> {
    if !is_f32_on_cpu(&x) {
        return naive::apply_rope(x, rotary);
    }
    let [cos, sin] = [&rotary.cos, &rotary.sin].map(|angles| angles.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::rope(x.into_dispatch(), cos, sin)) // [tokens, heads, head_dim]
}

/// Writes this step's keys and values to their caches; see [`PagedOps::kv_write`].
pub(crate) fn kv_write(
    caches: [Tensor<3>; 2],
    new: [Tensor<3>; 2],
    plan: &BatchPlan,
) -> [Tensor<3>; 2] {
    let _span = trace_span!("kv_write").entered();
    for (cache, new) in caches.iter().zip(&new) {
        let ([slots, ..], [tokens, ..]) = (cache.dims(), new.dims());
        assert_eq!(cache.dims()[1..], new.dims()[1..], "[kv_heads, head_dim]");
        assert_fits(plan.layout(), tokens, slots);
    }
    let [keys, values] = &caches;
    if let Some(gpu) = Gpu::of(&keys.device())
        && gpu.attends(keys.dims()[2])
        && new.iter().all(|new| new.dtype() == DType::F32)
        && keys.dtype() == values.dtype()
    {
        return gpu.kv_write(caches, new, plan);
    }
    let ([keys, values], [k, v]) = (caches, new);
    [write_rows(keys, k, plan), write_rows(values, v, plan)]
}

/// Writes to one cache.
fn write_rows(cache: Tensor<3>, new: Tensor<3>, plan: &BatchPlan) -> Tensor<3> {
    let floats = |tensor: &Tensor<3>| matches!(tensor.dtype(), DType::F32 | DType::BF16);
    if is_untracked_cpu(&cache) && is_untracked_cpu(&new) && floats(&cache) && floats(&new) {
        Tensor::from_dispatch(Dispatch::kv_write(
            cache.into_dispatch(),
            new.into_dispatch(),
            plan.layout().clone(),
        ))
    } else {
        naive::kv_write(cache, new, plan)
    }
}

/// Attention over the cache, in the type `dtype`; see [`PagedOps::paged_attention`].
pub(crate) fn paged_attention(
    q: Tensor<3>,
    [k, v]: [Tensor<3>; 2],
    plan: &BatchPlan,
    dtype: DType,
) -> Tensor<3> {
    let _span = trace_span!("paged_attention").entered();
    let ([tokens, heads, head_dim], [slots, kv_heads, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), v.dims(), "keys and values differ in shape");
    assert_eq!(heads % kv_heads, 0, "query heads per key/value head");
    assert_eq!(head_dim, k.dims()[2], "head_dim");
    assert_fits(plan.layout(), tokens, slots);
    let has_types = q.dtype() == DType::F32 && k.dtype() == v.dtype();
    if let Some(gpu) = Gpu::of(&q.device())
        && gpu.attends(head_dim)
        && has_types
    {
        return gpu.paged_attention(q, [k, v], plan, dtype);
    }
    let is_fast = has_types
        && matches!(k.dtype(), DType::F32 | DType::BF16)
        && cpu::supports(head_dim)
        && [&q, &k, &v].into_iter().all(is_untracked_cpu);
    let out = if is_fast {
        Tensor::from_dispatch(Dispatch::paged_attention(
            q.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            plan.layout().clone(),
        ))
    } else {
        naive::paged_attention(q, k, v, plan)
    }; // [tokens, heads, head_dim]
    in_dtype(out, dtype)
}

/// Attention within documents, in the type `dtype`; see [`CausalOps::causal_attention`].
pub(crate) fn causal_attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    plan: &DocumentPlan,
    dtype: DType,
) -> Tensor<3> {
    let _span = trace_span!("causal_attention").entered();
    let ([tokens, heads, head_dim], [_, kv_heads, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), v.dims(), "keys and values differ in shape");
    assert_eq!(heads % kv_heads, 0, "query heads per key/value head");
    assert_eq!(k.dims(), [tokens, kv_heads, head_dim], "keys");
    assert_eq!(tokens, plan.num_tokens(), "tokens of all documents");
    let is_fast = [&q, &k, &v].into_iter().all(is_f32_on_cpu);
    let out = if is_fast && cpu::supports(head_dim) {
        Tensor::from_dispatch(Dispatch::causal_attention(
            q.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            plan.lengths().clone(),
        ))
    } else {
        naive::causal_attention(q, k, v, plan)
    }; // [tokens, heads, head_dim]
    in_dtype(out, dtype)
}

/// The only check between a batch and a cache; the kernels index without any.
fn assert_fits(layout: &BatchLayout, tokens: usize, slots: usize) {
    assert_eq!(tokens, layout.num_tokens(), "tokens of the batch");
    let needed = layout.num_slots;
    assert!(
        needed <= slots,
        "the batch names cache row {} of {slots}",
        needed.saturating_sub(1)
    );
}

/// Forgets what this thread's kernels keep on devices between launches. Call it when a device has failed to compute
/// something: the failed kernels have not left what the next launch expects.
pub fn forget_device_state() {
    device::forget_state();
}

#[cfg(test)]
mod tests;
