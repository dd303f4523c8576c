//! Products of NF4 rows with integers of 16 bits.
//!
//! The 16 levels become integers, and so does every block of 64 values of `x`, with a scale of its own. The products of a
//! block are then exact sums in integers, which the CPU adds twice as fast as floats, and only one float operation a block
//! applies the scales. What is lost is the rounding: a level is off by at most `2^-14` of the largest, a value of `x` by at most
//! `2^-13` of the largest of its block and mostly less; that is a result off by some 1e-4, a tenth of what operands in bf16 lose.
//!
//! The blocks of a row are added one after the other, so that a result has the same bits whatever the number of rows and
//! whichever of the loops computes it.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "no loops for other CPUs yet")
)]

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use rayon::prelude::*;

use super::super::aligned::Aligned;
use super::micro::BLOCK_BYTES;
use super::{InstructionSet, Nf4Rows, Output, PANEL, Scales};
use crate::nf4::NESTED_BLOCK_SIZE;

/// The integer of the largest level.
const MAX_LEVEL: f32 = 8191.0;
/// The integer of the largest value of `x`, at most: both its bytes then have a sign.
const MAX_VALUE: f32 = 32639.0;
/// The sum of a block's integers without their signs, at most: its products with [`MAX_LEVEL`] stay below 2^31, after rounding
/// of the 64 values, too.
const MAX_SUM: f32 = 262_100.0;
/// Added to a number between -2^22 and 2^22, this rounds it; the lowest bits are the integer then.
const ROUNDER: f32 = 12_582_912.0;
/// A block whose largest value is less counts as zeros: its scale has no inverse.
const MIN_LARGEST: f32 = 1e-33;

/// The loops for one instruction set.
pub(in super::super) struct IntKernels {
    pub(in super::super) instruction_set: InstructionSet,
    /// Fewer rows of `x` are multiplied faster by loops for narrower vectors.
    pub(super) min_rows: usize,
    /// Rows of `x` that lie together.
    strip_rows: usize,
    /// Rounds up to so many rows of `k` values, in the order in which [`IntKernels::dot`] reads them, and writes their scales. Both
    /// have room for all rows of a strip.
    round: unsafe fn(x: &[f32], k: usize, values: &mut [i16], scales: &mut [f32]),
    /// Rows of weights that are multiplied together.
    pub(in super::super) tile_rows: usize,
    /// Values of weights that are unpacked, two bytes each, and multiplied with all rows of `x` before the next ones.
    pub(in super::super) max_values: usize,
    /// Up to so many rows of `x`, weights are not unpacked first.
    pub(in super::super) max_direct_rows: usize,
    /// `y = x · wᵀ` for `m` rows of `x` and whole rows of `w`. The rest: working memory.
    pub(in super::super) dot: unsafe fn(x: &IntRows, w: Nf4Rows<'_>, y: Output, &mut Aligned<f32>),
}

/// Rows of `x` in integers.
pub(in super::super) struct IntRows {
    /// `[m, k]` in the order of the kernels; `m` is a multiple of [`IntKernels::strip_rows`].
    values: Aligned<i16>,
    /// `[m, k / 64]`: a value is its integer times this, and the integer of a level times this is its product with the level.
    scales: Aligned<f32>,
    levels: Levels,
    num_rows: usize,
    blocks: usize,
}

/// Integers of the levels.
struct Levels {
    words: [i16; 16],
    /// Their low and their high bytes, where a look-up is one of bytes.
    bytes: [[u8; 16]; 2],
}

impl Levels {
    fn new(words: [i16; 16]) -> Self {
        let bytes = [0, 1].map(|i| words.map(|word| word.to_le_bytes()[i]));
        Self { words, bytes }
    }
}

impl IntRows {
    /// Rounds `x [m, k]`, `k` a multiple of 64, for products with weights that have the levels of `map`.
    ///
    /// Blocks with a value that is not finite give results that aren't numbers.
    pub(in super::super) fn new(
        kernels: &IntKernels,
        x: &[f32],
        k: usize,
        map: &[f32; 16],
    ) -> Self {
        // SAFETY: whoever has the kernels has seen that the CPU has the instructions.
        let round = |x: &[f32], values: &mut [i16], scales: &mut [f32]| unsafe {
            (kernels.round)(x, k, values, scales);
        };
        Self::rounded((round, kernels.strip_rows), x, k, map)
    }

