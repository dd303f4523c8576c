//! CPU room: one pass over each row, in parallel where there is enough work.

// For the calls of functions that are compiled for one instruction set.
#![allow(unsafe_code)]

use lora_4bit::kernels::exp::exp;
use lora_4bit::vectorized;
use rayon::prelude::*;

vectorized! {
    /// Turns logits into `scale * (softmax - one-hot)`, and adds to `found`: the cross-entropy of the target, 1 where it is the
    /// first of the largest logits, and the entropy of the softmax.
    fn cross_entropy_row(logits: &mut [f32], target: usize, scale: f32, found: &mut [f32; 3]) {
        let max = logits.iter().fold(f32::NEG_INFINITY, |max, v| if *v > max { *v } else { max });
        let chosen = logits[target];
        // Of equal logits the first one is the likeliest, as `argmax` has it.
        if chosen >= max && logits[..target].iter().all(|v| *v < max) {
            found[1] += 1.0;
        }
        let (mut total, mut product) = (0f64, 0f64);
        // Sums of a few thousand values each, so that f32 is exact enough within and f64 between them.
        for block in logits.chunks_mut(4096) {
            let [sum, products] = exp_sum(block, max);
            total += f64::from(sum);
            product += f64::from(products);
        }
        found[0] += (total.ln() + f64::from(max) - f64::from(chosen)) as f32;
        found[2] += (total.ln() - product / total) as f32;
        let factor = (f64::from(scale) / total) as f32;
        for v in &mut *logits {
            *v *= factor;
        }
        logits[target] -= scale;
    }
}

/// Replaces values by `e^(value - max)`. Returns their sum, and that of their products with `value - max`.
#[inline(always)]
fn exp_sum(values: &mut [f32], max: f32) -> [f32; 2] {
    let (mut sums, mut products) = ([0.0f32; 16], [0.0f32; 16]);
    let mut chunks = values.chunks_exact_mut(16);
    for chunk in chunks.by_ref() {
        for ((sum, product), v) in sums.iter_mut().zip(&mut products).zip(chunk) {
            let below = *v - max;
            *v = exp(below);
            *sum += *v;
            *product += *v * below;
        }
    }
    for v in chunks.into_remainder() {
        let below = *v - max;
        *v = exp(below);
        sums[0] += *v;
        products[0] += *v * below;
    }
    [sums.iter().sum(), products.iter().sum()]
}

/// See [`super::cross_entropy_of_rows`]; `logits [rows, vocab]` become their gradient.
pub(super) fn cross_entropy_of_rows(
    logits: &mut [f32],
    targets: &[u32],
    scale: f32,
) -> Vec<[f32; 3]> {
    let vocab = logits.len() / targets.len();
    let rows = logits.par_chunks_mut(vocab).zip(targets);
    rows.map(|(row, &target)| {
        let mut found = [0.0; 3];
        cross_entropy_row(row, target as usize, scale, &mut found);
        found
    })
    .collect()
}

/// See [`super::weighted_cross_entropy`]; `logits [rows, vocab]` become their gradient.
pub(super) fn weighted_cross_entropy(
    logits: &mut [f32],
    targets: &[u32],
    weight: &(dyn Fn(usize, f32) -> f32 + Sync),
) -> Vec<[f32; 3]> {
    let vocab = logits.len() / targets.len();
    let rows = logits.par_chunks_mut(vocab).zip(targets).enumerate();
    rows.map(|(index, (row, &target))| {
        let mut found = [0.0; 3];
        cross_entropy_row(row, target as usize, 1.0, &mut found);
        let weight = weight(index, found[0]);
        row.iter_mut().for_each(|value| *value *= weight);
        found
    })
    .collect()
}

/// See [`super::cross_entropy`]; `logits [rows, vocab]` become their gradient.
pub(super) fn cross_entropy(logits: &mut [f32], targets: &[u32], scale: f32) -> [f32; 3] {
    let rows = cross_entropy_of_rows(logits, targets, scale);
    // One order of the sum, so that a run repeats bit for bit.
    rows.into_iter().fold([0.0; 3], |sums, row| {
        std::array::from_fn(|i| sums[i] + row[i])
    })
}
