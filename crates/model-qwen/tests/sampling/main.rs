//! Sampling: distributions against exact probabilities, supports of top-k, top-p and min-p,
//! penalties against numbers worked out by hand, reproducibility.

#![allow(clippy::unwrap_used)]

mod choices;
mod constrained;
mod distribution;
mod exclusions;
mod top;

use std::collections::BTreeSet;

use model_qwen::{LogprobsMode, Sampler, SamplingParams, logprobs_of};
use proptest::prelude::*;

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits
        .iter()
        .map(|&l| ((f64::from(l) - f64::from(max)) / temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

fn counts(params: &SamplingParams, logits: &[f32], draws: usize) -> Vec<usize> {
    let params = SamplingParams {
        seed: Some(7),
        ..params.clone()
    };
    let mut sampler = Sampler::new(&params, &[], logits.len());
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(&mut logits.to_vec(), &[]).id as usize] += 1;
    }
    counts
}

/// Pearson's chi-square of `draws` draws against `exact` must stay below the 99.99 % quantile
/// (Wilson-Hilferty approximation); tokens of probability 0 must not be drawn.
fn check_distribution(params: &SamplingParams, logits: &[f32], exact: &[f64]) {
    let draws = 50_000;
    let counts = counts(params, logits, draws);
    let mut chi_square = 0.0;
    let mut cells = 0.0f64;
    let (mut rare_count, mut rare_expected) = (0.0, 0.0);
    for (id, (&count, &p)) in counts.iter().zip(exact).enumerate() {
        let expected = p * draws as f64;
        if p == 0.0 {
            assert_eq!(count, 0, "token {id} has probability 0");
        } else if expected < 10.0 {
            rare_count += count as f64;
            rare_expected += expected;
        } else {
            chi_square += (count as f64 - expected).powi(2) / expected;
            cells += 1.0;
        }
    }
    if rare_expected > 10.0 {
        chi_square += (rare_count - rare_expected).powi(2) / rare_expected;
        cells += 1.0;
    }
    let degrees = cells - 1.0;
    let spread = 2.0 / (9.0 * degrees);
    let quantile = degrees * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
    assert!(
        chi_square < quantile,
        "{chi_square} >= {quantile}, {degrees} degrees of freedom"
    );
}

/// Logits without a pattern, in -5..5.
fn logits(n: usize) -> Vec<f32> {
    let mut state = 12_345u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 10.0 - 5.0
        })
        .collect()
}

/// Probabilities when only `kept` may be drawn.
fn restricted(logits: &[f32], temperature: f64, kept: &BTreeSet<usize>) -> Vec<f64> {
    let masked: Vec<f32> = logits
        .iter()
        .enumerate()
        .map(|(i, &l)| {
            if kept.contains(&i) {
                l
            } else {
                f32::NEG_INFINITY
            }
        })
        .collect();
    softmax(&masked, temperature)
}

fn by_rank(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    ids
}

fn nucleus(logits: &[f32], temperature: f64, p: f64, among: &[usize]) -> BTreeSet<usize> {
    let all: BTreeSet<usize> = among.iter().copied().collect();
    let exact = restricted(logits, temperature, &all);
    let mut sum = 0.0;
    let mut kept = BTreeSet::new();
    for &id in among {
        kept.insert(id);
        sum += exact[id];
        if sum >= p {
            break;
        }
    }
    kept
}
