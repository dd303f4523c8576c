//! Passes over logits: extremes, sums of exponentials, selection, drawing.
//!
//! All are linear in the vocabulary and give the same result on every run.

use std::cmp::Ordering;

/// A token and its weight (an unnormalized probability, or a logit).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) weight: f32,
}

/// Heavier first; equal weights in the order of ids. Total, because no weight is NaN.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Independent running values per loop, so that the compiler vectorizes.
const LANES: usize = 16;
/// Tokens whose weights are summed in f32 before they enter a f64 sum.
const BLOCK: usize = 512;

/// NaN becomes -inf (impossible), +inf the largest finite number; -0.0 becomes 0.0, so that
/// equal logits compare as equal.
pub(super) fn sanitize(logits: &mut [f32]) {
    for logit in logits {
        // Both comparisons are false for NaN.
        *logit = if *logit > f32::MAX {
            f32::MAX
        } else if *logit >= f32::NEG_INFINITY {
            *logit + 0.0
        } else {
            f32::NEG_INFINITY
        };
    }
}

/// The largest logit and the lowest id that has it; (0, -inf) for no logits.
pub(super) fn argmax(logits: &[f32]) -> (u32, f32) {
    let max = maximum(logits);
    let id = logits.iter().position(|&l| l == max).unwrap_or(0);
    (id as u32, max)
}

fn maximum(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |max, &logit| max.max(logit))
}

/// e^x for x <= 0; 0 below -87.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    if x < -87.0 {
        0.0
    } else {
        lora_4bit::kernels::exp::exp(x)
    }
}

/// Sum of exp((logit - max) * scale), in f32 lanes.
fn block_weight(block: &[f32], max: f32, scale: f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += exp((logit - max) * scale);
        }
    }
    let rest: f64 = rest
        .iter()
        .map(|&logit| f64::from(exp((logit - max) * scale)))
        .sum();
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest
}

/// log(sum(exp(logits))); -inf if nothing is possible.
pub(super) fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = maximum(logits);
    if max == f32::NEG_INFINITY {
        return max;
    }
    (f64::from(max) + total_weight(logits, max, 1.0).ln()) as f32
}

/// Sum of exp((logit - max) * scale) over the vocabulary.
pub(super) fn total_weight(logits: &[f32], max: f32, scale: f32) -> f64 {
    let blocks = logits.chunks(BLOCK);
    blocks.map(|block| block_weight(block, max, scale)).sum()
}

/// Draws from the whole vocabulary: the token at which the running sum of weights passes `u`
/// (in [0, 1)) of the total. `None` only if every weight is 0.
pub(super) fn draw_dense(logits: &[f32], max: f32, scale: f32, u: f64) -> Option<u32> {
    let blocks: Vec<f64> = logits
        .chunks(BLOCK)
        .map(|block| block_weight(block, max, scale))
        .collect();
    let mut left = u * blocks.iter().sum::<f64>();
    let mut last = None;
    for (index, (block, &total)) in logits.chunks(BLOCK).zip(&blocks).enumerate() {
        if left >= total {
            // Past this block. If rounding carries past all of them, its last token is the answer.
            left -= total;
            if total > 0.0 {
                last = Some(index);
            }
            continue;
        }
        last = Some(index);
        for (i, &logit) in block.iter().enumerate() {
            let weight = f64::from(exp((logit - max) * scale));
            if left < weight {
                return Some((index * BLOCK + i) as u32);
            }
            left -= weight;
        }
        break;
    }
    let start = last? * BLOCK;
    let block = logits[start..].iter().take(BLOCK);
    let last = block
        .enumerate()
        .rfind(|(_, logit)| exp((**logit - max) * scale) > 0.0);
    last.map(|(i, _)| (start + i) as u32)
}

