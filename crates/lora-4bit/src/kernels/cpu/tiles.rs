//! `x · wᵀ` with a bf16 weight, in AMX tiles; and two of them as the halves of an MLP.
//!
//! The weight is read where it lies, a tile of 16 rows at a time; `x` is rearranged, a chunk of the inner dimension at a time.
//! A thread multiplies some rows of the weight, which stay in its second-level cache, with all rows of `x`.

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;
use rayon::prelude::*;

use super::aligned::Aligned;
use super::product::ProductShape;
use super::simd::amx::{TILE_BYTES, TILE_ROWS, Tiles, is_available};
use super::simd::tiles_amx::{
    Extent, Places, STEP, SUMS, Strip, copy_tiles, fetch, multiply_tall, multiply_wide, pack,
    store, store_gated,
};
use super::simd::{InstructionSet, Output};

/// Rows of `x` that are multiplied before the next ones.
const MAX_ROWS: usize = 512;

/// Up to so many strips of rows of `x` are multiplied at once, so that the weight is read once.
const STREAMED_STRIPS: usize = 2;

/// Inner values that are multiplied before the next ones, where there are more strips.
const MAX_INNER: usize = 1024;

/// Bytes of the weight that stay in the second-level cache while they are multiplied; those that come next are fetched meanwhile.
const JOB_BYTES: usize = 512 << 10;

/// Bytes of a weight that is read once: some microseconds of work, so that threads finish together.
const STREAMED_BYTES: usize = 128 << 10;

/// Bytes of sums that are not complete, for each thread.
const SUM_BYTES: usize = 4 << 20;

/// Of how many bf16 a value of `x` is the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// The nearest.
    One = 1,
    /// Three, whose sum it is.
    Three = 3,
}

/// Whether the CPU has tiles and `LORA_4BIT_SIMD` allows them.
pub(super) fn are_available() -> bool {
    InstructionSet::limit() >= InstructionSet::Amx && is_available()
}

/// Working memory.
#[derive(Default)]
struct Scratch {
    /// `x` in tiles.
    packed: Aligned<bf16>,
    /// Sums that are not complete, `[strips, tiles]`.
    sums: Aligned<f32>,
    /// The last rows of a weight, if they are no whole tile.
    last: Aligned<bf16>,
}

/// What products that are not being computed have left: one of them in most programs, whichever threads they run on.
static SCRATCH: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

impl Scratch {
    fn pool() -> MutexGuard<'static, Vec<Self>> {
        SCRATCH.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// A job's part of a weight.
    static COPY: Cell<Aligned<bf16>> = Cell::default();
}

/// `y = x · wᵀ`: `x [m, k]`, `w [n, k]`, `y [m, n]`; `k` is a multiple of [`STEP`].
pub(super) fn forward(parts: Parts, x: &[f32], w: &[bf16], shape: ProductShape, y: *mut f32) {
    multiply(parts, x, [w], shape, y);
}

/// `y = silu(x · gateᵀ) · (x · upᵀ)`, in shapes as of [`forward`].
pub(super) fn gated(
    parts: Parts,
    x: &[f32],
    gate_and_up: [&[bf16]; 2],
    shape: ProductShape,
    y: *mut f32,
) {
    multiply(parts, x, gate_and_up, shape, y);
}

/// [`forward`] with one weight, [`gated`] with two.
fn multiply<const N: usize>(
    parts: Parts,
    x: &[f32],
    weights: [&[bf16]; N],
    shape: ProductShape,
    y: *mut f32,
) {
    let ProductShape { m, inner, columns } = shape;
    let mut scratch = Scratch::pool().pop().unwrap_or_default();
    let whole = columns / TILE_ROWS;
    let tile_len = TILE_ROWS * inner;
    if !columns.is_multiple_of(TILE_ROWS) {
        let last = scratch.last.room(N * tile_len);
        let last = last.chunks_exact_mut(tile_len);
        for (last, w) in last.zip(weights) {
            let rest = &w[whole * tile_len..];
            last[..rest.len()].copy_from_slice(rest);
            last[rest.len()..].fill(bf16::ZERO);
        }
    }
    let weight = Weight {
        starts: &weights.map(<[bf16]>::as_ptr),
        last: scratch.last.as_ptr(),
        whole,
        inner,
        columns,
    };
    for first in (0..m).step_by(MAX_ROWS) {
        let rows = usize::min(MAX_ROWS, m - first);
        let y = Output {
            // SAFETY: the row exists.
            start: unsafe { y.add(first * columns) },
            stride: columns,
        };
        let x = &x[first * inner..][..rows * inner];
        multiply_rows(parts, x, &weight, y, &mut scratch);
    }
    Scratch::pool().push(scratch);
}