    /// With `round` for strips of so many rows.
    fn rounded(
        (round, strip): (impl Fn(&[f32], &mut [i16], &mut [f32]) + Sync, usize),
        x: &[f32],
        k: usize,
        map: &[f32; 16],
    ) -> Self {
        let largest = map.iter().fold(0.0f32, |max, level| max.max(level.abs()));
        let level_scale = largest.max(MIN_LARGEST) / MAX_LEVEL;
        let num_rows = x.len() / k;
        let len = num_rows.next_multiple_of(strip) * k;
        let mut values = Aligned::zeros(len);
        let mut scales = Aligned::zeros(len / PANEL);
        let strips = x.par_chunks(strip * k);
        let strips = strips.zip(values[..len].par_chunks_mut(strip * k));
        let strips = strips.zip(scales[..len / PANEL].par_chunks_mut(strip * k / PANEL));
        // Few values are not worth a second thread.
        let strips = strips.with_min_len(PARALLEL_VALUES.div_ceil(strip * k));
        strips.for_each(|((x, values), scales)| round(x, values, scales));
        scales.iter_mut().for_each(|scale| *scale *= level_scale);
        Self {
            values,
            scales,
            levels: Levels::new(map.map(|level| (level / level_scale).round() as i16)),
            num_rows,
            blocks: k / PANEL,
        }
    }

    /// Rows from `first` on, which begins a strip.
    fn from(&self, first: usize) -> Part {
        // SAFETY: the row exists, or is the end.
        unsafe {
            Part {
                values: self.values.as_ptr().add(first * self.blocks * PANEL),
                scales: self.scales.as_ptr().add(first * self.blocks),
                blocks: self.blocks,
            }
        }
    }
}

/// Values that a thread rounds at least.
const PARALLEL_VALUES: usize = 32 << 10;

/// The order of the integers of a block.
trait Order {
    /// The place in its block of each value.
    const PLACES: [u8; PANEL];
}

/// See [`IntKernels::round`].
#[inline(always)]
fn round<O: Order>(x: &[f32], values: &mut [i16], scales: &mut [f32]) {
    let blocks = x.as_chunks::<PANEL>().0.iter();
    let blocks = blocks.zip(values.as_chunks_mut::<PANEL>().0);
    for ((x, values), scale) in blocks.zip(scales) {
        *scale = round_block::<O>(x, values);
    }
}

/// Writes the integers of a block, and returns their scale.
#[inline(always)]
fn round_block<O: Order>(x: &[f32; PANEL], values: &mut [i16; PANEL]) -> f32 {
    // Some lanes side by side, so that a compiler makes vectors of them.
    let (mut sums, mut maxima) = ([0.0f32; 16], [0.0f32; 16]);
    for x in x.as_chunks::<16>().0 {
        for ((x, sum), max) in x.iter().zip(&mut sums).zip(&mut maxima) {
            *sum += x.abs();
            *max = if x.abs() > *max { x.abs() } else { *max };
        }
    }
    let sum: f32 = sums.iter().sum();
    let largest = maxima.into_iter().fold(0.0f32, f32::max);
    if !sum.is_finite() {
        return f32::NAN;
    }
    if largest < MIN_LARGEST {
        values.fill(0);
        return 0.0;
    }
    let scale = f32::max(largest / MAX_VALUE, sum / MAX_SUM);
    let inverse = 1.0 / scale;
    let rounded = x.map(|x| (x * inverse + ROUNDER).to_bits() as i16);
    for (value, place) in values.iter_mut().zip(const { O::PLACES }) {
        *value = rounded[usize::from(place)];
    }
    scale
}

/// Some rows of [`IntRows`].
#[derive(Clone, Copy)]
struct Part {
    values: *const i16,
    scales: *const f32,
    blocks: usize,
}

impl Part {
    /// The scale of a block.
    ///
    /// # Safety
    ///
    /// It exists.
    #[inline(always)]
    unsafe fn scale(self, row: usize, block: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.scales.add(row * self.blocks + block) }
    }

