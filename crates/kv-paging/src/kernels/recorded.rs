//! The operations of a recorded step: one token per row, described by a tensor that stays where it is.
//!
//! They write to memory that other tensors hold, which only the kernels of a GPU do: they have no twin.

use burn::tensor::{DType, Device, Int, Tensor};
use tracing::trace_span;

use super::device::Gpu;
use super::plan::RecordedStep;
use crate::rotary::Rotary;
use crate::step_layout::FIELDS;

/// Whether a device has kernels for recorded steps, for heads of this length.
pub(crate) fn records_steps(device: &Device, head_dim: usize) -> bool {
    Gpu::of(device).is_some_and(|gpu| gpu.attends(head_dim))
}

/// Rotates queries and keys, writes keys and values to the caches and attends to these, one token per row.
///
/// # Shapes
///
/// - `q`: `[rows, heads, head_dim]`; `k`, `v`: `[rows, kv_heads, head_dim]`
/// - returns `[rows, heads, head_dim]` of type `dtype`
///
/// # Panics
///
/// Where [`records_steps`] says no: only the kernels of a GPU can write to memory that other tensors hold.
pub(crate) fn step_attention(
    qkv: [Tensor<3>; 3],
    rotary: &Rotary,
    step: RecordedStep<'_>,
    dtype: DType,
) -> Tensor<3> {
    let _span = trace_span!("step_attention", writes_first = step.writes_first).entered();
    let ([q, k, v], [keys, values]) = (&qkv, step.caches);
    let ([rows, heads, head_dim], [_, kv_heads, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), [rows, kv_heads, head_dim], "keys");
    assert_eq!(v.dims(), k.dims(), "keys and values differ in shape");
    assert_eq!(keys.dims()[1..], [kv_heads, head_dim], "the cache's heads");
    assert_eq!(keys.dims(), values.dims(), "the caches differ in shape");
    assert_eq!(keys.dtype(), values.dtype(), "the caches differ in type");
    assert_eq!(heads % kv_heads, 0, "query heads per key/value head");
    assert!(step.block_size > 0, "tokens per block");
    assert!(step.indices.dims()[0] >= FIELDS * rows, "rows of the step");
    for angles in [&rotary.cos, &rotary.sin] {
        assert_eq!(angles.dims(), [rows, 1, head_dim / 2], "angles");
    }
    for tensor in [q, k, v, &rotary.cos, &rotary.sin] {
        assert_eq!(tensor.dtype(), DType::F32, "queries, keys, values, angles");
    }
    let device = q.device();
    match Gpu::of(&device).filter(|gpu| gpu.attends(head_dim)) {
        Some(gpu) => gpu.step_attention(qkv, rotary, step, dtype),
        None => panic!("{device:?} has no kernels for recorded steps with heads of {head_dim}"),
    }
}

/// Writes `new` over the beginning of `old`, in place: all handles of `old` see it.
///
/// # Panics
///
/// If `new` is longer, or if the device has no kernels for recorded steps: see
/// [`DecodeStep::is_supported`](crate::DecodeStep::is_supported).
pub fn overwrite(old: &Tensor<1, Int>, new: Tensor<1, Int>) {
    assert!(
        new.dims()[0] <= old.dims()[0],
        "more values than there is room for"
    );
    let device = old.device();
    match Gpu::of(&device) {
        Some(gpu) => gpu.overwrite(old, new),
        None => panic!("{device:?} has no kernels for recorded steps"),
    }
}