/// A weight `[columns, inner]`, or two of them, whose tiles take turns.
struct Weight<'a> {
    starts: &'a [*const bf16],
    /// The last rows of each, with zeros below.
    last: *const bf16,
    /// Tiles of rows of each that are not in `last`.
    whole: usize,
    inner: usize,
    columns: usize,
}

// SAFETY: views of memory that nobody writes to while they are used.
unsafe impl Sync for Weight<'_> {}

impl Weight<'_> {
    /// Tiles of rows.
    fn tiles(&self) -> usize {
        self.starts.len() * self.columns.div_ceil(TILE_ROWS)
    }

    /// Where a row of a tile has a column; of the last tile instead of those behind it.
    fn place(&self, tile: usize, row: usize, column: usize) -> *const u8 {
        let tile = usize::min(tile, self.tiles() - 1);
        let (weight, tile) = (tile % self.starts.len(), tile / self.starts.len());
        let (start, tile) = match tile < self.whole {
            true => (self.starts[weight], tile),
            false => (self.last, weight),
        };
        let row = tile * TILE_ROWS + row;
        start.wrapping_add(row * self.inner + column).cast()
    }
}

/// At most [`MAX_ROWS`] rows of `x`.
fn multiply_rows(parts: Parts, x: &[f32], w: &Weight<'_>, y: Output, scratch: &mut Scratch) {
    let (inner, rows) = (w.inner, x.len() / w.inner);
    let strips = rows.div_ceil(TILE_ROWS);
    let max = if strips <= STREAMED_STRIPS {
        inner
    } else {
        MAX_INNER
    };
    let chunk = inner.div_ceil(inner.div_ceil(max)).next_multiple_of(STEP);
    let all = w.tiles();
    // So many tiles of the weight are multiplied before the next ones that their sums fit.
    let tiles = match chunk < inner {
        true => {
            let bytes = SUM_BYTES * rayon::current_num_threads();
            (bytes / (strips * SUMS * size_of::<f32>())).next_multiple_of(2)
        }
        false => all,
    };
    for first in (0..all).step_by(tiles) {
        let tiles = first..usize::min(first + tiles, all);
        multiply_some((parts, chunk), x, (w, tiles), y, scratch);
    }
}

/// Some tiles of the weight, by chunks of the inner dimension.
fn multiply_some(
    (parts, chunk): (Parts, usize),
    x: &[f32],
    (w, tiles): (&Weight<'_>, Range<usize>),
    y: Output,
    scratch: &mut Scratch,
) {
    let (inner, rows) = (w.inner, x.len() / w.inner);
    let strips = rows.div_ceil(TILE_ROWS);
    let jobs = Jobs::new(tiles.clone(), chunk, strips);
    // Tiles of weights are summed in pairs.
    let stride = tiles.len().next_multiple_of(2) * SUMS;
    let sums = match chunk < inner {
        true => scratch.sums.room(strips * stride).as_mut_ptr(),
        false => std::ptr::null_mut(),
    };
    let sums = Output {
        start: sums,
        stride,
    };
    for start in (0..inner).step_by(chunk) {
        let inner = start..usize::min(start + chunk, inner);
        let strip_len = inner.len() * parts as usize * TILE_ROWS;
        let packed = scratch.packed.room(strips * strip_len);
        let to = packed.par_chunks_exact_mut(strip_len).enumerate();
        to.for_each(|(strip, to)| {
            let row = strip * TILE_ROWS;
            let num_rows = usize::min(TILE_ROWS, rows - row);
            let shape = [num_rows, w.inner, inner.len()];
            let x = &x[row * w.inner + inner.start..];
            // SAFETY: the CPU has tiles; the rows exist.
            unsafe { pack(x.as_ptr(), shape, parts as usize, to.as_mut_ptr().cast()) };
        });
        let step = Step {
            x: Strip(packed.as_ptr().cast()),
            strip_bytes: strip_len * size_of::<bf16>(),
            w,
            parts,
            inner,
            rows,
            sums,
            first_tile: tiles.start,
            y,
        };
        (0..jobs.num)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|job| {
                let tiles = jobs.tiles(job);
                // SAFETY: the CPU has tiles, and the jobs have different rows of the weight.
                unsafe {
                    if strips <= STREAMED_STRIPS {
                        return step.stream(tiles, strips);
                    }
                    let mut copy = COPY.take();
                    step.run(tiles, &mut copy);
                    COPY.set(copy);
                }
            });
    }
}