    /// The integers of a block.
    ///
    /// # Safety
    ///
    /// It exists.
    #[inline(always)]
    unsafe fn block(self, row: usize, block: usize) -> *const i16 {
        // SAFETY: the caller's promise.
        unsafe { self.values.add((row * self.blocks + block) * PANEL) }
    }
}

/// Writes the scales of `R` rows of weights from `first` on, `[blocks, R]`; those past the last are the last one's.
///
/// # Safety
///
/// `to` has room, and the first row exists.
#[inline(always)]
unsafe fn write_scales<const R: usize>(
    w: &Nf4Rows<'_>,
    first: usize,
    num_rows: usize,
    blocks: usize,
    to: *mut f32,
) {
    // The first block of each row.
    let mut starts = [0; R];
    for (r, start) in starts.iter_mut().enumerate() {
        *start = usize::min(first + r, num_rows - 1) * blocks;
    }
    let to = to.cast::<[f32; R]>();
    // SAFETY: each block has a scale, and its group one.
    unsafe {
        match &w.scales {
            Scales::Single(scales) => {
                for block in 0..blocks {
                    let mut row = [0.0; R];
                    for (scale, start) in row.iter_mut().zip(starts) {
                        *scale = *scales.get_unchecked(start + block);
                    }
                    to.add(block).write_unaligned(row);
                }
            }
            Scales::Double(double) => {
                let mut block = 0;
                while block < blocks {
                    // As far as no row comes to its next group.
                    let (mut nested, mut end) = ([0.0; R], blocks);
                    for (nested, start) in nested.iter_mut().zip(starts) {
                        let i = double.first + start + block;
                        *nested = *double.nested.get_unchecked(i / NESTED_BLOCK_SIZE);
                        end = end.min(block + NESTED_BLOCK_SIZE - i % NESTED_BLOCK_SIZE);
                    }
                    for block in block..end {
                        let mut row = [0.0; R];
                        for (scale, start) in row.iter_mut().zip(starts) {
                            let code = *double.codes.get_unchecked(start + block);
                            *scale = double.map[usize::from(code)];
                        }
                        for (scale, nested) in row.iter_mut().zip(nested) {
                            *scale = *scale * nested + double.offset;
                        }
                        to.add(block).write_unaligned(row);
                    }
                    block = end;
                }
            }
        }
    }
}

/// A tile of `R` rows of weights as it is stored.
struct Codes<'a, const R: usize> {
    /// First bytes of the rows.
    rows: [*const u8; R],
    levels: &'a Levels,
    /// Bytes from a block to the one to fetch into the cache meanwhile: the same place some tiles further on.
    ahead: usize,
}

/// How far ahead codes are fetched, at least.
const PREFETCH_BYTES: usize = 4096;

/// Where the integers of a tile come from.
#[derive(Clone, Copy)]
enum Source<'a, const R: usize> {
    Codes(&'a Codes<'a, R>),
    /// What [`Tile::unpack`] has written.
    Panel(*const f32),
}

/// The loops over a tile of `R` rows of weights.
trait Tile<const R: usize> {
    /// Rows of `x` that are multiplied together, at most; a multiple of [`IntKernels::strip_rows`].
    const PASS: usize;
    /// The same as there.
    const STRIP: usize = 1;

    /// Writes the scales of the tile that starts at row `first`, in the order of [`Tile::multiply`]; those of rows past the last
    /// don't matter.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions, the first row exists, and `to` has room.
    #[inline(always)]
    unsafe fn write_scales(
        w: &Nf4Rows<'_>,
        first: usize,
        num_rows: usize,
        blocks: usize,
        to: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { write_scales::<R>(w, first, num_rows, blocks, to) }
    }

