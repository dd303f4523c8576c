//! The products of one block.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::super::amx::{TILE_BYTES, TILE_ROWS};

/// A block of 16 rows, four values of each or 64 of one side by side.
pub(super) type Bytes = [u8; TILE_BYTES];
/// High bytes and low bytes.
pub(super) type Pair = [Bytes; 2];

/// So many rows of `x` have both their bytes in one tile.
pub(super) const NARROW: usize = TILE_ROWS / 2;

/// Up to three tiles of sums, with 16 rows of weights.
pub(super) type Sums = [[i32; TILE_BYTES / 4]; 3];

/// `hh`, `hl + lh` and `ll` of a block, a lane for each row of `x`.
///
/// # Safety
///
/// The tiles are configured.
#[inline]
pub(super) unsafe fn multiply(w: *const Pair, x: *const Pair, to: *mut Sums) {
    // SAFETY: all are whole tiles.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tileloadd tmm4, [{w} + {stride}*1]",
            "tileloadd tmm7, [{x} + {stride}*1 + 1024]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{w} + {stride}*1 + 1024]",
            "tdpbusd tmm2, tmm5, tmm7",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbusd tmm1, tmm5, tmm6",
            "tilestored [{to} + {stride}*1 + 2048], tmm2",
            "tilestored [{to} + {stride}*1], tmm0",
            "tilestored [{to} + {stride}*1 + 1024], tmm1",
            w = in(reg) w,
            x = in(reg) x,
            to = in(reg) to,
            stride = in(reg) TILE_BYTES / TILE_ROWS,
            options(nostack),
        );
    }
}

/// `hh` and `lh` of a block, whose second halves are `hl` and `ll`.
///
/// # Safety
///
/// The tiles are configured.
#[inline]
pub(super) unsafe fn multiply_narrow(w: *const Pair, x: *const Bytes, to: *mut Sums) {
    // SAFETY: all are whole tiles.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tileloadd tmm4, [{w} + {stride}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{w} + {stride}*1 + 1024]",
            "tdpbusd tmm1, tmm5, tmm6",
            "tilestored [{to} + {stride}*1], tmm0",
            "tilestored [{to} + {stride}*1 + 1024], tmm1",
            w = in(reg) w,
            x = in(reg) x,
            to = in(reg) to,
            stride = in(reg) TILE_BYTES / TILE_ROWS,
            options(nostack),
        );
    }
}

/// Adds the sums of a block, times both scales, to those of the other blocks. The scales of the weights are those of 16 rows, so
/// far apart.
///
/// # Safety
///
/// They exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
#[inline]
pub(super) unsafe fn add_scaled(
    products: *const Sums,
    x_scales: __m512,
    (scales, stride): (*const f32, usize),
    sums: &mut [__m512; TILE_ROWS],
) {
    // SAFETY: the caller's promise; a tile has 16 vectors.
    unsafe {
        let products = products.cast::<__m512i>();
        for (row, to) in sums.iter_mut().enumerate() {
            let part = |i: usize| _mm512_loadu_si512(products.add(i * TILE_ROWS + row));
            let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(part(0)), part(1));
            let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), part(2));
            let factor = _mm512_mul_ps(_mm512_set1_ps(*scales.add(row * stride)), x_scales);
            *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, *to);
        }
    }
}

/// The same after [`multiply_narrow`]: two rows of weights in each of the first eight vectors.
///
/// # Safety
///
/// As for [`add_scaled`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
#[inline]
pub(super) unsafe fn add_scaled_narrow(
    products: *const Sums,
    x_scales: __m512,
    (scales, stride): (*const f32, usize),
    sums: &mut [__m512; TILE_ROWS],
) {
    const SECOND_HALF: u16 = 0xff00;
    // SAFETY: the caller's promise; a tile has 16 vectors.
    unsafe {
        let products = products.cast::<__m512i>();
        for (pair, to) in sums.iter_mut().take(NARROW).enumerate() {
            // `256 hh + lh`, then `256 hl + ll`.
            let halves = |row: usize| {
                let high = _mm512_loadu_si512(products.add(row));
                let low = _mm512_loadu_si512(products.add(TILE_ROWS + row));
                _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)
            };
            let (a, b) = (halves(2 * pair), halves(2 * pair + 1));
            let first = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
            let second = _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b);
            let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(first), second);
            let scale = |row: usize| _mm512_set1_ps(*scales.add(row * stride));
            let scale = _mm512_mask_blend_ps(SECOND_HALF, scale(2 * pair), scale(2 * pair + 1));
            let factor = _mm512_mul_ps(scale, x_scales);
            *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, *to);
        }
    }
}

/// A vector for each row of weights, of the first eight, which have two each.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn widened(sums: [__m512; TILE_ROWS]) -> [__m512; TILE_ROWS] {
    let mut rows = sums;
    for (pair, sums) in sums.into_iter().take(NARROW).enumerate() {
        rows[2 * pair] = sums;
        rows[2 * pair + 1] = _mm512_shuffle_f32x4::<0b01_00_11_10>(sums, sums);
    }
    rows
}
