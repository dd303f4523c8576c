//! Cross-entropy of rows of logits, which become its gradient.

// `#[cube]` makes a module without a comment for each public function.
#![allow(missing_docs)]

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::int8_head::max_of_cube;
use super::{
    CubeTensor, DType, Shape, UNITS, dtype_to_elem_type, empty_device_contiguous_dtype,
    into_contiguous,
};
use lora_4bit::kernels::sum_of_cube;

/// Below every logit. Finite, since WGSL has no infinities.
const LOWEST: f32 = -1e30;

/// The losses `[rows]` f32 of `logits [rows, vocab]` with a target for each row, and `logits`, overwritten with the gradient of
/// `scale` times their sum.
pub(super) fn cross_entropy(
    logits: CubeTensor,
    targets: CubeTensor,
    scale: f32,
) -> (CubeTensor, CubeTensor) {
    let logits = into_contiguous(logits);
    let [rows, vocab] = logits.meta.shape().dims();
    let (client, device) = (logits.client.clone(), logits.device.clone());
    let losses = empty_device_contiguous_dtype(client, device, Shape::new([rows]), DType::F32);
    let vector = if vocab.is_multiple_of(4) { 4 } else { 1 };
    let dtype = dtype_to_elem_type(logits.dtype);
    if rows > 0 {
        // SAFETY: a cube for each row; units stay below `vocab`, and so do the targets.
        unsafe {
            cross_entropy_kernel::launch_unchecked(
                &logits.client.clone(),
                CubeCount::Static(rows as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                vector,
                logits.clone().into_buffer_arg(),
                into_contiguous(targets).into_buffer_arg(),
                losses.clone().into_buffer_arg(),
                vocab / vector,
                scale,
                dtype,
            );
        }
    }
    (losses, logits)
}

#[cube(launch_unchecked)]
fn cross_entropy_kernel<E: Float, N: Size>(
    logits: &mut [Vector<E, N>],
    targets: &[i32],
    losses: &mut [f32],
    vectors: usize,
    scale: f32,
    #[define(E)] _dtype: ElemType,
) {
    let row = CUBE_POS_X as usize;
    let start = row * vectors;
    let unit = UNIT_POS as usize;
    let mut highest = f32::new(LOWEST);
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < vectors {
        let values = Vector::<f32, N>::cast_from(logits[start + i]);
        let mut new = highest;
        #[unroll]
        for j in 0..values.vector_size() {
            new = max(new, values.extract(j));
        }
        sum *= (highest - new).exp();
        let weights = (values - Vector::new(new)).exp();
        #[unroll]
        for j in 0..values.vector_size() {
            sum += weights.extract(j);
        }
        highest = new;
        i += UNITS;
    }
    let maximum = max_of_cube(highest);
    sync_cube();
    let total = sum_of_cube(sum * (highest - maximum).exp());
    let lse = maximum + total.ln();
    let target = targets[row] as usize;
    let mut i = unit;
    while i < vectors {
        let values = Vector::<f32, N>::cast_from(logits[start + i]);
        let mut gradient = (values - Vector::new(lse)).exp();
        #[unroll]
        for j in 0..values.vector_size() {
            if i * values.vector_size() + j == target {
                losses[row] = lse - values.extract(j);
                gradient.insert(j, gradient.extract(j) - 1.0);
            }
        }
        logits[start + i] = Vector::cast_from(gradient * Vector::new(scale));
        i += UNITS;
    }
}
