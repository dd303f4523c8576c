//! x86-64: AVX-512F, and AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::micro::kernel_table;
use super::{Kernels, Simd};

kernel_table!(
    /// 512-bit vectors.
    AVX512, avx512, Avx512, "avx512f,avx512dq,avx2,fma", 6, 4
);
kernel_table!(
    /// 256-bit vectors.
    AVX2, avx2, Avx2, "avx2,fma,f16c", 6, 2
);

pub(super) struct Avx512;

// SAFETY (all functions): the caller vouches for the instruction set and the pointers, see `Simd`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type Vector = __m512;
    type Table = __m512;
    const LANES: usize = 16;
    const DOT_ROWS: usize = 6;
    const NF4_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        unsafe {
            // Transposes 4 × 4 values in each 128-bit lane while adding.
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
            let high = _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd);
            let sums = _mm512_add_ps(low, high);
            let half = _mm256_add_ps(
                _mm512_castps512_ps256(sums),
                _mm512_extractf32x8_ps::<1>(sums),
            );
            let sums = _mm_add_ps(
                _mm256_castps256_ps128(half),
                _mm256_extractf128_ps::<1>(half),
            );
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> __m512 {
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn scale(table: __m512, factor: f32) -> __m512 {
        unsafe { _mm512_mul_ps(table, _mm512_set1_ps(factor)) }
    }

    #[inline(always)]
    unsafe fn scale_add(table: __m512, a: f32, b: f32, offsets: __m512) -> __m512 {
        unsafe {
            let factor = _mm512_mul_ps(_mm512_set1_ps(a), _mm512_set1_ps(b));
            _mm512_fmadd_ps(table, factor, offsets)
        }
    }

    #[inline(always)]
    unsafe fn lookup(table: __m512, bytes: *const u8) -> (__m512, __m512) {
        unsafe {
            // The permutation looks at the low four bits of each index only.
            let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.cast()));
            let high = _mm512_srli_epi32::<4>(low);
            (
                _mm512_permutexvar_ps(high, table),
                _mm512_permutexvar_ps(low, table),
            )
        }
    }

    #[inline(always)]
    unsafe fn interleave(a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe {
            let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
            (
                _mm512_permutex2var_ps(a, first, b),
                _mm512_permutex2var_ps(a, second, b),
            )
        }
    }
}

pub(super) struct Avx2;

// SAFETY (all functions): the caller vouches for the instruction set and the pointers, see `Simd`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type Vector = __m256;
    /// Entries 0..8 and 8..16.
    type Table = (__m256, __m256);
    const LANES: usize = 8;
    const DOT_ROWS: usize = 2;
    const NF4_ROWS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m256 {
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        unsafe {
            let sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let sums = _mm_add_ps(
                _mm256_castps256_ps128(sums),
                _mm256_extractf128_ps::<1>(sums),
            );
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> Self::Table {
        unsafe {
            (
                _mm256_loadu_ps(values.as_ptr()),
                _mm256_loadu_ps(values.as_ptr().add(8)),
            )
        }
    }

    #[inline(always)]
    unsafe fn scale((low, high): Self::Table, factor: f32) -> Self::Table {
        unsafe {
            let factor = _mm256_set1_ps(factor);
            (_mm256_mul_ps(low, factor), _mm256_mul_ps(high, factor))
        }
    }

    #[inline(always)]
    unsafe fn scale_add(
        (low, high): Self::Table,
        a: f32,
        b: f32,
        offsets: Self::Table,
    ) -> Self::Table {
        unsafe {
            let factor = _mm256_mul_ps(_mm256_set1_ps(a), _mm256_set1_ps(b));
            (
                _mm256_fmadd_ps(low, factor, offsets.0),
                _mm256_fmadd_ps(high, factor, offsets.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn lookup(table: Self::Table, bytes: *const u8) -> (__m256, __m256) {
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.cast()));
            let high = _mm256_srli_epi32::<4>(low);
            (lookup16(table, high), lookup16(table, low))
        }
    }

    #[inline(always)]
    unsafe fn interleave(a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe {
            let low = _mm256_unpacklo_ps(a, b); // a0 b0 a1 b1 | a4 b4 a5 b5
            let high = _mm256_unpackhi_ps(a, b); // a2 b2 a3 b3 | a6 b6 a7 b7
            (
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            )
        }
    }
}

/// Entries of a table of 16, by the low four bits of each index.
#[inline(always)]
unsafe fn lookup16((low, high): (__m256, __m256), index: __m256i) -> __m256 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        // A permutation looks at three bits; the fourth, moved to the sign, chooses between the halves.
        let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
        _mm256_blendv_ps(
            _mm256_permutevar8x32_ps(low, index),
            _mm256_permutevar8x32_ps(high, index),
            choice,
        )
    }
}
