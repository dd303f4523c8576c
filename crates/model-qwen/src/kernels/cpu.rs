//! CPU room: one pass over each row, in parallel where there is enough work.

// For the calls of functions that are compiled for one instruction set.
#![allow(unsafe_code)]

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::ModelOps;
use lora_4bit::kernels::exp::exp;
use lora_4bit::vectorized;

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

vectorized! {
    /// Rotates the halves of each head by the angles of one token.
    fn rotate_heads(row: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let s = s * direction;
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
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
    fn fused_rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        rotate(x, cos, sin, 1.0)
    }
}

/// Rotary embedding; with direction -1 the other way round, which is also its gradient.
pub(super) fn rotate(
    x: FlexTensor,
    cos: FlexTensor,
    sin: FlexTensor,
    direction: f32,
) -> FlexTensor {
    let (cos, sin) = (contiguous(cos), contiguous(sin));
    let (cos, sin) = (cos.storage::<f32>(), sin.storage::<f32>());
    let (heads, head_dim) = (x.layout().shape()[1], x.layout().shape()[2]);
    let half = head_dim / 2;
    map_rows(x, heads * head_dim, |token, row| {
        let angles = token * half..(token + 1) * half;
        rotate_heads(row, &cos[angles.clone()], &sin[angles], direction);
    })
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
