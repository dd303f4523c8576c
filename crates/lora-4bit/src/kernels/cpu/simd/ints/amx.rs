//! AMX: both operands in two bytes, whose products are four tiles.
//!
//! A tile of weights has a block of 16 rows in the order of their codes; a tile of `x` has the same block of 16 rows of `x`,
//! four values of each side by side. With `w = 256 h + l` and `x` alike, the sum of a block is `65536 hh + 256 (hl + lh) + ll`:
//! each of the four is a product of tiles, exact like the sum. Up to eight rows of `x` have both their bytes in one tile, so
//! that two products give all four.

mod tiles;

use std::arch::x86_64::*;
use std::ops::Range;

use self::tiles::{
    Bytes, NARROW, Pair, Sums, add_scaled, add_scaled_narrow, multiply, multiply_narrow, widened,
};
use super::super::super::aligned::Aligned;
use super::super::amx::{TILE_BYTES, TILE_ROWS, Tiles, is_available};
use super::super::micro::BLOCK_BYTES;
use super::super::transpose::transposed_floats;
use super::super::{InstructionSet, Nf4Rows, Output, PANEL, Scales};
use super::{Codes, IntKernels, IntRows, Order, Part, Source, Tile, round_block};
use crate::nf4::NESTED_BLOCK_SIZE;

pub(in super::super) static KERNELS: IntKernels = IntKernels {
    instruction_set: InstructionSet::Amx,
    // A tile takes as long for one row as for all.
    min_rows: 5,
    strip_rows: TILE_ROWS,
    // SAFETY: as for `dot`.
    round: |x, k, values, scales| unsafe { round_values(x, k, values, scales) },
    tile_rows: TILE_ROWS,
    // Half of a second-level cache of 2 MiB: tiles are multiplied that fast that `x` must not come from further away often.
    max_values: 512 << 10,
    max_direct_rows: TILE_ROWS,
    // SAFETY: as for `IntKernels::dot`.
    dot: |x, w, y, memory| unsafe { multiply_all(x, w, y, memory) },
};

/// Whether this CPU can run them.
pub(in super::super) fn are_supported() -> bool {
    is_available() && is_x86_feature_detected!("avx512vbmi")
}

/// The codes in the low bits of a block's bytes, then those in the high bits.
struct InTiles;

impl Order for InTiles {
    const PLACES: [u8; PANEL] = {
        let mut places = [0; PANEL];
        let mut at = 0;
        while at < PANEL {
            places[at] = (2 * (at % BLOCK_BYTES) + (at < BLOCK_BYTES) as usize) as u8;
            at += 1;
        }
        places
    };
}

/// Writes a strip of up to 16 rows of `x` as tiles, a block after the other, and their scales, `[blocks, 16]`: as pairs of tiles,
/// or up to [`NARROW`] rows as single tiles, whose second half are the low bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn round_values(x: &[f32], k: usize, values: &mut [i16], scales: &mut [f32]) {
    let num_rows = x.len() / k;
    let is_narrow = num_rows <= NARROW;
    if num_rows < TILE_ROWS {
        values.fill(0);
        scales.fill(0.0);
    }
    // SAFETY: as many bytes.
    let bytes = unsafe {
        std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(values))
    };
    let (tiles, low) = match is_narrow {
        true => (bytes.chunks_exact_mut(TILE_BYTES), 4 * NARROW),
        false => (bytes.chunks_exact_mut(2 * TILE_BYTES), TILE_BYTES),
    };
    for (block, (tiles, scales)) in tiles.zip(scales.chunks_exact_mut(TILE_ROWS)).enumerate() {
        for (row, x) in x.chunks_exact(k).enumerate() {
            let mut integers = [0; PANEL];
            let x = &x.as_chunks::<PANEL>().0[block];
            scales[row] = round_block::<InTiles>(x, &mut integers);
            for (place, four) in integers.as_chunks::<4>().0.iter().enumerate() {
                let at = (place * TILE_ROWS + row) * 4;
                // Both bytes have a sign.
                let high = four.map(|value| ((value + 128) >> 8) as u8);
                tiles[at..][..4].copy_from_slice(&high);
                tiles[low + at..][..4].copy_from_slice(&four.map(|value| value as u8));
            }
        }
        if is_narrow {
            let (rows, copies) = scales.split_at_mut(NARROW);
            copies.copy_from_slice(rows);
        }
    }
}

