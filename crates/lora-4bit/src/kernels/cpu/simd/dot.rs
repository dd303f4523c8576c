//! The inner loops of `x · wᵀ`.
//!
//! `M × 4` vectors of partial sums stay in registers: every vector of `x` is used for four rows of `w`, every vector of
//! `w` for `M` rows of `x`, and neither operand has to be rearranged, because both are contiguous along `k`.

use super::micro::{BLOCK_BYTES, with_rows};
use super::{BlockScales, Element, Nf4Rows, Output, PANEL, Scales, Simd};

/// Rows of `w` that share one pass over `x`.
const W_ROWS: usize = 4;

/// How far ahead NF4 codes are fetched into the cache, at least.
const PREFETCH_BYTES: usize = 4096;

/// See [`super::DotKernel`].
///
/// # Safety
///
/// The CPU has the instruction set; `y` is valid for `m` rows of `n` columns.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd, E: Element>(x: &[f32], w: &[E], k: usize, y: Output) {
    let pass = balanced(x.len() / k, S::DOT_ROWS);
    for (i, x) in x.chunks(pass * k).enumerate() {
        // SAFETY: `y` has these rows, because `x` has them.
        unsafe {
            let y = y.at(i * pass, 0);
            if i == 0 {
                with_rows!(x.len() / k, |M| dot_rows::<S, E, M, true>(x, w, k, y));
            } else {
                with_rows!(x.len() / k, |M| dot_rows::<S, E, M, false>(x, w, k, y));
            }
        }
    }
}

/// Rows per pass when `rows` go in the fewest passes of at most `max`, as even as possible.
#[inline(always)]
fn balanced(rows: usize, max: usize) -> usize {
    rows.div_ceil(rows.div_ceil(max))
}

#[inline(always)]
unsafe fn dot_rows<S: Simd, E: Element, const M: usize, const FETCH: bool>(
    x: &[f32],
    w: &[E],
    k: usize,
    y: Output,
) {
    let n = w.len() / k;
    let mut j = 0;
    while j < n {
        // SAFETY: all row indices are below `n`, `M` rows of `x` and `y` exist.
        unsafe {
            let mut rows = [w.as_ptr(); W_ROWS];
            for (q, row) in rows.iter_mut().enumerate() {
                // Past the end the last row is computed again and dropped.
                *row = w.as_ptr().add(usize::min(j + q, n - 1) * k);
            }
            let sums = dot_tile::<S, E, M, FETCH>(x.as_ptr(), rows, k);
            store_sums(&sums, y, j, n);
        }
        j += W_ROWS;
    }
}

/// Writes columns `j..j + 4` of a tile, as far as they are below `n`.
#[inline(always)]
unsafe fn store_sums<const M: usize>(sums: &[[f32; W_ROWS]; M], y: Output, j: usize, n: usize) {
    let columns = usize::min(W_ROWS, n - j);
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: inside row `i` of `y`.
        unsafe {
            let to = y.at(i, j).start;
            if columns == W_ROWS {
                to.cast::<[f32; W_ROWS]>().write_unaligned(*sums);
            } else {
                to.copy_from_nonoverlapping(sums.as_ptr(), columns);
            }
        }
    }
}

/// The `M × 4` inner products of rows of `x` and `w` of length `k`. `FETCH` asks the cache for the rows of `w` to come: in
/// the first pass over them, before they lie there.
#[inline(always)]
unsafe fn dot_tile<S: Simd, E: Element, const M: usize, const FETCH: bool>(
    x: *const f32,
    w: [*const E; W_ROWS],
    k: usize,
) -> [[f32; W_ROWS]; M] {
    let full = k / S::LANES * S::LANES;
    // SAFETY: reads stay within `k` values of each row; the tail goes through zero-padded copies. Prefetching any
    // address is allowed.
    unsafe {
        let mut acc = [[S::zero(); W_ROWS]; M];
        let mut p = 0;
        while p < full {
            if FETCH {
                // The same place in the next four rows.
                for w in w {
                    S::prefetch(w.wrapping_add(W_ROWS * k + p).cast());
                }
            }
            let w = [
                E::load::<S>(w[0].add(p)),
                E::load::<S>(w[1].add(p)),
                E::load::<S>(w[2].add(p)),
                E::load::<S>(w[3].add(p)),
            ];
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = S::load(x.add(i * k + p));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = S::fma(x, w, *acc);
                }
            }
            p += S::LANES;
        }
        if full < k {
            let mut tail = [S::zero(); W_ROWS];
            for (tail, w) in tail.iter_mut().zip(w) {
                *tail = load_tail::<S, E>(w.add(full), k - full);
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = load_tail::<S, f32>(x.add(i * k + full), k - full);
                for (acc, w) in acc.iter_mut().zip(tail) {
                    *acc = S::fma(x, w, *acc);
                }
            }
        }
        let mut sums = [[0.0; W_ROWS]; M];
        for (sums, acc) in sums.iter_mut().zip(acc) {
            *sums = S::sum4(acc);
        }
        sums
    }
}

