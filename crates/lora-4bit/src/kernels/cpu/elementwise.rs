//! RMSNorm and SwiGLU: one pass over each row, in parallel where there is enough work.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::product::exact;
use crate::kernels::elementwise::ElementwiseOps;
use crate::kernels::exp::exp;

/// Elements below which handing work to other threads costs more than it saves.
const PARALLEL_FROM: usize = 16 * 1024;
/// Products that are added up in f32, before the sum of the sums in f64.
const EXACT_SUM: usize = 4096;

/// Runs `f(index, row)` over the rows of `data`, on all threads if the tensor is large.
fn for_each_row(data: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if data.is_empty() {
        return;
    }
    if data.len() < PARALLEL_FROM {
        data.chunks_exact_mut(width)
            .enumerate()
            .for_each(|(i, row)| f(i, row));
    } else {
        let rows_per_task = (PARALLEL_FROM / 4 / width).max(1);
        data.par_chunks_exact_mut(width)
            .with_min_len(rows_per_task)
            .enumerate()
            .for_each(|(i, row)| f(i, row));
    }
}

/// `f` applied to the rows of a copy of `x`, or of `x` itself when nobody else holds it.
fn map_rows(x: FlexTensor, width: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
    let mut x = exact(x);
    if let Some(values) = x.try_storage_mut::<f32>() {
        for_each_row(values, width, f);
        return x;
    }
    // The threads that compute the rows also copy them: most of a copy's time are page faults of new memory.
    let from = x.storage::<f32>();
    let mut y = vec![0.0; from.len()];
    for_each_row(&mut y, width, |i, row| {
        row.copy_from_slice(&from[i * width..][..width]);
        f(i, row);
    });
    let shape = x.layout().shape().clone();
    FlexTensor::from_data(TensorData::new(y, shape))
}

crate::vectorized! {
    /// `row = row / rms(row) * weight`
    fn normalize(row: &mut [f32], weight: &[f32], eps: f32) {
        let inv_rms = inverse_rms(row, eps);
        for (v, w) in row.iter_mut().zip(weight) {
            *v = *v * inv_rms * w;
        }
    }
}

crate::vectorized! {
    /// Turns the gradient `dy` of a normalised row into that of `x`.
    fn normalize_backward(x: &[f32], weight: &[f32], eps: f32, dy: &mut [f32]) {
        let inv_rms = inverse_rms(x, eps);
        for (d, w) in dy.iter_mut().zip(weight) {
            *d *= w;
        }
        let slope = dot(x, dy) * inv_rms * inv_rms / x.len() as f32;
        for (d, x) in dy.iter_mut().zip(x) {
            *d = (*d - x * slope) * inv_rms;
        }
    }
}

crate::vectorized! {
    /// `gate = silu(gate) * up`
    fn gate_up(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

crate::vectorized! {
    /// Turns `gate` and `up` into their gradients.
    fn gate_up_backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
        for ((g, u), d) in gate.iter_mut().zip(up).zip(dy) {
            let sigmoid = 1.0 / (1.0 + exp(-*g));
            let silu = *g * sigmoid;
            (*g, *u) = (d * *u * (sigmoid + silu * (1.0 - sigmoid)), d * silu);
        }
    }
}

crate::vectorized! {
    /// `y = y + x`
    fn add_row(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

crate::vectorized! {
    /// `sum = Σ x · y`
    fn inner_product(x: &[f32], y: &[f32], sum: &mut f32) {
        *sum = dot(x, y);
    }
}

#[inline(always)]
fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mean_square = dot(row, row) / row.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}

/// `Σ a · b` with sixteen running sums, so that the compiler can vectorise it.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail = a.remainder().iter().zip(b.remainder());
    let tail: f32 = tail.map(|(a, b)| a * b).sum();
    let mut sums = [0.0f32; 16];
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + tail
}

impl ElementwiseOps for Flex {
    fn cpu_rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
        let weight = exact(weight);
        let weight = weight.storage::<f32>();
        map_rows(x, weight.len(), |_, row| normalize(row, weight, eps as f32))
    }

    fn cpu_swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let up = exact(up);
        let up = up.storage::<f32>();
        // Elementwise: any row width does; this one splits evenly over threads.
        let width = gate.layout().shape()[1];
        map_rows(gate, width, |i, row| {
            gate_up(row, &up[i * width..][..width])
        })
    }

    fn cpu_add(residual: FlexTensor, y: FlexTensor) -> FlexTensor {
        let residual = exact(residual);
        let residual = residual.storage::<f32>();
        let width = y.layout().shape()[1];
        map_rows(y, width, |i, row| {
            add_row(row, &residual[i * width..][..width])
        })
    }

    fn cpu_inner_product(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        let (x, y) = (exact(x), exact(y));
        let pairs =
            (x.storage::<f32>().chunks(EXACT_SUM)).zip(y.storage::<f32>().chunks(EXACT_SUM));
        let sums = pairs.map(|(x, y)| {
            let mut sum = 0.0;
            inner_product(x, y, &mut sum);
            f64::from(sum)
        });
        let sum: f64 = sums.sum();
        FlexTensor::from_data(TensorData::new(vec![sum as f32], [1]))
    }

    fn cpu_add_bias(y: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let bias = exact(bias);
        let bias = bias.storage::<f32>();
        map_rows(y, bias.len(), |_, row| add_row(row, bias))
    }
}

/// The gradient of `x` from that of the inner product with `y`.
pub(in super::super) fn inner_product_backward(y: FlexTensor, d: &FlexTensor) -> FlexTensor {
    let factor = d.storage::<f32>()[0];
    // What starts a backward pass has the gradient one.
    match factor == 1.0 {
        true => y,
        false => map_rows(y, 1, |_, value| value[0] *= factor),
    }
}

/// The gradient of `x` from that of its norm.
pub(in super::super) fn rms_norm_backward(
    x: FlexTensor,
    weight: FlexTensor,
    eps: f64,
    dy: FlexTensor,
) -> FlexTensor {
    let (x, weight) = (exact(x), exact(weight));
    let (x, weight) = (x.storage::<f32>(), weight.storage::<f32>());
    let dim = weight.len();
    map_rows(dy, dim, |i, dy| {
        normalize_backward(&x[i * dim..][..dim], weight, eps as f32, dy);
    })
}

/// The gradients of `gate` and `up` from that of `silu(gate) * up`.
pub(in super::super) fn swiglu_backward(
    gate: FlexTensor,
    up: FlexTensor,
    dy: FlexTensor,
) -> [FlexTensor; 2] {
    let (mut gate, mut up, dy) = (exact(gate), exact(up), exact(dy));
    // Chunks have a value at least.
    let width = gate.layout().shape()[1].max(1);
    gate.storage_mut::<f32>()
        .par_chunks_mut(width)
        .zip(up.storage_mut::<f32>().par_chunks_mut(width))
        .zip(dy.storage::<f32>().par_chunks(width))
        .for_each(|((gate, up), dy)| gate_up_backward(gate, up, dy));
    [gate, up]
}