/// See [`IntKernels::dot`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn multiply_all(x: &IntRows, w: Nf4Rows<'_>, y: Output, memory: &mut Aligned<f32>) {
    // SAFETY: the CPU has the instructions.
    unsafe {
        let _tiles = Tiles::configure();
        super::dot::<InTiles, TILE_ROWS>(x, w, y, memory);
    }
}

impl Tile<TILE_ROWS> for InTiles {
    const PASS: usize = TILE_ROWS;
    const STRIP: usize = TILE_ROWS;

    #[inline(always)]
    unsafe fn write_scales(
        w: &Nf4Rows<'_>,
        first: usize,
        num_rows: usize,
        blocks: usize,
        to: *mut f32,
    ) {
        let last = usize::min(first + TILE_ROWS, num_rows);
        // SAFETY: the caller's promise.
        unsafe { write_scales(w, first * blocks..last * blocks, to) }
    }

    #[inline(always)]
    unsafe fn unpack(codes: &Codes<'_, TILE_ROWS>, blocks: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { unpack(codes, blocks, to.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply(
        num_rows: usize,
        x: Part,
        source: Source<'_, TILE_ROWS>,
        scales: *const f32,
        y: Output,
        columns: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if num_rows <= NARROW {
                multiply_tile::<true>(num_rows, x, source, scales, y, columns);
            } else {
                multiply_tile::<false>(num_rows, x, source, scales, y, columns);
            }
        }
    }
}

impl Codes<'_, TILE_ROWS> {
    /// Writes the bytes of a block of all rows. Inlined into a function that has the instructions.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions, and the block exists.
    #[inline(always)]
    unsafe fn write_block(&self, block: usize, to: *mut Pair) {
        let [low, high] = &self.levels.bytes;
        let at = block * BLOCK_BYTES;
        // SAFETY: tables have 16 bytes; the block exists, and rows of tiles have 64 bytes; any address can be fetched early.
        unsafe {
            // A look-up uses six bits of an index; the levels are there four times, so that four count.
            let low = _mm512_broadcast_i32x4(_mm_loadu_si128(low.as_ptr().cast()));
            let high = _mm512_broadcast_i32x4(_mm_loadu_si128(high.as_ptr().cast()));
            // Nothing for the first half, the high bits of each byte down to the low ones for the second.
            let shifts = _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0);
            let to = to.cast::<__m512i>();
            for (i, row) in self.rows.into_iter().enumerate() {
                // Two blocks are a cache line.
                if block.is_multiple_of(2) {
                    _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(at + self.ahead).cast());
                }
                let codes = _mm512_broadcast_i64x4(_mm256_loadu_si256(row.add(at).cast()));
                let codes = _mm512_srlv_epi64(codes, shifts);
                _mm512_storeu_si512(to.add(i), _mm512_permutexvar_epi8(codes, high));
                _mm512_storeu_si512(to.add(TILE_ROWS + i), _mm512_permutexvar_epi8(codes, low));
            }
        }
    }
}