/// How the tiles of a weight are divided.
struct Jobs {
    num: usize,
    tiles: Range<usize>,
}

impl Jobs {
    fn new(tiles: Range<usize>, chunk: usize, strips: usize) -> Self {
        let threads = rayon::current_num_threads();
        let bytes = tiles.len() * TILE_ROWS * chunk * size_of::<bf16>();
        let num = match strips {
            ..=STREAMED_STRIPS => bytes.div_ceil(STREAMED_BYTES).max(4 * threads),
            _ => bytes.div_ceil(JOB_BYTES * threads) * threads,
        };
        Self {
            num: num.min(tiles.len().div_ceil(2)),
            tiles,
        }
    }

    /// As even as possible, in pairs.
    fn tiles(&self, job: usize) -> Range<usize> {
        let pairs = self.tiles.len().div_ceil(2);
        let start = |job: usize| self.tiles.start + 2 * (job * pairs / self.num);
        start(job)..usize::min(start(job + 1), self.tiles.end)
    }
}

/// A chunk of the inner dimension.
struct Step<'a> {
    x: Strip,
    strip_bytes: usize,
    w: &'a Weight<'a>,
    parts: Parts,
    inner: Range<usize>,
    rows: usize,
    /// A row for each strip, from `first_tile` on; none if there is but one chunk.
    sums: Output,
    first_tile: usize,
    y: Output,
}

// SAFETY: views of memory; jobs write to different parts of it.
unsafe impl Sync for Step<'_> {}

/// Sums of two tiles and two strips.
const STAGE: usize = 4 * SUMS;

#[repr(align(64))]
struct Stage([f32; STAGE]);

