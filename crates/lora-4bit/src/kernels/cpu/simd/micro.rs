//! The inner loops, generic over the instruction set.
//!
//! [`dot`] keeps `M × 4` vectors of partial sums in registers: every vector of `x` is used for four rows of `w`, every
//! vector of `w` for `M` rows of `x`, and neither operand has to be rearranged, because both are contiguous along `k`.
//! [`outer`] does the same for the transposed product, whose results are contiguous along the columns of `w`.
//!
//! All functions here are inlined into wrappers that enable the instruction set (`kernel_table!`).

use super::{Element, Nf4Rows, Order, Output, PANEL, Rows, Simd};

/// Rows of `w` that share one pass over `x`.
const W_ROWS: usize = 4;

/// Bytes of an NF4 block.
const BLOCK_BYTES: usize = PANEL / 2;

/// Runs `$call` with the constant `$m` set to the number of rows, `1..=6`.
macro_rules! with_rows {
    ($rows:expr, |$m:ident| $call:expr) => {
        match $rows {
            1 => with_rows!(@ 1, $m, $call),
            2 => with_rows!(@ 2, $m, $call),
            3 => with_rows!(@ 3, $m, $call),
            4 => with_rows!(@ 4, $m, $call),
            5 => with_rows!(@ 5, $m, $call),
            _ => with_rows!(@ 6, $m, $call),
        }
    };
    (@ $value:literal, $m:ident, $call:expr) => {{
        const $m: usize = $value;
        $call
    }};
}

/// See [`super::DotKernel`].
///
/// # Safety
///
/// The CPU has the instruction set; `y` is valid for `m` rows of `n` columns.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd, E: Element>(x: &[f32], w: &[E], k: usize, y: Output) {
    for (i, x) in x.chunks(S::DOT_ROWS * k).enumerate() {
        let rows = x.len() / k;
        // SAFETY: `y` has these rows, because `x` has them.
        unsafe {
            let y = y.at(i * S::DOT_ROWS, 0);
            with_rows!(rows, |M| dot_rows::<S, E, M>(x, w, k, y));
        }
    }
}