/// Writes the scales of some blocks, one after the other.
///
/// # Safety
///
/// The blocks exist, and there is room.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn write_scales(w: &Nf4Rows<'_>, blocks: Range<usize>, to: *mut f32) {
    let double = match w.scales {
        Scales::Single(scales) => {
            let scales = &scales[blocks];
            // SAFETY: the caller's promise.
            unsafe { to.copy_from_nonoverlapping(scales.as_ptr(), scales.len()) };
            return;
        }
        Scales::Double(double) => double,
    };
    let offset = _mm512_set1_ps(double.offset);
    let mut block = blocks.start;
    while block < blocks.end {
        // As far as the next group.
        let at = double.first + block;
        let group = NESTED_BLOCK_SIZE - at % NESTED_BLOCK_SIZE;
        let end = usize::min(block + group, blocks.end);
        // SAFETY: each block has a code, and its group a scale; the map has as many values as there are codes.
        unsafe {
            let nested = _mm512_set1_ps(*double.nested.get_unchecked(at / NESTED_BLOCK_SIZE));
            while block < end {
                let mask = (u32::MAX >> (32 - usize::min(end - block, 16))) as u16;
                let codes = _mm_maskz_loadu_epi8(mask, double.codes.as_ptr().add(block).cast());
                let scales =
                    _mm512_i32gather_ps::<4>(_mm512_cvtepu8_epi32(codes), double.map.as_ptr());
                // As the other loops do: rounded twice.
                let scales = _mm512_add_ps(_mm512_mul_ps(scales, nested), offset);
                _mm512_mask_storeu_ps(to.add(block - blocks.start), mask, scales);
                block += usize::min(end - block, 16);
            }
        }
    }
}

/// Writes the bytes of all blocks.
///
/// # Safety
///
/// There is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn unpack(codes: &Codes<'_, TILE_ROWS>, blocks: usize, to: *mut Pair) {
    for block in 0..blocks {
        // SAFETY: the caller's promise.
        unsafe { codes.write_block(block, to.add(block)) };
    }
}

/// What is between the stages of [`multiply_tile`], for two blocks.
#[repr(align(64))]
struct Stage {
    weights: [Pair; 2],
    products: [Sums; 2],
}

/// Products of up to 16 rows of `x` with a tile, of which `columns` are written.
///
/// While the tiles of a block are multiplied, the next one is unpacked and the sums of the one before are scaled.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn multiply_tile<const IS_NARROW: bool>(
    num_rows: usize,
    x: Part,
    source: Source<'_, TILE_ROWS>,
    scales: *const f32,
    y: Output,
    columns: usize,
) {
    let mut stage = std::mem::MaybeUninit::<Stage>::uninit();
    let stage = stage.as_mut_ptr();
    let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
    // SAFETY: the blocks exist, and the stages are written before they are read.
    unsafe {
        let weights = (&raw mut (*stage).weights).cast::<Pair>();
        let products = (&raw mut (*stage).products).cast::<Sums>();
        for step in 0..x.blocks + 2 {
            if (1..=x.blocks).contains(&step) {
                let block = step - 1;
                let w = match source {
                    Source::Codes(_) => weights.add(block % 2).cast_const(),
                    Source::Panel(panel) => panel.cast::<Pair>().add(block),
                };
                let to = products.add(block % 2);
                if IS_NARROW {
                    multiply_narrow(w, x.values.cast::<Bytes>().add(block), to);
                } else {
                    multiply(w, x.values.cast::<Pair>().add(block), to);
                }
            }
            if let Source::Codes(codes) = source
                && step < x.blocks
            {
                codes.write_block(step, weights.add(step % 2));
            }
            if step >= 2 {
                let block = step - 2;
                let products = products.add(block % 2).cast_const();
                let x_scales = _mm512_loadu_ps(x.scales.add(block * TILE_ROWS));
                let scales = (scales.add(block), x.blocks);
                if IS_NARROW {
                    add_scaled_narrow(products, x_scales, scales, &mut sums);
                } else {
                    add_scaled(products, x_scales, scales, &mut sums);
                }
            }
        }
    }
    if IS_NARROW {
        sums = widened(sums);
    }
    let mask = (u32::MAX >> (32 - columns)) as u16;
    for (m, sum) in transposed_floats(sums)
        .into_iter()
        .enumerate()
        .take(num_rows)
    {
        // SAFETY: so many columns exist.
        unsafe { _mm512_mask_storeu_ps(y.at(m, 0).start, mask, sum) };
    }
}