impl Step<'_> {
    fn extent(&self) -> Extent {
        Extent {
            steps: self.inner.len() / STEP,
            parts: self.parts as usize,
            first: self.inner.start == 0,
        }
    }

    fn strip(&self, strip: usize) -> Strip {
        Strip(self.x.0.wrapping_add(strip * self.strip_bytes))
    }

    /// Two tiles of rows of the weight times one or two strips; the sums go to `stage`, or to where they are kept.
    ///
    /// # Safety
    ///
    /// Tiles are configured; strips and tiles exist, and no other thread has these of the weight.
    unsafe fn multiply(
        &self,
        w: Places,
        tiles: Range<usize>,
        strips: Range<usize>,
        stage: *mut f32,
        fetch: *const u8,
    ) {
        let (strip, extent) = (strips.start, self.extent());
        let sums = [
            self.sums(strip, tiles.start, stage),
            self.sums(strip + 1, tiles.start, stage.wrapping_add(2 * SUMS)),
        ];
        // SAFETY: the caller's promise.
        unsafe {
            if strips.len() == 2 {
                let x = [self.strip(strip), self.strip(strip + 1)];
                multiply_wide(w, x, sums, extent, fetch);
            } else {
                multiply_tall(w, self.strip(strip), sums[0], extent);
            }
            for (strip, sums) in strips.zip(sums) {
                self.finish(strip, tiles.clone(), sums);
            }
        }
    }

    /// Some tiles of rows of the weight times all strips, of which there are one or two. They are read once, from where they are:
    /// CPUs foresee that for two tiles at a time, and asking for memory early only keeps them from it.
    ///
    /// # Safety
    ///
    /// The CPU has tiles, and no other thread has these of the weight.
    unsafe fn stream(&self, tiles: Range<usize>, strips: usize) {
        let mut stage = Stage([0.0; STAGE]);
        let stage = stage.0.as_mut_ptr();
        // SAFETY: strips and tiles exist.
        unsafe {
            let _tiles = Tiles::configure();
            for tile in tiles.clone().step_by(2) {
                let w = Places {
                    starts: [self.w.place(tile, 0, 0), self.w.place(tile + 1, 0, 0)],
                    row_bytes: self.w.inner * size_of::<bf16>(),
                    step_bytes: STEP * size_of::<bf16>(),
                };
                let pair = tile..usize::min(tile + 2, tiles.end);
                self.multiply(w, pair, 0..strips, stage, self.x.0);
            }
        }
    }

    /// Some tiles of rows of the weight times all strips.
    ///
    /// # Safety
    ///
    /// As for [`Step::stream`].
    unsafe fn run(&self, tiles: Range<usize>, copy: &mut Aligned<bf16>) {
        let mut stage = Stage([0.0; STAGE]);
        let stage = stage.0.as_mut_ptr();
        let extent = self.extent();
        let strips = self.rows.div_ceil(TILE_ROWS);
        let tile_bytes = extent.steps * TILE_BYTES;
        let room = tiles.len().next_multiple_of(2) * tile_bytes / size_of::<bf16>();
        let copy: *mut u8 = copy.room(room).as_mut_ptr().cast();
        let place = |tile: usize| copy.wrapping_add((tile - tiles.start) * tile_bytes);
        // What this thread most often multiplies next, a row for each of some products.
        let mut next = (tiles.end * TILE_ROWS..).take(tiles.len() * TILE_ROWS);
        let products = strips.div_ceil(2) * tiles.len().div_ceil(2);
        let rows_each = (tiles.len() * TILE_ROWS).div_ceil(products);
        // SAFETY: strips and tiles exist, and so do their sums; the copy has room for all tiles.
        unsafe {
            for tile in tiles.clone() {
                let from = self.w.place(tile, 0, self.inner.start);
                copy_tiles(
                    from,
                    self.w.inner * size_of::<bf16>(),
                    extent.steps,
                    place(tile),
                );
            }
            let _tiles = Tiles::configure();
            for strip in (0..strips).step_by(2) {
                // The strips that come next, a tile with each step.
                let mut fetched = self.strip(strip + 2).0;
                for tile in tiles.clone().step_by(2) {
                    for row in next.by_ref().take(rows_each) {
                        let (tile, row) = (row / TILE_ROWS, row % TILE_ROWS);
                        let start = self.w.place(tile, row, self.inner.start);
                        fetch(start, self.inner.len() * size_of::<bf16>());
                    }
                    let w = Places {
                        starts: [place(tile), place(tile + 1)].map(<*mut u8>::cast_const),
                        row_bytes: TILE_BYTES / TILE_ROWS,
                        step_bytes: TILE_BYTES,
                    };
                    let pair = tile..usize::min(tile + 2, tiles.end);
                    let strips = strip..usize::min(strip + 2, strips);
                    self.multiply(w, pair, strips, stage, fetched);
                    fetched = fetched.wrapping_add(tile_bytes);
                }
            }
        }
    }

    /// Where the sums of a tile are, those of the next tiles behind them: in `stage` if they are complete at once.
    fn sums(&self, strip: usize, tile: usize, stage: *mut f32) -> *mut f32 {
        match self.sums.start.is_null() {
            true => stage,
            false => {
                let tile = tile - self.first_tile;
                (self.sums.start).wrapping_add(strip * self.sums.stride + tile * SUMS)
            }
        }
    }

    /// Writes tiles of sums to the result if they are complete.
    ///
    /// # Safety
    ///
    /// They exist.
    unsafe fn finish(&self, strip: usize, tiles: Range<usize>, sums: *const f32) {
        if self.inner.end < self.w.inner {
            return;
        }
        let row = strip * TILE_ROWS;
        let rows = usize::min(TILE_ROWS, self.rows - row);
        if self.w.starts.len() == 2 {
            let column = tiles.start / self.w.starts.len() * TILE_ROWS;
            let columns = usize::min(TILE_ROWS, self.w.columns - column);
            // SAFETY: inside the result.
            unsafe { store_gated(sums, self.y.at(row, column), [rows, columns]) };
            return;
        }
        for (i, tile) in tiles.enumerate() {
            let column = tile * TILE_ROWS;
            let columns = usize::min(TILE_ROWS, self.w.columns - column);
            // SAFETY: inside the result.
            unsafe { store(sums.add(i * SUMS), self.y.at(row, column), [rows, columns]) };
        }
    }
}

const _: () = assert!(TILE_BYTES == TILE_ROWS * STEP * size_of::<bf16>());
