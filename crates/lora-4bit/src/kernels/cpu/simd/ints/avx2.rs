//! AVX2: the values of a block of one row of weights lie in four vectors.

use std::arch::x86_64::*;

use super::super::micro::{BLOCK_BYTES, with_rows};
use super::super::{Nf4Rows, Output, PANEL};
use super::{IntKernels, IntRows, Order, Part, room, round, write_scales};

/// Rows of weights whose results are a vector.
const ROWS: usize = 4;
/// Rows of `x` that are multiplied together.
const PASS: usize = 4;
/// Vectors of a block.
const VECTORS: usize = PANEL / 16;
/// How far ahead codes are fetched into the cache, at least.
const PREFETCH_BYTES: usize = 4096;

pub(super) static KERNELS: IntKernels = IntKernels {
    name: "avx2",
    // SAFETY: as for `dot`.
    round: |x, values, scales| unsafe { round_values(x, values, scales) },
    tile_rows: ROWS,
    max_direct_rows: PASS,
    // SAFETY: as for `IntKernels::dot`.
    dot: |x, w, y, memory| unsafe { dot(x, w, y, memory) },
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
unsafe fn dot(x: &IntRows, w: Nf4Rows<'_>, y: Output, memory: &mut Vec<f32>) {
    let (blocks, m) = (x.blocks, x.num_rows());
    let row_bytes = blocks * BLOCK_BYTES;
    let num_rows = w.packed.len() / row_bytes;
    let tiles = num_rows.div_ceil(ROWS);
    let (panel_len, scales_len) = (ROWS * blocks * PANEL / 2, blocks * ROWS);
    // SAFETY: the tiles cover the rows of weights, the passes those of `x`; the memory has room for what is put there.
    unsafe {
        let levels = Levels::new(&x.levels);
        let codes = |tile: usize| {
            let mut rows = [w.packed.as_ptr(); ROWS];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = row.add(usize::min(tile * ROWS + r, num_rows - 1) * row_bytes);
            }
            let ahead = PREFETCH_BYTES.next_multiple_of(ROWS * row_bytes);
            Codes {
                rows,
                levels,
                ahead,
            }
        };
        if m <= PASS {
            let scales = room(memory, scales_len);
            for tile in 0..tiles {
                write_scales::<ROWS>(&w, tile * ROWS, num_rows, blocks, scales);
                let y = y.at(0, tile * ROWS);
                let columns = usize::min(ROWS, num_rows - tile * ROWS);
                let codes = codes(tile);
                let source = Source::Codes(&codes);
                with_rows!(m, |M| multiply::<M>(x.from(0), source, scales, y, columns));
            }
            return;
        }
        let panels = room(memory, tiles * (panel_len + scales_len));
        let scales = panels.add(tiles * panel_len);
        for tile in 0..tiles {
            let to = scales.add(tile * scales_len);
            write_scales::<ROWS>(&w, tile * ROWS, num_rows, blocks, to);
            unpack(&codes(tile), blocks, panels.add(tile * panel_len).cast());
        }
        let pass = m.div_ceil(m.div_ceil(PASS));
        for row in (0..m).step_by(pass) {
            for tile in 0..tiles {
                let source = Source::Panel(panels.add(tile * panel_len).cast());
                let scales = scales.add(tile * scales_len);
                let y = y.at(row, tile * ROWS);
                let columns = usize::min(ROWS, num_rows - tile * ROWS);
                let (rows, x) = (usize::min(pass, m - row), x.from(row));
                with_rows!(rows, |M| multiply::<M>(x, source, scales, y, columns));
            }
        }
    }
}

/// The integers of the levels: their low and their high bytes.
#[derive(Clone, Copy)]
struct Levels {
    low: __m256i,
    high: __m256i,
}

impl Levels {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn new(levels: &[i16; 16]) -> Self {
        let low = levels.map(|level| level as u8);
        let high = levels.map(|level| (level >> 8) as u8);
        // SAFETY: 16 bytes each.
        unsafe {
            Self {
                low: _mm256_broadcastsi128_si256(_mm_loadu_si128(low.as_ptr().cast())),
                high: _mm256_broadcastsi128_si256(_mm_loadu_si128(high.as_ptr().cast())),
            }
        }
    }
}

/// A tile as it is stored.
struct Codes {
    /// First bytes of the rows.
    rows: [*const u8; ROWS],
    levels: Levels,
    /// Bytes from a block to the one to fetch meanwhile.
    ahead: usize,
}

impl Codes {
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
        let mask = _mm256_set1_epi8(15);
        let odd = _mm256_and_si256(bytes, mask);
        let even = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        let low = _mm256_shuffle_epi8(self.levels.low, odd);
        let high = _mm256_shuffle_epi8(self.levels.high, odd);
        let (a, b) = (
            _mm256_unpacklo_epi8(low, high),
            _mm256_unpackhi_epi8(low, high),
        );
        let low = _mm256_shuffle_epi8(self.levels.low, even);
        let high = _mm256_shuffle_epi8(self.levels.high, even);
        let (c, d) = (
            _mm256_unpacklo_epi8(low, high),
            _mm256_unpackhi_epi8(low, high),
        );
        [a, b, c, d]
    }
}

/// Writes the vectors of a tile, `[blocks, ROWS, VECTORS]`.
#[target_feature(enable = "avx2,fma")]
unsafe fn unpack(codes: &Codes, blocks: usize, to: *mut __m256i) {
    for block in 0..blocks {
        for row in 0..ROWS {
            // SAFETY: the caller's memory has room.
            unsafe {
                let vectors = codes.block(row, block);
                for (i, vector) in vectors.into_iter().enumerate() {
                    let at = (block * ROWS + row) * VECTORS + i;
                    _mm256_storeu_si256(to.add(at), vector);
                }
            }
        }
    }
}

/// Where the integers of a tile come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Codes(&'a Codes),
    /// What [`unpack`] has written.
    Panel(*const __m256i),
}

impl Source<'_> {
    /// The integers of a block of a row.
    ///
    /// # Safety
    ///
    /// They exist.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn block(self, row: usize, block: usize) -> [__m256i; VECTORS] {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Codes(codes) => codes.block(row, block),
                Self::Panel(panel) => {
                    let from = panel.add((block * ROWS + row) * VECTORS);
                    let load = |i: usize| _mm256_loadu_si256(from.add(i));
                    [load(0), load(1), load(2), load(3)]
                }
            }
        }
    }
}

/// Products of `M` rows of `x` with a tile, of which `columns` are written.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply<const M: usize>(
    x: Part,
    source: Source<'_>,
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
                let w = source.block(row, block);
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
