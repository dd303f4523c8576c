//! CPU room: one pass over each row, in parallel where there is enough work.

// For the calls of functions that are compiled for one instruction set.
#![allow(unsafe_code)]

use lora_4bit::kernels::exp::exp;
use lora_4bit::vectorized;
use rayon::prelude::*;

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
