//! AVX-512 with VNNI: a vector has two values of each of 16 rows of weights.

use std::arch::x86_64::*;

use super::super::super::aligned::Aligned;
use super::super::micro::{BLOCK_BYTES, with_rows};
use super::super::{InstructionSet, Nf4Rows, Output, PANEL};
use super::{Codes, IntKernels, IntRows, Order, Part, Source, Tile, round};

/// Rows of weights of a tile, a lane each.
const ROWS: usize = 16;
/// Rows of `x` that are multiplied together.
const PASS: usize = 8;
/// Vectors of a block.
const VECTORS: usize = PANEL / 2;

pub(in super::super) static KERNELS: IntKernels = IntKernels {
    instruction_set: InstructionSet::Avx512Bf16,
    // One row alone is read from memory faster than it takes to put 16 of them side by side.
    min_rows: 2,
    strip_rows: 1,
    // SAFETY: as for `dot`.
    round: |x, _, values, scales| unsafe { round_values(x, values, scales) },
    tile_rows: ROWS,
    max_values: 128 << 10,
    max_direct_rows: PASS,
    // SAFETY: as for `IntKernels::dot`.
    dot: |x, w, y, memory| unsafe { multiply_all(x, w, y, memory) },
};

/// Four bytes of a row are a lane. Their eight codes lie in it in the order 1 0 3 2 5 4 7 6, from the lowest bits on, and a
/// vector has one of each half: those in the lowest bits of both, or those 4, 8 and 12 bits higher.
struct InLanes;

impl Order for InLanes {
    const PLACES: [u8; PANEL] = {
        let mut places = [0; PANEL];
        let firsts = [1, 0, 3, 2];
        let mut at = 0;
        while at < PANEL {
            let (eight, vector, half) = (at / 8, at / 2 % 4, at % 2);
            places[at] = (8 * eight + 4 * half) as u8 + firsts[vector];
            at += 1;
        }
        places
    };
}

/// See [`IntKernels::round`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn round_values(x: &[f32], values: &mut [i16], scales: &mut [f32]) {
    round::<InLanes>(x, values, scales);
}

/// See [`IntKernels::dot`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_all(x: &IntRows, w: Nf4Rows<'_>, y: Output, memory: &mut Aligned<f32>) {
    // SAFETY: the CPU has the instructions.
    unsafe { super::dot::<InLanes, ROWS>(x, w, y, memory) }
}

impl Tile<ROWS> for InLanes {
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
            match num_rows {
                8 => multiply::<8>(x, source, scales, y, columns),
                7 => multiply::<7>(x, source, scales, y, columns),
                _ => with_rows!(num_rows, |M| multiply::<M>(x, source, scales, y, columns)),
            }
        }
    }
}

impl Codes<'_, ROWS> {
    /// Calls `then` with every vector of a block.
    ///
    /// # Safety
    ///
    /// The block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn for_each(&self, block: usize, mut then: impl FnMut(usize, __m512i)) {
        // SAFETY: the caller's promise; there are 16 levels.
        let (words, levels) = unsafe {
            let levels = _mm256_loadu_si256(self.levels.words.as_ptr().cast());
            (self.transposed(block * BLOCK_BYTES), levels)
        };
        // The lookup uses five bits of each index; the levels are there twice, so that four count.
        let levels = _mm512_broadcast_i64x4(levels);
        for (i, word) in words.into_iter().enumerate() {
            then(4 * i, _mm512_permutexvar_epi16(word, levels));
            let word = _mm512_srli_epi16::<4>(word);
            then(4 * i + 1, _mm512_permutexvar_epi16(word, levels));
            let word = _mm512_srli_epi16::<4>(word);
            then(4 * i + 2, _mm512_permutexvar_epi16(word, levels));
            let word = _mm512_srli_epi16::<4>(word);
            then(4 * i + 3, _mm512_permutexvar_epi16(word, levels));
        }
    }

    /// The words of four bytes of a block, each of all rows; `at` is the block's first byte.
    ///
    /// # Safety
    ///
    /// The block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn transposed(&self, at: usize) -> [__m512i; 8] {
        // SAFETY: the caller's promise.
        let (a, b) = unsafe { (self.four(0, at), self.four(8, at)) };
        [
            _mm512_shuffle_i64x2::<0b10_00_10_00>(a[0], b[0]),
            _mm512_shuffle_i64x2::<0b10_00_10_00>(a[1], b[1]),
            _mm512_shuffle_i64x2::<0b10_00_10_00>(a[2], b[2]),
            _mm512_shuffle_i64x2::<0b10_00_10_00>(a[3], b[3]),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(a[0], b[0]),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(a[1], b[1]),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(a[2], b[2]),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(a[3], b[3]),
        ]
    }

    /// Words 0 to 3 of rows `first` to `first + 3` in the first 128 bits, words 4 to 7 in the next, then the same of four more
    /// rows.
    ///
    /// # Safety
    ///
    /// The block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn four(&self, first: usize, at: usize) -> [__m512i; 4] {
        let pair = |i: usize| {
            // SAFETY: the caller's promise.
            let (low, high) = unsafe {
                let row = |row: usize| _mm256_loadu_si256(self.rows[row].add(at).cast());
                (row(first + i), row(first + i + 4))
            };
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        };
        let rows = [pair(0), pair(1), pair(2), pair(3)];
        let low01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
        let high01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
        let low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
        let high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
        [
            _mm512_unpacklo_epi64(low01, low23),
            _mm512_unpackhi_epi64(low01, low23),
            _mm512_unpacklo_epi64(high01, high23),
            _mm512_unpackhi_epi64(high01, high23),
        ]
    }

    /// Asks for the same place of the next tile; any address is allowed.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn prefetch(&self, block: usize) {
        // Two blocks are a cache line.
        if block.is_multiple_of(2) {
            for row in self.rows {
                let next = row.wrapping_add(block * BLOCK_BYTES + self.ahead);
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
            }
        }
    }
}

