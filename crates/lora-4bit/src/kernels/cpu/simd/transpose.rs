//! Transposition with AVX-512.

use std::arch::x86_64::*;

/// Rows become columns of a 16 × 16 matrix of 32-bit values.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transposed(mut rows: [__m512i; 16]) -> [__m512i; 16] {
    // Four rows at a time: in each quarter of a vector, four of their columns become rows.
    for rows in rows.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *rows;
        let (low_ab, high_ab) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low_cd, high_cd) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *rows = [
            _mm512_unpacklo_epi64(low_ab, low_cd),
            _mm512_unpackhi_epi64(low_ab, low_cd),
            _mm512_unpacklo_epi64(high_ab, high_cd),
            _mm512_unpackhi_epi64(high_ab, high_cd),
        ];
    }
    // Then the quarters themselves.
    let mut columns = rows;
    for i in 0..4 {
        let [a, b, c, d] = [rows[i], rows[4 + i], rows[8 + i], rows[12 + i]];
        let even_ab = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let even_cd = _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d);
        let odd_ab = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        let odd_cd = _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d);
        columns[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even_ab, even_cd);
        columns[4 + i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd_ab, odd_cd);
        columns[8 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even_ab, even_cd);
        columns[12 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd_ab, odd_cd);
    }
    columns
}

/// The same for floats.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transposed_floats(rows: [__m512; 16]) -> [__m512; 16] {
    let mut integers = [_mm512_setzero_si512(); 16];
    for (integer, row) in integers.iter_mut().zip(rows) {
        *integer = _mm512_castps_si512(row);
    }
    let mut columns = rows;
    for (column, integer) in columns.iter_mut().zip(transposed(integers)) {
        *column = _mm512_castsi512_ps(integer);
    }
    columns
}
