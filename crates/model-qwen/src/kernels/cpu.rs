//! CPU room: one pass over each row, in parallel where there is enough work.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::ModelOps;

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

/// Sum of squares with eight running sums, so that the compiler can vectorise it.
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let chunks = row.chunks_exact(8);
    let tail: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v * v;
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// `e^x` within 2 units in the last place, without a branch or a call, so that the compiler can vectorise a loop of it.
/// Arguments are clamped to `-87..=88`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Cephes' expf: e^x = 2^n * e^r with |r| <= ln(2)/2, and a polynomial of degree 5 for e^r.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    /// Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN2_HI - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    // The low bits of a float near 1.5 * 2^23 are the integer that was added to it.
    let power = f32::from_bits(((n + (ROUND + 127.0)).to_bits()) << 23);
    (p * r * r + r + 1.0) * power
}

impl ModelOps for Flex {
    fn fused_rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
        let weight = contiguous(weight);
        let weight = weight.storage::<f32>();
        let dim = weight.len();
        map_rows(x, dim, |_, row| {
            let mean_square = sum_of_squares(row) / dim as f32;
            let inv_rms = 1.0 / (mean_square + eps as f32).sqrt();
            for (v, w) in row.iter_mut().zip(weight) {
                *v = *v * inv_rms * w;
            }
        })
    }

    fn fused_rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        let (cos, sin) = (contiguous(cos), contiguous(sin));
        let (cos, sin) = (cos.storage::<f32>(), sin.storage::<f32>());
        let (heads, head_dim) = (x.layout().shape()[1], x.layout().shape()[2]);
        let half = head_dim / 2;
        map_rows(x, heads * head_dim, |token, row| {
            let angles = token * half..(token + 1) * half;
            for head in row.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(half);
                let angles = cos[angles.clone()].iter().zip(&sin[angles.clone()]);
                for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(angles) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        })
    }

    fn fused_silu_mul(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let up = contiguous(up);
        let up = up.storage::<f32>();
        // Elementwise: any row width does; this one splits evenly over threads.
        let width = gate.layout().shape()[1];
        map_rows(gate, width, |i, row| {
            for (g, u) in row.iter_mut().zip(&up[i * width..(i + 1) * width]) {
                *g = *g / (1.0 + exp(-*g)) * u;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_agrees_with_f64() {
        for i in 0..17_500 {
            let x = -87.0 + i as f32 * 0.01;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}) = {}, not {expected}", exp(x));
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::NAN).is_nan());
        assert_eq!(exp(1000.0), exp(88.0));
    }
}