/// Writes the vectors of a tile, `[blocks, VECTORS]`.
///
/// # Safety
///
/// There is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn unpack(codes: &Codes<'_, ROWS>, blocks: usize, to: *mut __m512i) {
    for block in 0..blocks {
        // SAFETY: the caller's promise.
        unsafe {
            codes.prefetch(block);
            codes.for_each(block, |i, vector| {
                _mm512_storeu_si512(to.add(block * VECTORS + i), vector);
            });
        }
    }
}

/// Products of `M` rows of `x` with a tile, of which `columns` are written.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply<const M: usize>(
    x: Part,
    source: Source<'_, ROWS>,
    scales: *const f32,
    y: Output,
    columns: usize,
) {
    let mut sums = [_mm512_setzero_ps(); M];
    for block in 0..x.blocks {
        // SAFETY: the block exists.
        unsafe {
            let scale = _mm512_loadu_ps(scales.add(block * ROWS));
            let mut totals = Totals::<M>::new(x, block);
            match source {
                Source::Codes(codes) => {
                    codes.prefetch(block);
                    codes.for_each(block, |i, w| totals.add(i, w));
                }
                Source::Panel(panel) => {
                    let panel = panel.cast::<__m512i>();
                    for i in 0..VECTORS {
                        totals.add(i, _mm512_loadu_si512(panel.add(block * VECTORS + i)));
                    }
                }
            }
            totals.scale(scale, &mut sums);
        }
    }
    for (m, sum) in sums.into_iter().enumerate() {
        let mask = (u32::MAX >> (32 - columns)) as u16;
        // SAFETY: so many columns exist.
        unsafe { _mm512_mask_storeu_ps(y.at(m, 0).start, mask, sum) };
    }
}

/// The sums of a block of `M` rows of `x`, a lane for each row of weights.
struct Totals<const M: usize> {
    /// With few rows, several side by side: one after the other they would wait for themselves.
    sums: [[__m512i; 4]; M],
    x: Part,
    block: usize,
}

impl<const M: usize> Totals<M> {
    const SPLIT: usize = if M <= 2 { 4 / M } else { 1 };

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn new(x: Part, block: usize) -> Self {
        Self {
            sums: [[_mm512_setzero_si512(); 4]; M],
            x,
            block,
        }
    }

    /// Adds the products with vector `i` of the block.
    ///
    /// # Safety
    ///
    /// The block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn add(&mut self, i: usize, w: __m512i) {
        for (m, sums) in self.sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let pair = unsafe {
                let block = self.x.block(m, self.block).cast::<i32>();
                block.add(i).read_unaligned()
            };
            let sum = &mut sums[i % Self::SPLIT];
            *sum = _mm512_dpwssd_epi32(*sum, w, _mm512_set1_epi32(pair));
        }
    }

    /// Adds the sums, times both scales, to those of the other blocks.
    ///
    /// # Safety
    ///
    /// The block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn scale(self, scale: __m512, to: &mut [__m512; M]) {
        for (m, (to, [a, b, c, d])) in to.iter_mut().zip(self.sums).enumerate() {
            let sum = match Self::SPLIT {
                4 => _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)),
                2 => _mm512_add_epi32(a, b),
                _ => a,
            };
            // SAFETY: the caller's promise.
            let factor = unsafe { _mm512_set1_ps(self.x.scale(m, self.block)) };
            let factor = _mm512_mul_ps(scale, factor);
            *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, *to);
        }
    }
}
