//! x86-64 with AVX-512-BF16.

use std::arch::x86_64::*;

use half::bf16;

use super::micro::with_rows;
use super::pairs::{
    INNER_STEP, PANEL_QUARTER, PackedRows, Packing, PairKernels, PairRows, Prefetch,
};
use super::transpose::transposed;
use super::{InstructionSet, Output, PANEL, amx, pairs_amx};

/// f32 in a vector.
const LANES: usize = 16;
/// Rows of `a` whose sums fit into registers beside a row of the panel.
const ROWS: usize = 6;

static AVX512_BF16: PairKernels = PairKernels {
    instruction_set: InstructionSet::Avx512Bf16,
    packing: Packing::Rows,
    narrow,
    transpose,
    interleave,
    multiply,
};

/// Beside AVX-512-BF16: the rearranging is the same.
static AMX: PairKernels = PairKernels {
    instruction_set: InstructionSet::Amx,
    packing: Packing::Tiles,
    narrow,
    transpose,
    interleave,
    multiply: pairs_amx::multiply,
};

pub(super) fn supported() -> Vec<&'static PairKernels> {
    let mut kernels = Vec::new();
    if is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512f")
    {
        if amx::is_available() {
            kernels.push(&AMX);
        }
        kernels.push(&AVX512_BF16);
    }
    kernels
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn narrow(from: &[f32], mut to: *mut bf16, step: usize) {
    const { assert!(INNER_STEP == 2 * LANES) };
    let mut from = from.chunks_exact(INNER_STEP);
    for from in from.by_ref() {
        // SAFETY: chunks have two vectors, and the caller vouches for the room.
        unsafe {
            let low = _mm512_loadu_ps(from.as_ptr());
            let high = _mm512_loadu_ps(from.as_ptr().add(LANES));
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.cast(), both);
            to = to.wrapping_add(step);
        }
    }
    for (i, value) in from.remainder().iter().enumerate() {
        // SAFETY: as above.
        unsafe { *to.add(i) = bf16::from_f32(*value) };
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose(w: PairRows, columns: usize, panel: &mut [u32], column: usize) {
    debug_assert!(panel.len() >= columns.next_multiple_of(INNER_STEP) / 2 * PANEL);
    for start in (0..columns).step_by(INNER_STEP) {
        let len = usize::min(INNER_STEP, columns - start);
        let mut rows = [_mm512_setzero_si512(); PANEL_QUARTER];
        for (i, row) in rows.iter_mut().enumerate().take(w.num_rows) {
            // SAFETY: the row has `len` values from `start` on; a mask leaves out the others.
            unsafe {
                let from = w.start.add(i * w.stride + start).cast::<i16>();
                let mask = u32::MAX >> (INNER_STEP - len);
                *row = _mm512_maskz_loadu_epi16(mask, from);
            }
        }
        // SAFETY: the panel has these rows.
        unsafe {
            let to = panel.as_mut_ptr().add(start / 2 * PANEL + column);
            for (p, pairs) in transposed(rows).into_iter().enumerate() {
                _mm512_storeu_si512(to.add(p * PANEL).cast(), pairs);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave(w: PairRows, panel: &mut [u32]) {
    for (p, to) in panel
        .chunks_exact_mut(PANEL)
        .enumerate()
        .take(w.num_rows.div_ceil(2))
    {
        // SAFETY: rows have `PANEL` values; past the last row there are zeros instead.
        unsafe {
            let first = w.start.add(2 * p * w.stride);
            for i in (0..PANEL).step_by(LANES) {
                let widen =
                    |row: *const bf16| _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.add(i).cast()));
                let second = match 2 * p + 1 < w.num_rows {
                    true => widen(first.add(w.stride)),
                    false => _mm512_setzero_si512(),
                };
                let pairs = _mm512_or_si512(widen(first), _mm512_slli_epi32::<16>(second));
                _mm512_storeu_si512(to.as_mut_ptr().add(i).cast(), pairs);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply(a: PackedRows, panel: &[u32], y: Output, first: bool, next: Prefetch) {
    debug_assert!(a.stride.is_multiple_of(2));
    let stride = a.stride / 2;
    let mut row = 0;
    let mut next = (0..next.num_bytes)
        .step_by(64)
        .map(|i| next.start.wrapping_add(i));
    let lines = next.len().div_ceil(a.num_rows.div_ceil(ROWS));
    while row < a.num_rows {
        let rows = usize::min(ROWS, a.num_rows - row);
        for line in next.by_ref().take(lines) {
            _mm_prefetch::<_MM_HINT_T1>(line.cast());
        }
        // SAFETY: these rows exist.
        unsafe {
            let a = a.start.add(row * a.stride);
            with_rows!(rows, |M| multiply_rows::<M>(
                a.cast(),
                stride,
                panel,
                y.at(row, 0),
                first
            ));
        }
        row += rows;
    }
}

/// `M` rows of `a`, whose pairs are `stride` apart from row to row.
#[inline(always)]
unsafe fn multiply_rows<const M: usize>(
    a: *const u32,
    stride: usize,
    panel: &[u32],
    y: Output,
    first: bool,
) {
    const VECTORS: usize = PANEL / LANES;
    // SAFETY: `a` has a pair for each row of the panel, `y` has `M` rows of `PANEL` columns.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); VECTORS]; M];
        if !first {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_loadu_ps(y.at(i, v * LANES).start);
                }
            }
        }
        for (p, row) in panel.chunks_exact(PANEL).enumerate() {
            let mut pairs = [_mm512_setzero_si512(); VECTORS];
            for (v, pairs) in pairs.iter_mut().enumerate() {
                *pairs = _mm512_loadu_si512(row.as_ptr().add(v * LANES).cast());
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let pair = a.add(i * stride + p).read_unaligned();
                let pair = as_bf16(_mm512_set1_epi32(pair.cast_signed()));
                for (acc, pairs) in acc.iter_mut().zip(pairs) {
                    *acc = _mm512_dpbf16_ps(*acc, pair, as_bf16(pairs));
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                _mm512_storeu_ps(y.at(i, v * LANES).start, *acc);
            }
        }
    }
}

#[inline(always)]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(bits) }
}