/// Draws from `candidates`; see [`draw_dense`].
pub(super) fn draw(candidates: &[Candidate], u: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let mut left = u * total;
    for candidate in candidates {
        let weight = f64::from(candidate.weight);
        if left < weight {
            return Some(candidate.id);
        }
        left -= weight;
    }
    candidates.last().map(|c| c.id)
}

/// The `n` largest logits with their ids, best first, equal ones in the order of ids; fewer if
/// fewer are possible.
pub(super) fn top_n<'a>(
    logits: &[f32],
    n: usize,
    scratch: &'a mut Vec<Candidate>,
) -> &'a [Candidate] {
    scratch.clear();
    if n == 0 {
        return scratch;
    }
    // Everything above the n-th best so far is kept; when the buffer is full, it is cut to n.
    let capacity = n.saturating_mul(2).max(1024);
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > threshold {
            scratch.push(Candidate {
                id: id as u32,
                weight: logit,
            });
            if scratch.len() == capacity {
                scratch.select_nth_unstable_by(n - 1, best_first);
                scratch.truncate(n);
                threshold = scratch[n - 1].weight;
            }
        }
    }
    if scratch.len() > n {
        scratch.select_nth_unstable_by(n - 1, best_first);
        scratch.truncate(n);
    }
    scratch.sort_unstable_by(best_first);
    scratch
}

/// Keeps the smallest set of best candidates whose weights add up to at least `p` of `total`, at
/// least one and all if they do not suffice; the order stays.
pub(super) fn keep_top_p(
    candidates: &mut Vec<Candidate>,
    p: f32,
    total: f64,
    scratch: &mut Vec<Candidate>,
) {
    let mut needed = f64::from(p) * total;
    scratch.clear();
    scratch.extend_from_slice(candidates);

    // Halve the range in which the set ends until it can be sorted.
    let mut range = scratch.as_mut_slice();
    while range.len() > 64 {
        let middle = range.len() / 2;
        range.select_nth_unstable_by(middle, best_first);
        let (heavy, rest) = range.split_at_mut(middle);
        let weight: f64 = heavy.iter().map(|c| f64::from(c.weight)).sum();
        if weight >= needed {
            range = heavy;
        } else {
            needed -= weight;
            range = rest;
        }
    }
    range.sort_unstable_by(best_first);
    let mut last = range.last().copied();
    for candidate in range.iter() {
        needed -= f64::from(candidate.weight);
        if needed <= 0.0 {
            last = Some(*candidate);
            break;
        }
    }
    if let Some(last) = last {
        candidates.retain(|c| best_first(c, &last) != Ordering::Greater);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        for i in 0..=2_000_000 {
            let x = -87.0 * i as f32 / 2_000_000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): {error}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn top_n_equals_a_sort() {
        let mut state = 1u32;
        let logits: Vec<f32> = (0..5000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Few distinct values: many ties.
                (state >> 24) as f32
            })
            .collect();
        let mut sorted: Vec<Candidate> = (0..5000)
            .map(|id| Candidate {
                id,
                weight: logits[id as usize],
            })
            .collect();
        sorted.sort_by(best_first);
        let mut scratch = Vec::new();
        for n in [1, 2, 20, 511, 512, 2000, 5000, 9000] {
            let top = top_n(&logits, n, &mut scratch);
            assert_eq!(top, &sorted[..n.min(5000)], "{n}");
        }
    }

    #[test]
    fn draw_dense_covers_both_ends() {
        let mut logits = vec![f32::NEG_INFINITY; 3000];
        logits[700] = 1.0;
        logits[2100] = 1.0;
        assert_eq!(draw_dense(&logits, 1.0, 1.0, 0.0), Some(700));
        assert_eq!(draw_dense(&logits, 1.0, 1.0, 0.499), Some(700));
        assert_eq!(draw_dense(&logits, 1.0, 1.0, 0.5), Some(2100));
        assert_eq!(draw_dense(&logits, 1.0, 1.0, 1.0), Some(2100));
    }
}
