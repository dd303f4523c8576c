//! AMX: both factors in two bytes, whose products are four tiles.
//!
//! A tile of weights has a block of 16 rows in the order of their codes; a tile of `x` has the same block of 16 rows of `x`,
//! four values of each side by side. With `w = 256 h + l` (`h` signed, `l` not) and `x` alike, the sum of a block is
//! `65536 hh + 256 (hl + lh) + ll`: each of the four is a product of tiles, exact like the sum.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::super::super::aligned::Aligned;
use super::super::amx::{TILE_BYTES, TILE_ROWS, Tiles, is_available, transposed};
use super::super::micro::BLOCK_BYTES;
use super::super::{InstructionSet, Nf4Rows, Output, PANEL, Scales};
use super::{Codes, IntKernels, IntRows, Order, Part, Source, Tile, round_block};
use crate::nf4::NESTED_BLOCK_SIZE;

pub(super) static KERNELS: IntKernels = IntKernels {
    instruction_set: InstructionSet::Amx,
    // A tile takes as long for one row as for all.
    min_rows: 5,
    strip_rows: TILE_ROWS,
    // SAFETY: as for `dot`.
    round: |x, k, values, scales| unsafe { round_values(x, k, values, scales) },
    tile_rows: TILE_ROWS,
    max_direct_rows: TILE_ROWS,
    // SAFETY: as for `IntKernels::dot`.
    dot: |x, w, y, memory| unsafe { multiply_all(x, w, y, memory) },
};

/// Whether this CPU can run them.
pub(super) fn are_supported() -> bool {
    is_available() && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vbmi")
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

/// Two tiles: high bytes and low bytes.
type Pair = [[u8; TILE_BYTES]; 2];

/// Writes a strip of up to 16 rows of `x` as pairs of tiles, a block after the other, and their scales, `[blocks, 16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn round_values(x: &[f32], k: usize, values: &mut [i16], scales: &mut [f32]) {
    let num_rows = x.len() / k;
    if num_rows < TILE_ROWS {
        values.fill(0);
        scales.fill(0.0);
    }
    let tiles = values.as_chunks_mut::<{ TILE_ROWS * PANEL }>().0;
    for (row, x) in x.chunks_exact(k).enumerate() {
        let blocks = x.as_chunks::<PANEL>().0.iter();
        for ((x, tiles), scales) in blocks
            .zip(&mut *tiles)
            .zip(scales.chunks_exact_mut(TILE_ROWS))
        {
            let mut integers = [0; PANEL];
            scales[row] = round_block::<InTiles>(x, &mut integers);
            // SAFETY: as many bytes.
            let [high, low] = unsafe { &mut *tiles.as_mut_ptr().cast::<Pair>() };
            let places = high.chunks_exact_mut(4 * TILE_ROWS);
            let places = places.zip(low.chunks_exact_mut(4 * TILE_ROWS));
            for ((high, low), four) in places.zip(integers.as_chunks::<4>().0) {
                high[4 * row..][..4].copy_from_slice(&four.map(|value| (value >> 8) as u8));
                low[4 * row..][..4].copy_from_slice(&four.map(|value| value as u8));
            }
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
        unsafe { multiply(num_rows, x, source, scales, y, columns) }
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

/// What is between the stages of [`multiply`], for two blocks.
#[repr(align(64))]
struct Stage {
    weights: [Pair; 2],
    /// `hh`, `hl + lh` and `ll`: 16 rows of weights, a lane for each row of `x`.
    products: [[[i32; TILE_BYTES / 4]; 3]; 2],
}

/// Products of up to 16 rows of `x` with a tile, of which `columns` are written.
///
/// While the tiles of a block are multiplied, the next one is unpacked and the sums of the one before are scaled.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn multiply(
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
        let products = (&raw mut (*stage).products).cast::<[[i32; TILE_BYTES / 4]; 3]>();
        for step in 0..x.blocks + 2 {
            if (1..=x.blocks).contains(&step) {
                let block = step - 1;
                let w = match source {
                    Source::Codes(_) => weights.add(block % 2).cast_const(),
                    Source::Panel(panel) => panel.cast::<Pair>().add(block),
                };
                let x = x.values.cast::<Pair>().add(block);
                multiply_tiles(w, x, products.add(block % 2));
            }
            if let Source::Codes(codes) = source
                && step < x.blocks
            {
                codes.write_block(step, weights.add(step % 2));
            }
            if step >= 2 {
                let block = step - 2;
                add_scaled(products.add(block % 2), x, scales, block, &mut sums);
            }
        }
    }
    let mask = (u32::MAX >> (32 - columns)) as u16;
    for (m, sum) in transposed(sums).into_iter().enumerate().take(num_rows) {
        // SAFETY: so many columns exist.
        unsafe { _mm512_mask_storeu_ps(y.at(m, 0).start, mask, sum) };
    }
}

/// `hh`, `hl + lh` and `ll` of a block.
///
/// # Safety
///
/// The tiles are configured.
#[inline]
unsafe fn multiply_tiles(w: *const Pair, x: *const Pair, to: *mut [[i32; TILE_BYTES / 4]; 3]) {
    // SAFETY: all are whole tiles.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tileloadd tmm4, [{w} + {stride}*1]",
            "tileloadd tmm7, [{x} + {stride}*1 + 1024]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{w} + {stride}*1 + 1024]",
            "tdpbuud tmm2, tmm5, tmm7",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbusd tmm1, tmm5, tmm6",
            "tilestored [{to} + {stride}*1 + 2048], tmm2",
            "tilestored [{to} + {stride}*1], tmm0",
            "tilestored [{to} + {stride}*1 + 1024], tmm1",
            w = in(reg) w,
            x = in(reg) x,
            to = in(reg) to,
            stride = in(reg) 64usize,
            options(nostack),
        );
    }
}

/// Adds the sums of a block, times both scales, to those of the other blocks.
///
/// # Safety
///
/// The block exists.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
#[inline]
unsafe fn add_scaled(
    products: *const [[i32; TILE_BYTES / 4]; 3],
    x: Part,
    scales: *const f32,
    block: usize,
    sums: &mut [__m512; TILE_ROWS],
) {
    // SAFETY: the caller's promise; a tile has 16 vectors.
    unsafe {
        let products = products.cast::<__m512i>();
        let x_scales = _mm512_loadu_ps(x.scales.add(block * TILE_ROWS));
        for (row, to) in sums.iter_mut().enumerate() {
            let part = |i: usize| _mm512_loadu_si512(products.add(i * TILE_ROWS + row));
            let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(part(0)), part(1));
            let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), part(2));
            let scale = _mm512_set1_ps(*scales.add(row * x.blocks + block));
            let factor = _mm512_mul_ps(scale, x_scales);
            *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, *to);
        }
    }
}
