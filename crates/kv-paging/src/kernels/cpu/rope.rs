//! Rotary position embedding: one pass over each token's heads, on all threads where the work is worth it.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

/// Elements below which handing work to other threads costs more than it saves.
const PARALLEL_FROM: usize = 16 * 1024;

/// Turns the pairs of `x` `[tokens, heads, head_dim]` by the angles of `cos` and `sin` `[tokens, 1, head_dim / 2]`; with
/// direction -1 the other way round, which is also the gradient.
///
/// In place when nobody else holds `x`.
pub(in super::super) fn rope(
    x: FlexTensor,
    cos: FlexTensor,
    sin: FlexTensor,
    direction: f32,
) -> FlexTensor {
    let [mut x, cos, sin] = [x, cos, sin].map(exact);
    let (cos, sin) = (cos.storage::<f32>(), sin.storage::<f32>());
    let (heads, head_dim) = (x.layout().shape()[1], x.layout().shape()[2]);
    let (width, half) = (heads * head_dim, head_dim / 2);
    let turn = |(token, row): (usize, &mut [f32])| {
        let angles = token * half..(token + 1) * half;
        rotate_heads(row, &cos[angles.clone()], &sin[angles], direction);
    };
    let values = x.storage_mut::<f32>();
    if values.len() < PARALLEL_FROM {
        values.chunks_exact_mut(width).enumerate().for_each(turn);
    } else {
        let rows_per_task = (PARALLEL_FROM / 4 / width).max(1);
        let rows = values.par_chunks_exact_mut(width);
        rows.with_min_len(rows_per_task).enumerate().for_each(turn);
    }
    x
}

/// A tensor whose storage is exactly its elements, in order.
fn exact(x: FlexTensor) -> FlexTensor {
    let is_exact = x.is_contiguous()
        && x.layout().start_offset() == 0
        && x.bytes().len() == x.layout().num_elements() * size_of::<f32>();
    if is_exact {
        x
    } else {
        FlexTensor::from_data(x.to_contiguous().into_data())
    }
}

/// Rotates the halves of each head by the angles of one token, with AVX2 where the CPU has it. The compiler vectorises
/// both variants; no product is fused with a sum, so that both give the same bits.
fn rotate_heads(row: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(row: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
            rotate_pairs(row, cos, sin, direction);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has both.
            return unsafe { avx2(row, cos, sin, direction) };
        }
    }
    rotate_pairs(row, cos, sin, direction);
}

#[inline(always)]
fn rotate_pairs(row: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let half = cos.len();
    for head in row.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let s = s * direction;
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}
