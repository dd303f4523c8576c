//! Cross-entropy of rows of logits, which become its gradient.

// `#[cube]` makes a module without a comment for each public function.
#![allow(missing_docs)]

use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::units::max_of_cube;
use lora_4bit::kernels::launch::UNITS;
use lora_4bit::kernels::sum_of_cube;

/// Below every logit. Finite, since WGSL has no infinities.
const LOWEST: f32 = -1e30;

/// Numbers that are known of a row: its cross-entropy, whether the target is the first of the largest logits, its entropy.
const KNOWN: usize = 3;

/// What is known of `logits [rows, vocab]` with a target for each row, `[rows, 3]` f32, and `logits`, overwritten with the
/// gradient of `scale` times the sum of the cross-entropies.
pub(super) fn cross_entropy(
    logits: CubeTensor,
    targets: CubeTensor,
    scale: f32,
) -> (CubeTensor, CubeTensor) {
    let logits = into_contiguous(logits);
    let [rows, vocab] = logits.meta.shape().dims();
    let (client, device) = (logits.client.clone(), logits.device.clone());
    let shape = Shape::new([rows, KNOWN]);
    let known = empty_device_contiguous_dtype(client, device, shape, DType::F32);
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
                known.clone().into_buffer_arg(),
                vocab / vector,
                scale,
                dtype,
            );
        }
    }
    (known, logits)
}

#[cube(launch_unchecked)]
fn cross_entropy_kernel<E: Float, N: Size>(
    logits: &mut [Vector<E, N>],
    targets: &[i32],
    known: &mut [f32],
    vectors: usize,
    scale: f32,
    #[define(E)] _dtype: ElemType,
) {
    let row = CUBE_POS_X as usize;
    let start = row * vectors;
    let unit = UNIT_POS as usize;
    let mut highest = f32::new(LOWEST);
    let mut sum = 0.0f32;
    // Of the weights in `sum` times how far their logits are below `highest`.
    let mut products = 0.0f32;
    let mut i = unit;
    while i < vectors {
        let values = Vector::<f32, N>::cast_from(logits[start + i]);
        let mut new = highest;
        #[unroll]
        for j in 0..values.vector_size() {
            new = max(new, values.extract(j));
        }
        let below = highest - new;
        products = (products + below * sum) * below.exp();
        sum *= below.exp();
        let distances = values - Vector::new(new);
        let weights = distances.exp();
        let weighted = weights * distances;
        #[unroll]
        for j in 0..values.vector_size() {
            sum += weights.extract(j);
            products += weighted.extract(j);
        }
        highest = new;
        i += UNITS;
    }
    let maximum = max_of_cube(highest);
    sync_cube();
    let below = highest - maximum;
    let total = sum_of_cube(sum * below.exp());
    sync_cube();
    let product = sum_of_cube((products + below * sum) * below.exp());
    let lse = maximum + total.ln();
    let target = targets[row] as usize;
    // The logits that `argmax` prefers to the target: larger ones, and as large ones before it.
    let mut preferred = 0.0f32;
    let mut i = unit;
    while i < vectors {
        let values = Vector::<f32, N>::cast_from(logits[start + i]);
        let mut gradient = (values - Vector::new(lse)).exp();
        #[unroll]
        for j in 0..values.vector_size() {
            let column = i * values.vector_size() + j;
            if column == target {
                known[row * KNOWN] = lse - values.extract(j);
                gradient.insert(j, gradient.extract(j) - 1.0);
                if values.extract(j) < maximum {
                    preferred += 1.0;
                }
            } else if column < target && values.extract(j) >= maximum {
                preferred += 1.0;
            }
        }
        logits[start + i] = Vector::cast_from(gradient * Vector::new(scale));
        i += UNITS;
    }
    sync_cube();
    let num_preferred = sum_of_cube(preferred);
    if unit == 0 {
        let mut is_right = 0.0f32;
        if num_preferred == 0.0 {
            is_right = 1.0f32;
        }
        known[row * KNOWN + 1] = is_right;
        known[row * KNOWN + 2] = total.ln() - product / total;
    }
}
