//! AVX2: the values of a block of one row of weights lie in four vectors.

use std::arch::x86_64::*;

use super::super::super::aligned::Aligned;
use super::super::micro::{BLOCK_BYTES, with_rows};
use super::super::{InstructionSet, Nf4Rows, Output, PANEL};
use super::{Codes, IntKernels, IntRows, Order, Part, Source, Tile, round};

/// Rows of weights whose results are a vector.
const ROWS: usize = 4;
/// Rows of `x` that are multiplied together.
const PASS: usize = 4;
/// Vectors of a block.
const VECTORS: usize = PANEL / 16;

pub(in super::super) static KERNELS: IntKernels = IntKernels {
    instruction_set: InstructionSet::Avx2,
    min_rows: 1,
    strip_rows: 1,
    // SAFETY: as for `dot`.
    round: |x, _, values, scales| unsafe { round_values(x, values, scales) },
    tile_rows: ROWS,
    max_values: 128 << 10,
    max_direct_rows: PASS,
    // SAFETY: as for `IntKernels::dot`.
    dot: |x, w, y, memory| unsafe { multiply_all(x, w, y, memory) },
};

/// The first two vectors have the codes in the low bits of bytes, that is odd places; the others those in the high bits.
/// Each half of a vector has eight bytes of one half of the block: the first eight, or the others.
struct InVectors;

impl Order for InVectors {
    const PLACES: [u8; PANEL] = {
        let mut places = [0; PANEL];
        let mut at = 0;
        while at < PANEL {
            let (vector, half, i) = (at / 16, at / 8 % 2, at % 8);
            let byte = 16 * half + 8 * (vector % 2) + i;
            places[at] = 2 * byte as u8 + (vector < 2) as u8;
            at += 1;
        }
        places
    };
}

/// See [`IntKernels::round`].
#[target_feature(enable = "avx2,fma")]
fn round_values(x: &[f32], values: &mut [i16], scales: &mut [f32]) {
    round::<InVectors>(x, values, scales);
}

/// See [`IntKernels::dot`].
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_all(x: &IntRows, w: Nf4Rows<'_>, y: Output, memory: &mut Aligned<f32>) {
    // SAFETY: the CPU has the instructions.
    unsafe { super::dot::<InVectors, ROWS>(x, w, y, memory) }
}

impl Tile<ROWS> for InVectors {
    const PASS: usize = PASS;

    #[inline(always)]
    unsafe fn unpack(codes: &Codes<'_, ROWS>, blocks: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { unpack(codes, blocks, to.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply(
        num_rows: usize,
        x: Part,
        source: Source<'_, ROWS>,
        scales: *const f32,
        y: Output,
        columns: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            with_rows!(num_rows, |M| multiply::<M>(x, source, scales, y, columns));
        }
    }
}

impl Codes<'_, ROWS> {
    /// The integers of a block of a row.
    ///
    /// # Safety
    ///
    /// They exist.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn block(&self, row: usize, block: usize) -> [__m256i; VECTORS] {
        // SAFETY: the caller's promise; any address can be fetched early.
        let bytes = unsafe {
            let from = self.rows[row].add(block * BLOCK_BYTES);
            // Two blocks are a cache line.
            if block.is_multiple_of(2) {
                _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(self.ahead).cast());
            }
            _mm256_loadu_si256(from.cast())
        };
        let [low_bytes, high_bytes] = &self.levels.bytes;
        // SAFETY: 16 bytes each.
        let (low_bytes, high_bytes) = unsafe {
            let load = |bytes: &[u8; 16]| _mm_loadu_si128(bytes.as_ptr().cast());
            (
                _mm256_broadcastsi128_si256(load(low_bytes)),
                _mm256_broadcastsi128_si256(load(high_bytes)),
            )
        };
        let mask = _mm256_set1_epi8(15);
        let odd = _mm256_and_si256(bytes, mask);
        let even = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        let low = _mm256_shuffle_epi8(low_bytes, odd);
        let high = _mm256_shuffle_epi8(high_bytes, odd);
        let (a, b) = (
            _mm256_unpacklo_epi8(low, high),
            _mm256_unpackhi_epi8(low, high),
        );
        let low = _mm256_shuffle_epi8(low_bytes, even);
        let high = _mm256_shuffle_epi8(high_bytes, even);
        let (c, d) = (
            _mm256_unpacklo_epi8(low, high),
            _mm256_unpackhi_epi8(low, high),
        );
        [a, b, c, d]
    }
}

/// Writes the vectors of a tile, `[blocks, ROWS, VECTORS]`.
///
/// # Safety
///
/// There is room for them.
#[target_feature(enable = "avx2,fma")]
unsafe fn unpack(codes: &Codes<'_, ROWS>, blocks: usize, to: *mut [__m256i; VECTORS]) {
    for block in 0..blocks {
        for row in 0..ROWS {
            // SAFETY: the caller's promise.
            unsafe {
                let vectors = codes.block(row, block);
                to.add(block * ROWS + row).write_unaligned(vectors);
            }
        }
    }
}

/// Products of `M` rows of `x` with a tile, of which `columns` are written.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply<const M: usize>(
    x: Part,
    source: Source<'_, ROWS>,
    scales: *const f32,
    y: Output,
    columns: usize,
) {
    let mut sums = [_mm_setzero_ps(); M];
    for block in 0..x.blocks {
        let mut totals = [[_mm256_setzero_si256(); ROWS]; M];
        // SAFETY: block and rows exist.
        unsafe {
            for row in 0..ROWS {
                let w = match source {
                    Source::Codes(codes) => codes.block(row, block),
                    Source::Panel(panel) => {
                        let panel = panel.cast::<[__m256i; VECTORS]>();
                        panel.add(block * ROWS + row).read_unaligned()
                    }
                };
                for (m, totals) in totals.iter_mut().enumerate() {
                    let x = x.block(m, block).cast::<__m256i>();
                    let products = |i: usize| _mm256_madd_epi16(w[i], _mm256_loadu_si256(x.add(i)));
                    totals[row] = _mm256_add_epi32(
                        _mm256_add_epi32(products(0), products(1)),
                        _mm256_add_epi32(products(2), products(3)),
                    );
                }
            }
            let scale = _mm_loadu_ps(scales.add(block * ROWS));
            for (m, (sum, [a, b, c, d])) in sums.iter_mut().zip(totals).enumerate() {
                let total = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
                let total = _mm_add_epi32(
                    _mm256_castsi256_si128(total),
                    _mm256_extracti128_si256::<1>(total),
                );
                let factor = _mm_mul_ps(scale, _mm_set1_ps(x.scale(m, block)));
                *sum = _mm_fmadd_ps(_mm_cvtepi32_ps(total), factor, *sum);
            }
        }
    }
    for (m, sum) in sums.into_iter().enumerate() {
        let mut values = [0.0; ROWS];
        // SAFETY: so many columns exist.
        unsafe {
            _mm_storeu_ps(values.as_mut_ptr(), sum);
            let to = y.at(m, 0).start;
            to.copy_from_nonoverlapping(values.as_ptr(), columns);
        }
    }
}