/// The first `len` values at `from`, and zeros.
#[inline(always)]
unsafe fn load_tail<S: Simd, E: Element>(from: *const E, len: usize) -> S::Vector {
    let mut padded = [E::ZERO; 16];
    // SAFETY: `len` is below the number of lanes, at most 16.
    unsafe {
        padded.as_mut_ptr().copy_from_nonoverlapping(from, len);
        E::load::<S>(padded.as_ptr())
    }
}

/// See [`super::Kernels::dot_nf4`].
///
/// # Safety
///
/// As for [`dot`]; `k` is a multiple of 64.
#[inline(always)]
pub(super) unsafe fn dot_nf4<S: Simd>(x: &[f32], w: Nf4Rows<'_>, k: usize, y: Output) {
    let pass = balanced(x.len() / k, S::NF4_ROWS);
    for (i, x) in x.chunks(pass * k).enumerate() {
        // SAFETY: `y` has these rows, because `x` has them.
        unsafe {
            let y = y.at(i * pass, 0);
            let is_first = i == 0;
            match w.scales {
                Scales::Single(scales) => dot_nf4_pass::<S, _>(x, w, scales, k, y, is_first),
                Scales::Double(scales) => dot_nf4_pass::<S, _>(x, w, scales, k, y, is_first),
            }
        }
    }
}

#[inline(always)]
unsafe fn dot_nf4_pass<S: Simd, C: BlockScales>(
    x: &[f32],
    w: Nf4Rows<'_>,
    scales: C,
    k: usize,
    y: Output,
    is_first: bool,
) {
    // SAFETY: forwarded.
    unsafe {
        if is_first {
            with_rows!(x.len() / k, |M| dot_nf4_rows::<S, C, M, true>(
                x, w, scales, k, y
            ));
        } else {
            with_rows!(x.len() / k, |M| dot_nf4_rows::<S, C, M, false>(
                x, w, scales, k, y
            ));
        }
    }
}

#[inline(always)]
unsafe fn dot_nf4_rows<S: Simd, C: BlockScales, const M: usize, const FETCH: bool>(
    x: &[f32],
    w: Nf4Rows<'_>,
    scales: C,
    k: usize,
    y: Output,
) {
    let blocks = k / PANEL;
    let n = scales.len() / blocks;
    // The same place some groups of rows further on.
    let group_bytes = W_ROWS * blocks * BLOCK_BYTES;
    let ahead = PREFETCH_BYTES.next_multiple_of(group_bytes);
    let mut j = 0;
    while j < n {
        // SAFETY: row indices are below `n`; a row has `blocks` blocks of 32 bytes and one scale each.
        unsafe {
            let levels = S::table(w.map);
            let prepared = scales.prepare::<S>(levels);
            let mut acc = [[S::zero(); W_ROWS]; M];
            let mut rows = [0; W_ROWS];
            for (q, row) in rows.iter_mut().enumerate() {
                *row = usize::min(j + q, n - 1) * blocks;
            }
            for block in 0..blocks {
                if FETCH {
                    for row in rows {
                        let place = (row + block) * BLOCK_BYTES + ahead;
                        S::prefetch(w.packed.as_ptr().wrapping_add(place));
                    }
                }
                let mut tables = [levels; W_ROWS];
                for (table, row) in tables.iter_mut().zip(rows) {
                    *table = scales.scaled::<S>(levels, prepared, row + block);
                }
                let mut byte = 0;
                while byte < BLOCK_BYTES {
                    for q in 0..W_ROWS {
                        let from = w
                            .packed
                            .as_ptr()
                            .add((rows[q] + block) * BLOCK_BYTES + byte);
                        let (even, odd) = S::lookup(tables[q], from);
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let x = x.as_ptr().add(i * k + block * PANEL + 2 * byte);
                            acc[q] = S::fma(S::load(x), even, acc[q]);
                            acc[q] = S::fma(S::load(x.add(S::LANES)), odd, acc[q]);
                        }
                    }
                    byte += S::LANES;
                }
            }
            let mut sums = [[0.0; W_ROWS]; M];
            for (sums, acc) in sums.iter_mut().zip(acc) {
                *sums = S::sum4(acc);
            }
            store_sums(&sums, y, j, n);
        }
        j += W_ROWS;
    }
}
