//! Products of rows of bytes with integers of 15 bits: in integers, rounded once.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, unused_variables, reason = "no loops for other CPUs yet")
)]

use std::sync::OnceLock;

use super::InstructionSet;
#[cfg(target_arch = "x86_64")]
use super::bytes_amx::TileRows;
#[cfg(target_arch = "x86_64")]
use super::micro::with_rows;
use super::split_row::{STEP, SplitRow, W_ROWS};

/// Rows of `x` that are multiplied together.
const ROWS: usize = 4;

/// What multiplies bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    /// AVX-512-VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Nothing special.
    Plain,
}

impl Instructions {
    /// Those that this CPU has, best first.
    fn supported() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                all.push(Self::Vnni);
            }
            if is_x86_feature_detected!("avx2") {
                all.push(Self::Avx2);
            }
        }
        all.push(Self::Plain);
        all
    }

    /// The best of them, within [`InstructionSet::limit`].
    fn get() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| {
            let limit = InstructionSet::limit();
            let allows = |instructions: &Self| match instructions {
                Self::Plain => true,
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => limit >= InstructionSet::Avx2,
                #[cfg(target_arch = "x86_64")]
                Self::Vnni => limit >= InstructionSet::Avx512Bf16,
            };
            let best = Self::supported().into_iter().find(allows);
            best.unwrap_or(Self::Plain)
        })
    }
}

/// Whether this CPU multiplies bytes faster than it reads them from memory.
pub(crate) fn is_fast() -> bool {
    Instructions::get() != Instructions::Plain
}

/// Rows of `x` in the form that is fastest for their number.
pub(crate) enum ByteOperand {
    /// One after the other.
    Rows(Vec<SplitRow>),
    /// As tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles(TileRows, usize),
}

impl ByteOperand {
    /// The most rows of `x` that don't take longer than reading the bytes from memory.
    pub(crate) fn max_rows() -> usize {
        if has_tiles() { 16 } else { ROWS }
    }

    /// Rows of `inner` values each, a multiple of [`STEP`], at most 8,192.
    pub(crate) fn new(rows: Vec<SplitRow>, inner: usize) -> Self {
        assert!(inner.is_multiple_of(STEP) && (1..=8192).contains(&inner));
        let fit = |row: &SplitRow| row.high.len() == inner && row.low.len() == inner;
        assert!(rows.iter().all(fit), "rows of {inner} values");
        #[cfg(target_arch = "x86_64")]
        if has_tiles() && (ROWS + 1..=16).contains(&rows.len()) {
            return Self::Tiles(TileRows::new(&rows, inner), rows.len());
        }
        Self::Rows(rows)
    }

    /// `Σ (w - 128) · x`, rounded to f32, for rows of `inner` bytes: `w [rows, inner]` → `[rows, width]`, of which the first
    /// columns are those of `x`. `rows` is a multiple of [`W_ROWS`].
    pub(crate) fn dot(&self, w: &[u8], inner: usize, width: usize, out: &mut [f32]) {
        assert!(w.len().is_multiple_of(W_ROWS * inner), "rows of bytes");
        assert_eq!(w.len() / inner * width, out.len(), "results");
        match self {
            Self::Rows(rows) => {
                assert!(rows.len() <= width, "{} columns", rows.len());
                for (first, x) in rows.chunks(ROWS).enumerate() {
                    let out = &mut out[first * ROWS..];
                    dot_rows(Instructions::get(), w, inner, x, (out, width));
                }
            }
            // SAFETY: the CPU has tiles, as was seen when these were made.
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(tiles, rows) => unsafe {
                assert!((*rows..=16).contains(&width), "{rows} columns");
                tiles.dot(w, width, out);
            },
        }
    }
}