#[inline(always)]
unsafe fn dot_rows<S: Simd, E: Element, const M: usize>(x: &[f32], w: &[E], k: usize, y: Output) {
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
            let sums = dot_tile::<S, E, M>(x.as_ptr(), rows, k);
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

/// The `M × 4` inner products of rows of `x` and `w` of length `k`.
#[inline(always)]
unsafe fn dot_tile<S: Simd, E: Element, const M: usize>(
    x: *const f32,
    w: [*const E; W_ROWS],
    k: usize,
) -> [[f32; W_ROWS]; M] {
    let full = k / S::LANES * S::LANES;
    // SAFETY: reads stay within `k` values of each row; the tail goes through zero-padded copies.
    unsafe {
        let mut acc = [[S::zero(); W_ROWS]; M];
        let mut p = 0;
        while p < full {
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
    for (i, x) in x.chunks(S::DOT_ROWS * k).enumerate() {
        let rows = x.len() / k;
        // SAFETY: `y` has these rows, because `x` has them.
        unsafe {
            let y = y.at(i * S::DOT_ROWS, 0);
            with_rows!(rows, |M| dot_nf4_rows::<S, M>(x, w, k, y));
        }
    }
}

#[inline(always)]
unsafe fn dot_nf4_rows<S: Simd, const M: usize>(x: &[f32], w: Nf4Rows<'_>, k: usize, y: Output) {
    let blocks = k / PANEL;
    let n = w.scales.len() / blocks;
    let mut j = 0;
    while j < n {
        // SAFETY: row indices are below `n`; a row has `blocks` blocks of 32 bytes and one scale each.
        unsafe {
            let table = S::table(w.map);
            let mut acc = [[S::zero(); W_ROWS]; M];
            let mut rows = [0; W_ROWS];
            for (q, row) in rows.iter_mut().enumerate() {
                *row = usize::min(j + q, n - 1) * blocks;
            }
            for block in 0..blocks {
                let mut tables = [table; W_ROWS];
                for (table, row) in tables.iter_mut().zip(rows) {
                    *table = S::scale(*table, *w.scales.get_unchecked(row + block));
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

/// Converts `from` to f32.
///
/// # Safety
///
/// The CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, E: Element>(from: &[E], to: &mut [f32]) {
    let mut from = from.chunks_exact(S::LANES);
    let mut to = to.chunks_exact_mut(S::LANES);
    for (from, to) in from.by_ref().zip(to.by_ref()) {
        // SAFETY: chunks have `LANES` values.
        unsafe { S::store(to.as_mut_ptr(), E::load::<S>(from.as_ptr())) }
    }
    for (from, to) in from.remainder().iter().zip(to.into_remainder()) {
        *to = from.to_f32();
    }
}

/// See [`super::Kernels::unpack`].
///
/// # Safety
///
/// The CPU has the instruction set.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd>(w: Nf4Rows<'_>, order: Order, to: &mut [f32]) {
    // SAFETY: chunks have whole blocks: 32 bytes, 64 values.
    unsafe {
        let table = S::table(w.map);
        let blocks = w.packed.chunks_exact(BLOCK_BYTES).zip(w.scales);
        for ((packed, scale), to) in blocks.zip(to.chunks_exact_mut(PANEL)) {
            let table = S::scale(table, *scale);
            let mut byte = 0;
            while byte < BLOCK_BYTES {
                let (even, odd) = S::lookup(table, packed.as_ptr().add(byte));
                let (first, second) = match order {
                    Order::Natural => S::interleave(even, odd),
                    Order::Split => (even, odd),
                };
                S::store(to.as_mut_ptr().add(2 * byte), first);
                S::store(to.as_mut_ptr().add(2 * byte + S::LANES), second);
                byte += S::LANES;
            }
        }
    }
}

/// See [`super::Kernels::outer`].
///
/// # Safety
///
/// The CPU has the instruction set; `y` is valid for the rows of `dy` and [`PANEL`] columns.
#[inline(always)]
pub(super) unsafe fn outer<S: Simd, const ROWS: usize, const VECTORS: usize>(
    dy: Rows<'_>,
    panel: &[f32],
    y: Output,
    first: bool,
) {
    let mut i = 0;
    while i < dy.num_rows {
        let rows = usize::min(ROWS, dy.num_rows - i);
        let mut column = 0;
        while column < PANEL {
            // SAFETY: rows and columns exist.
            unsafe {
                let dy = Rows {
                    values: dy.values.get_unchecked(i * dy.stride..),
                    ..dy
                };
                let y = y.at(i, column);
                with_rows!(rows, |M| outer_tile::<S, M, VECTORS>(
                    dy,
                    panel.get_unchecked(column..),
                    y,
                    first
                ));
            }
            column += VECTORS * S::LANES;
        }
        i += ROWS;
    }
}

#[inline(always)]
unsafe fn outer_tile<S: Simd, const M: usize, const VECTORS: usize>(
    dy: Rows<'_>,
    panel: &[f32],
    y: Output,
    first: bool,
) {
    let n = panel.len().div_ceil(PANEL);
    // SAFETY: `panel` starts at a column and has `n` rows from there on; `dy` has `M` rows of `n` values.
    unsafe {
        let mut acc = [[S::zero(); VECTORS]; M];
        if !first {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(y.at(i, v * S::LANES).start);
                }
            }
        }
        for r in 0..n {
            let mut w = [S::zero(); VECTORS];
            for (v, w) in w.iter_mut().enumerate() {
                *w = S::load(panel.as_ptr().add(r * PANEL + v * S::LANES));
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let dy = S::splat(*dy.values.get_unchecked(i * dy.stride + r));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = S::fma(dy, w, *acc);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                S::store(y.at(i, v * S::LANES).start, *acc);
            }
        }
    }
}

/// Defines a [`Kernels`](super::Kernels) table: every loop, compiled with the target features of one instruction set.
///
/// `outer` keeps `rows × vectors` vectors of sums in registers.
macro_rules! kernel_table {
    ($(#[$attr:meta])* $table:ident, $module:ident, $simd:ident, $name:literal, $feature:literal, $rows:literal, $vectors:literal) => {
        $(#[$attr])*
        pub(super) static $table: Kernels = Kernels {
            name: $name,
            lanes: $simd::LANES,
            dot_f32: $module::dot::<f32>,
            dot_bf16: $module::dot::<bf16>,
            dot_f16: $module::dot::<f16>,
            dot_nf4: $module::dot_nf4,
            widen_bf16: $module::widen::<bf16>,
            widen_f16: $module::widen::<f16>,
            unpack: $module::unpack,
            outer: $module::outer,
        };

        mod $module {
            //! The loops of `micro` with target features. Safety: as there.
            use super::super::{Element, Nf4Rows, Order, Output, Rows, micro};

            #[target_feature(enable = $feature)]
            pub(super) unsafe fn dot<E: Element>(x: &[f32], w: &[E], k: usize, y: Output) {
                // SAFETY: forwarded.
                unsafe { micro::dot::<super::$simd, E>(x, w, k, y) }
            }

            #[target_feature(enable = $feature)]
            pub(super) unsafe fn dot_nf4(x: &[f32], w: Nf4Rows<'_>, k: usize, y: Output) {
                // SAFETY: forwarded.
                unsafe { micro::dot_nf4::<super::$simd>(x, w, k, y) }
            }

            #[target_feature(enable = $feature)]
            pub(super) unsafe fn widen<E: Element>(from: &[E], to: &mut [f32]) {
                // SAFETY: forwarded.
                unsafe { micro::widen::<super::$simd, E>(from, to) }
            }

            #[target_feature(enable = $feature)]
            pub(super) unsafe fn unpack(w: Nf4Rows<'_>, order: Order, to: &mut [f32]) {
                // SAFETY: forwarded.
                unsafe { micro::unpack::<super::$simd>(w, order, to) }
            }

            #[target_feature(enable = $feature)]
            pub(super) unsafe fn outer(dy: Rows<'_>, panel: &[f32], y: Output, first: bool) {
                // SAFETY: forwarded.
                unsafe { micro::outer::<super::$simd, $rows, $vectors>(dy, panel, y, first) }
            }
        }
    };
}
pub(super) use kernel_table;
