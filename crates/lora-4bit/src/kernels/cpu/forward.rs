//! `x · wᵀ`: tiles of rows of `w`, split over threads.

use rayon::prelude::*;

use super::ProductShape;
use super::nf4::Nf4Matrix;
use super::simd::{Element, Kernels, Order, Output};
use crate::nf4::BLOCK_SIZE;

/// Bytes of a tile in f32: about half of a second-level cache.
const TILE_BYTES: usize = 512 << 10;

/// More than this many rows of `x` pay for widening a tile into a buffer first.
const MAX_DIRECT_ROWS: usize = 64;

/// The same for unpacking NF4.
const MAX_NF4_DIRECT_ROWS: usize = 32;

/// Below this many multiplications one thread is faster than waking others.
const MIN_PARALLEL_WORK: usize = 1 << 16;

/// `y = x · wᵀ`: `x [m, k]`, `w [n, k]`, `y [m, n]`.
pub(super) fn dense<E: Element>(
    kernels: &Kernels,
    x: &[f32],
    w: &[E],
    shape: ProductShape,
    y: &mut [f32],
) {
    let k = shape.inner;
    for_each_tile(shape, y, |rows, scratch, y| {
        let tile = &w[rows.start * k..rows.end * k];
        // SAFETY: `kernels` fits the CPU; `y` has `m` rows, and these columns belong to this tile.
        unsafe {
            if shape.m <= MAX_DIRECT_ROWS || size_of::<E>() == size_of::<f32>() {
                E::dot(kernels)(x, tile, k, y);
            } else {
                scratch.resize(tile.len(), 0.0);
                E::widen(kernels)(tile, scratch);
                (kernels.dot_f32)(x, scratch, k, y);
            }
        }
    });
}

/// `y = x · wᵀ` with `w` in NF4: `x [m, k]`, `w [n, k]`, `y [m, n]`.
pub(super) fn nf4(
    kernels: &Kernels,
    x: &[f32],
    w: &Nf4Matrix<'_>,
    shape: ProductShape,
    y: &mut [f32],
) {
    let k = shape.inner;
    let whole_blocks = k.is_multiple_of(BLOCK_SIZE);
    let split; // [m, k]
    let (x, order) = if whole_blocks {
        split = split_pairs(x, kernels.lanes);
        (&split[..], Order::Split)
    } else {
        (x, Order::Natural)
    };
    for_each_tile(shape, y, |rows, scratch, y| {
        // SAFETY: `kernels` fits the CPU; `y` has `m` rows, and these columns belong to this tile.
        unsafe {
            if whole_blocks && shape.m <= MAX_NF4_DIRECT_ROWS {
                let blocks = rows.start * k / BLOCK_SIZE..rows.end * k / BLOCK_SIZE;
                let scales = w.scales(blocks.clone());
                (kernels.dot_nf4)(x, w.rows(blocks, &scales), k, y);
            } else {
                scratch.resize(rows.len() * k, 0.0);
                w.unpack(rows.start * k..rows.end * k, order, kernels, scratch);
                (kernels.dot_f32)(x, scratch, k, y);
            }
        }
    });
}

/// Calls `job` with every tile of rows of `w`, a scratch buffer, and the columns of `y` that belong to the tile.
fn for_each_tile(
    shape: ProductShape,
    y: &mut [f32],
    job: impl Fn(std::ops::Range<usize>, &mut Vec<f32>, Output) + Sync,
) {
    let ProductShape { m, inner, columns } = shape;
    let output = Output {
        start: y.as_mut_ptr(),
        stride: columns,
    };
    let parallel = m * inner * columns >= MIN_PARALLEL_WORK;
    let tile = if parallel {
        let cached = TILE_BYTES / (4 * inner);
        let spread = columns / (4 * rayon::current_num_threads());
        (cached.min(spread) / 4 * 4).max(4)
    } else {
        columns
    };
    let run = |scratch: &mut Vec<f32>, i: usize| {
        let rows = i * tile..usize::min((i + 1) * tile, columns);
        // SAFETY: a row of `w` is a column of `y`.
        let y = unsafe { output.at(0, rows.start) };
        job(rows, scratch, y);
    };
    let num_tiles = columns.div_ceil(tile);
    if parallel {
        (0..num_tiles).into_par_iter().for_each_init(Vec::new, run);
    } else {
        let mut scratch = Vec::new();
        (0..num_tiles).for_each(|i| run(&mut scratch, i));
    }
}

/// Every group of `2 * lanes` values rearranged: those at even positions, then those at odd ones.
fn split_pairs(x: &[f32], lanes: usize) -> Vec<f32> {
    let mut split = vec![0.0; x.len()];
    for (x, split) in x
        .chunks_exact(2 * lanes)
        .zip(split.chunks_exact_mut(2 * lanes))
    {
        let (even, odd) = split.split_at_mut(lanes);
        for ((pair, even), odd) in x.chunks_exact(2).zip(even).zip(odd) {
            *even = pair[0];
            *odd = pair[1];
        }
    }
    split
}