/// Whether this CPU has tiles, and they may be used.
fn has_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::amx::is_available() && InstructionSet::limit() >= InstructionSet::Amx;
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Up to [`ROWS`] rows of `x`; results are `stride` values apart.
fn dot_rows(
    instructions: Instructions,
    w: &[u8],
    inner: usize,
    x: &[SplitRow],
    (out, stride): (&mut [f32], usize),
) {
    match instructions {
        // SAFETY: whoever names instructions has seen that they are there; rows of `x` are as long as those of `w`.
        #[cfg(target_arch = "x86_64")]
        Instructions::Vnni => unsafe {
            with_rows!(x.len(), |M| vnni::<M>(w, inner, x, out, stride))
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe {
            with_rows!(x.len(), |M| avx2::<M>(w, inner, x, out, stride))
        },
        Instructions::Plain => plain(w, inner, x, out, stride),
    }
}

/// The reference.
fn plain(w: &[u8], inner: usize, x: &[SplitRow], out: &mut [f32], stride: usize) {
    for (w, out) in w.chunks_exact(inner).zip(out.chunks_mut(stride)) {
        for (x, out) in x.iter().zip(out) {
            let values = x.high.iter().zip(&x.low);
            let values = values.map(|(&high, &low)| 128 * i32::from(high) + i32::from(low));
            let products = w
                .iter()
                .zip(values)
                .map(|(&w, x)| (i64::from(w) - 128) * i64::from(x));
            *out = products.sum::<i64>() as f32;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni<const M: usize>(
    w: &[u8],
    inner: usize,
    x: &[SplitRow],
    out: &mut [f32],
    stride: usize,
) {
    use std::arch::x86_64::*;
    for (row, w) in w.chunks_exact(inner).enumerate() {
        let mut high = [_mm512_setzero_si512(); M];
        let mut low = [_mm512_setzero_si512(); M];
        for at in (0..inner).step_by(STEP) {
            // SAFETY: rows have `inner` bytes, a multiple of a vector.
            unsafe {
                let w = _mm512_loadu_si512(w.as_ptr().add(at).cast());
                for m in 0..M {
                    let x_high = _mm512_loadu_si512(x[m].high.as_ptr().add(at).cast());
                    let x_low = _mm512_loadu_si512(x[m].low.as_ptr().add(at).cast());
                    high[m] = _mm512_dpbusd_epi32(high[m], w, x_high);
                    low[m] = _mm512_dpbusd_epi32(low[m], w, x_low);
                }
            }
        }
        for m in 0..M {
            // A lane has a sixteenth of 8,192 products of at most 255 * 63 * 128: less than 2^31.
            let sums = _mm512_add_epi32(_mm512_slli_epi32::<7>(high[m]), low[m]);
            let halves = _mm512_add_epi64(
                _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sums)),
                _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(sums)),
            );
            let sum = _mm512_reduce_add_epi64(halves) - 128 * x[m].sum;
            out[row * stride + m] = sum as f32;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2<const M: usize>(
    w: &[u8],
    inner: usize,
    x: &[SplitRow],
    out: &mut [f32],
    stride: usize,
) {
    use std::arch::x86_64::*;
    let ones = _mm256_set1_epi16(1);
    for (row, w) in w.chunks_exact(inner).enumerate() {
        let mut high = [_mm256_setzero_si256(); M];
        let mut low = [_mm256_setzero_si256(); M];
        for at in (0..inner).step_by(32) {
            // SAFETY: rows have `inner` bytes, a multiple of a vector.
            unsafe {
                let w = _mm256_loadu_si256(w.as_ptr().add(at).cast());
                // Two products fit in 16 bits: 2 * 255 * 64 < 2^15.
                let pairs = |x: &[i8]| {
                    let x = _mm256_loadu_si256(x.as_ptr().add(at).cast());
                    _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones)
                };
                for m in 0..M {
                    high[m] = _mm256_add_epi32(high[m], pairs(&x[m].high));
                    low[m] = _mm256_add_epi32(low[m], pairs(&x[m].low));
                }
            }
        }
        for m in 0..M {
            // A lane has an eighth of 8,192 products of at most 255 * (63 * 128 + 64): less than 2^31.
            let sums = _mm256_add_epi32(_mm256_slli_epi32::<7>(high[m]), low[m]);
            let mut lanes = [0i32; 8];
            // SAFETY: eight values.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
            let sum: i64 = lanes.into_iter().map(i64::from).sum();
            out[row * stride + m] = (sum - 128 * x[m].sum) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_bytes_equal_plain_sums() {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u32
        };
        for (inner, num_x) in [
            (64, 1),
            (896, 2),
            (8192, 3),
            (128, 4),
            (192, 5),
            (8192, 9),
            (64, 16),
        ] {
            let rows = 2 * W_ROWS;
            let w: Vec<u8> = (0..rows * inner).map(|_| next() as u8).collect();
            let all = vec![255; rows * inner];
            let mut values = || (next() % 16_001) as i32 - 8_000;
            let random = (0..num_x).map(|_| SplitRow::new((0..inner - 3).map(|_| values()), inner));
            let random: Vec<SplitRow> = random.collect();
            // The largest sums of a lane: of all values, and of both parts.
            let extremes = [8_000, -8_000, 63, -64].map(|value| {
                let row = SplitRow::new((0..inner).map(|_| value), inner);
                (&all, vec![row; num_x])
            });
            for (w, x) in [(&w, random)].into_iter().chain(extremes) {
                let mut expected = vec![0.0; rows * num_x];
                plain(w, inner, &x, &mut expected, num_x);
                for instructions in Instructions::supported() {
                    let mut found = vec![0.0; rows * num_x];
                    for (first, x) in x.chunks(ROWS).enumerate() {
                        let out = &mut found[first * ROWS..];
                        dot_rows(instructions, w, inner, x, (out, num_x));
                    }
                    assert_eq!(found, expected, "{instructions:?}");
                }
                // In the form for this CPU, and with columns to spare. Upper and lower parts may be rounded by themselves.
                let width = num_x.next_multiple_of(4);
                let mut found = vec![0.0; rows * width];
                ByteOperand::new(x, inner).dot(w, inner, width, &mut found);
                let rows = found.chunks_exact(width).zip(expected.chunks_exact(num_x));
                for (found, expected) in
                    rows.flat_map(|(found, expected)| found.iter().zip(expected))
                {
                    let error = (found - expected).abs();
                    // Of the length of all values, of at most 8,000 and 128.
                    assert!(
                        error <= 1e-7 * 8_000.0 * 128.0 * inner as f32,
                        "{found} {expected}"
                    );
                }
            }
        }
    }
}
