//! `x · wᵀ`: tiles of rows of `w`, split over threads.

use std::cell::RefCell;

use rayon::prelude::*;

use super::aligned::Aligned;
use super::product::ProductShape;
use super::simd::ints::{IntKernels, IntRows};
use super::simd::{Element, Kernels, Nf4Rows, Order, Output};
use crate::nf4::BLOCK_SIZE;

/// Bytes of a tile in f32: about half of a second-level cache.
const TILE_BYTES: usize = 512 << 10;

/// Values of a tile that is read once: some microseconds of work, so that threads finish together.
const STREAMED_VALUES: usize = 32 << 10;

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
    y: *mut f32,
) {
    let k = shape.inner;
    for_each_tile(
        shape,
        Tiles::of_floats(MAX_DIRECT_ROWS),
        y,
        |rows, scratch, y| {
            let tile = &w[rows.start * k..rows.end * k];
            // SAFETY: `kernels` fits the CPU; `y` has `m` rows, and these columns belong to this tile.
            unsafe {
                if shape.m <= MAX_DIRECT_ROWS || size_of::<E>() == size_of::<f32>() {
                    E::dot(kernels)(x, tile, k, y);
                } else {
                    let wide = scratch.room(tile.len());
                    E::widen(kernels)(tile, wide);
                    (kernels.dot_f32)(x, wide, k, y);
                }
            }
        },
    );
}

/// `y = x · wᵀ` with `w` in NF4: `x [m, k]`, `w [n, k]`, `y [m, n]`.
pub(super) fn nf4(kernels: &Kernels, x: &[f32], w: Nf4Rows<'_>, shape: ProductShape, y: *mut f32) {
    let k = shape.inner;
    let whole_blocks = k.is_multiple_of(BLOCK_SIZE);
    let split; // [m, k]
    let (x, order) = if whole_blocks {
        split = split_pairs(x, kernels.lanes);
        (&split[..], Order::Split)
    } else {
        (x, Order::Natural)
    };
    for_each_tile(
        shape,
        Tiles::of_floats(MAX_NF4_DIRECT_ROWS),
        y,
        |rows, scratch, y| {
            // SAFETY: `kernels` fits the CPU; `y` has `m` rows, and these columns belong to this tile.
            unsafe {
                if whole_blocks && shape.m <= MAX_NF4_DIRECT_ROWS {
                    let blocks = rows.start * k / BLOCK_SIZE..rows.end * k / BLOCK_SIZE;
                    (kernels.dot_nf4)(x, w.blocks(blocks), k, y);
                } else {
                    let wide = scratch.room(rows.len() * k);
                    w.unpack(rows.start * k..rows.end * k, order, kernels, wide);
                    (kernels.dot_f32)(x, wide, k, y);
                }
            }
        },
    );
}

/// The same with `x` rounded to integers; `k` is a multiple of 64.
pub(super) fn nf4_ints(
    kernels: &IntKernels,
    x: &[f32],
    w: Nf4Rows<'_>,
    shape: ProductShape,
    y: *mut f32,
) {
    let k = shape.inner;
    let x = IntRows::new(kernels, x, k, w.map);
    let tiles = Tiles {
        max_direct: kernels.max_direct_rows,
        max_values: kernels.max_values,
        step: kernels.tile_rows,
    };
    for_each_tile(shape, tiles, y, |rows, scratch, y| {
        let blocks = rows.start * k / BLOCK_SIZE..rows.end * k / BLOCK_SIZE;
        // SAFETY: `kernels` fits the CPU; `y` has `m` rows, and these columns belong to this tile.
        unsafe { (kernels.dot)(&x, w.blocks(blocks), y, scratch) }
    });
}

thread_local! {
    /// Working memory of a thread, kept between products.
    static SCRATCH: RefCell<Aligned<f32>> = RefCell::default();
}

/// How the rows of `w` are divided.
struct Tiles {
    /// Up to so many rows of `x`, a tile is read once and needn't fit the cache beside its unpacked values.
    max_direct: usize,
    /// Values of a tile that has to fit.
    max_values: usize,
    /// Rows that go together.
    step: usize,
}

impl Tiles {
    /// The loops for floats take four rows of `w` at a time.
    fn of_floats(max_direct: usize) -> Self {
        Self {
            max_direct,
            max_values: TILE_BYTES / size_of::<f32>(),
            step: 4,
        }
    }
}

/// Calls `job` with every tile of rows of `w`, working memory, and the columns of `y` that belong to the tile.
fn for_each_tile(
    shape: ProductShape,
    Tiles {
        max_direct,
        max_values,
        step,
    }: Tiles,
    y: *mut f32,
    job: impl Fn(std::ops::Range<usize>, &mut Aligned<f32>, Output) + Sync,
) {
    let ProductShape { m, inner, columns } = shape;
    let output = Output {
        start: y,
        stride: columns,
    };
    let parallel = m * inner * columns >= MIN_PARALLEL_WORK;
    let tile = if parallel {
        let values = match m <= max_direct {
            true => STREAMED_VALUES,
            false => max_values,
        };
        let spread = columns / (4 * rayon::current_num_threads());
        ((values / inner).min(spread) / step * step).max(step)
    } else {
        columns
    };
    let run = |i: usize| {
        let rows = i * tile..usize::min((i + 1) * tile, columns);
        // SAFETY: a row of `w` is a column of `y`.
        let y = unsafe { output.at(0, rows.start) };
        SCRATCH.with_borrow_mut(|scratch| job(rows, scratch, y));
    };
    let tiles = 0..columns.div_ceil(tile);
    if parallel {
        // Single tiles, so that a thread that starts late or is interrupted leaves its share to the others.
        tiles.into_par_iter().with_max_len(1).for_each(run);
    } else {
        tiles.for_each(run);
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