    /// Writes the integers of a tile, `R * 64` 16-bit values a block.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions, the blocks exist, and there is room.
    unsafe fn unpack(codes: &Codes<'_, R>, blocks: usize, to: *mut f32);

    /// Products of `num_rows` rows of `x` with a tile, of which `columns` are written to `y`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions; the rows exist, and `scales` were written by [`Tile::write_scales`].
    unsafe fn multiply(
        num_rows: usize,
        x: Part,
        source: Source<'_, R>,
        scales: *const f32,
        y: Output,
        columns: usize,
    );
}

/// See [`IntKernels::dot`]. A tile of weights is unpacked once if it serves more rows of `x` than one pass takes.
///
/// # Safety
///
/// As for [`IntKernels::dot`].
#[inline(always)]
unsafe fn dot<T: Tile<R>, const R: usize>(
    x: &IntRows,
    w: Nf4Rows<'_>,
    y: Output,
    memory: &mut Aligned<f32>,
) {
    let (blocks, m) = (x.blocks, x.num_rows);
    let row_bytes = blocks * BLOCK_BYTES;
    let num_rows = w.packed.len() / row_bytes;
    let tiles = num_rows.div_ceil(R);
    let columns = |tile: usize| usize::min(R, num_rows - tile * R);
    let codes = |tile: usize| {
        let mut rows = [w.packed.as_ptr(); R];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: the row exists: the last one takes the place of those that don't.
            *row = unsafe { row.add(usize::min(tile * R + r, num_rows - 1) * row_bytes) };
        }
        Codes {
            rows,
            levels: &x.levels,
            ahead: PREFETCH_BYTES.next_multiple_of(R * row_bytes),
        }
    };
    let (panel_len, scales_len) = (blocks * R * PANEL / 2, blocks * R);
    // SAFETY: the tiles cover the rows of weights, the passes those of `x`; the memory has room for what is put there.
    unsafe {
        if m <= T::PASS {
            let scales = memory.room(scales_len).as_mut_ptr();
            for tile in 0..tiles {
                T::write_scales(&w, tile * R, num_rows, blocks, scales);
                let (codes, y) = (codes(tile), y.at(0, tile * R));
                T::multiply(
                    m,
                    x.from(0),
                    Source::Codes(&codes),
                    scales,
                    y,
                    columns(tile),
                );
            }
            return;
        }
        let panels = memory.room(tiles * (panel_len + scales_len)).as_mut_ptr();
        let scales = panels.add(tiles * panel_len);
        for tile in 0..tiles {
            let to = scales.add(tile * scales_len);
            T::write_scales(&w, tile * R, num_rows, blocks, to);
            T::unpack(&codes(tile), blocks, panels.add(tile * panel_len));
        }
        let pass = m.div_ceil(m.div_ceil(T::PASS)).next_multiple_of(T::STRIP);
        for row in (0..m).step_by(pass) {
            let (rows, x) = (usize::min(pass, m - row), x.from(row));
            for tile in 0..tiles {
                let source = Source::Panel(panels.add(tile * panel_len));
                let (scales, y) = (scales.add(tile * scales_len), y.at(row, tile * R));
                T::multiply(rows, x, source, scales, y, columns(tile));
            }
        }
    }
}

/// As in the matrix.
#[cfg(test)]
struct Natural;

#[cfg(test)]
impl Order for Natural {
    const PLACES: [u8; PANEL] = {
        let mut places = [0; PANEL];
        let mut at = 0;
        while at < PANEL {
            places[at] = at as u8;
            at += 1;
        }
        places
    };
}

/// The reference.
#[cfg(test)]
pub(in super::super) fn plain(x: &[f32], w: Nf4Rows<'_>, k: usize, y: &mut [f32]) {
    let x = IntRows::rounded((round::<Natural>, 1), x, k, w.map);
    let num_rows = w.packed.len() * 2 / k;
    let mut scales = vec![0.0; x.blocks];
    for row in 0..num_rows {
        // SAFETY: the row exists.
        unsafe { write_scales::<1>(&w, row, num_rows, x.blocks, scales.as_mut_ptr()) };
        let codes = &w.packed[row * k / 2..][..k / 2];
        let level = |i: usize| {
            let byte = codes[i / 2];
            let code = if i.is_multiple_of(2) {
                byte >> 4
            } else {
                byte & 15
            };
            i32::from(x.levels.words[usize::from(code)])
        };
        for i in 0..x.num_rows {
            let mut sum = 0.0f32;
            for (block, scale) in scales.iter().enumerate() {
                let values = &x.values[i * k + block * PANEL..][..PANEL];
                let products = (0..).zip(values);
                let products =
                    products.map(|(at, value)| level(block * PANEL + at) * i32::from(*value));
                let total: i32 = products.sum();
                sum = (total as f32).mul_add(scale * x.scales[i * x.blocks + block], sum);
            }
            y[i * num_rows + row] = sum;
        }
    }
}
