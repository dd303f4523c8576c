//! CPU room: one pass over each row, in parallel where there is enough work.

// For the calls of functions that are compiled for one instruction set.
#![allow(unsafe_code)]

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::ModelOps;
use crate::exp::exp;

/// Elements below which handing work to other threads costs more than it saves.
const PARALLEL_FROM: usize = 16 * 1024;

/// Runs `f(index, row)` over the rows of `data`, on all threads if the tensor is large.
fn for_each_row(data: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
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
    let mut x = contiguous(x);
    for_each_row(x.storage_mut::<f32>(), width, f);
    x
}

/// A tensor whose storage is exactly its elements, in order.
fn contiguous(x: FlexTensor) -> FlexTensor {
    let exact = x.is_contiguous()
        && x.layout().start_offset() == 0
        && x.bytes().len() == x.layout().num_elements() * size_of::<f32>();
    if exact {
        x
    } else {
        FlexTensor::from_data(x.to_contiguous().into_data())
    }
}

/// Defines a loop over rows twice: for the instruction set of the build, and for x86-64 with AVX2 and FMA, chosen at run
/// time. Both are the same code, vectorised by the compiler.
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) {
                    body($($arg),*);
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the CPU has both.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*);
        }
    };
}

vectorized! {
    /// `row = row / rms(row) * weight`
    fn normalize(row: &mut [f32], weight: &[f32], eps: f32) {
        let inv_rms = inverse_rms(row, eps);
        for (v, w) in row.iter_mut().zip(weight) {
            *v = *v * inv_rms * w;
        }
    }
}

vectorized! {
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

vectorized! {
    /// `gate = silu(gate) * up`
    fn gate_up(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

vectorized! {
    /// Turns `gate` and `up` into their gradients.
    fn gate_up_backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
        for ((g, u), d) in gate.iter_mut().zip(up).zip(dy) {
            let sigmoid = 1.0 / (1.0 + exp(-*g));
            let silu = *g * sigmoid;
            (*g, *u) = (d * *u * (sigmoid + silu * (1.0 - sigmoid)), d * silu);
        }
    }
}

vectorized! {
    /// Turns logits into `scale * (softmax - one-hot)`, and adds the cross-entropy of the target to `loss`.
    fn cross_entropy_row(logits: &mut [f32], target: usize, scale: f32, loss: &mut f32) {
        let max = logits.iter().fold(f32::NEG_INFINITY, |max, v| if *v > max { *v } else { max });
        let chosen = logits[target];
        let mut total = 0f64;
        // Sums of a few thousand values each, so that f32 is exact enough within and f64 between them.
        for block in logits.chunks_mut(4096) {
            total += f64::from(exp_sum(block, max));
        }
        *loss += (total.ln() + f64::from(max) - f64::from(chosen)) as f32;
        let factor = (f64::from(scale) / total) as f32;
        for v in &mut *logits {
            *v *= factor;
        }
        logits[target] -= scale;
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

/// Replaces values by `e^(value - max)` and returns their sum.
#[inline(always)]
fn exp_sum(values: &mut [f32], max: f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let mut chunks = values.chunks_exact_mut(16);
    for chunk in chunks.by_ref() {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *v = exp(*v - max);
            *sum += *v;
        }
    }
    for v in chunks.into_remainder() {
        *v = exp(*v - max);
        sums[0] += *v;
    }
    sums.iter().sum()
}

impl ModelOps for Flex {
    fn fused_rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
        let weight = contiguous(weight);
        let weight = weight.storage::<f32>();
        map_rows(x, weight.len(), |_, row| normalize(row, weight, eps as f32))
    }

    fn fused_silu_mul(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let up = contiguous(up);
        let up = up.storage::<f32>();
        // Elementwise: any row width does; this one splits evenly over threads.
        let width = gate.layout().shape()[1];
        map_rows(gate, width, |i, row| {
            gate_up(row, &up[i * width..][..width])
        })
    }
}

/// The gradient of `x` from that of its norm.
pub(super) fn rms_norm_backward(
    x: FlexTensor,
    weight: FlexTensor,
    eps: f64,
    dy: FlexTensor,
) -> FlexTensor {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let (x, weight) = (x.storage::<f32>(), weight.storage::<f32>());
    let dim = weight.len();
    map_rows(dy, dim, |i, dy| {
        normalize_backward(&x[i * dim..][..dim], weight, eps as f32, dy);
    })
}

/// The gradients of `gate` and `up` from that of `silu(gate) * up`.
pub(super) fn silu_mul_backward(
    gate: FlexTensor,
    up: FlexTensor,
    dy: FlexTensor,
) -> [FlexTensor; 2] {
    let (mut gate, mut up, dy) = (contiguous(gate), contiguous(up), contiguous(dy));
    let width = gate.layout().shape()[1];
    gate.storage_mut::<f32>()
        .par_chunks_mut(width)
        .zip(up.storage_mut::<f32>().par_chunks_mut(width))
        .zip(dy.storage::<f32>().par_chunks(width))
        .for_each(|((gate, up), dy)| gate_up_backward(gate, up, dy));
    [gate, up]
}

/// See [`super::cross_entropy`]; `logits [rows, vocab]` become their gradient.
pub(super) fn cross_entropy(logits: &mut [f32], targets: &[u32], scale: f32) -> f32 {
    let vocab = logits.len() / targets.len();
    logits
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, &target)| {
            let mut loss = 0.0;
            cross_entropy_row(row, target as usize, scale, &mut loss);
            loss
        })
        .sum()
}
