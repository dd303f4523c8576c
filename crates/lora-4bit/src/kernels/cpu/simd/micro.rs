//! The inner loops, generic over the instruction set: here conversions and the transposed product, in `dot` the plain
//! product.
//!
//! All functions are inlined into wrappers that enable the instruction set (`kernel_table!`).

use super::{BlockScales, Element, Nf4Rows, Order, Output, PANEL, Rows, Scales, Simd};

/// Bytes of an NF4 block.
pub(super) const BLOCK_BYTES: usize = PANEL / 2;

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
pub(super) use with_rows;

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
    // SAFETY: forwarded.
    unsafe {
        match w.scales {
            Scales::Single(scales) => unpack_blocks::<S, _>(w, scales, order, to),
            Scales::Double(scales) => unpack_blocks::<S, _>(w, scales, order, to),
        }
    }
}

#[inline(always)]
unsafe fn unpack_blocks<S: Simd, C: BlockScales>(
    w: Nf4Rows<'_>,
    scales: C,
    order: Order,
    to: &mut [f32],
) {
    // SAFETY: chunks have whole blocks: 32 bytes, 64 values, one scale.
    unsafe {
        let levels = S::table(w.map);
        let prepared = scales.prepare::<S>(levels);
        let blocks = w.packed.chunks_exact(BLOCK_BYTES).zip(0..scales.len());
        for ((packed, block), to) in blocks.zip(to.chunks_exact_mut(PANEL)) {
            let table = scales.scaled::<S>(levels, prepared, block);
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
/// Keeps `ROWS × VECTORS` vectors of sums in registers; results and `panel` are contiguous along the columns.
///
/// # Safety
///
/// The CPU has the instruction set; `y` is valid for the rows of `dy` and [`PANEL`] columns.
#[inline(always)]
pub(super) unsafe fn outer<S: Simd, const ROWS: usize, const VECTORS: usize>(
    dy: Rows<'_>,
    panel: Rows<'_>,
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
                    Rows {
                        values: panel.values.get_unchecked(column..),
                        ..panel
                    },
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
    panel: Rows<'_>,
    y: Output,
    first: bool,
) {
    // SAFETY: `panel` starts at a column; `dy` has `M` rows of a value for each row of `panel`.
    unsafe {
        let mut acc = [[S::zero(); VECTORS]; M];
        if !first {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(y.at(i, v * S::LANES).start);
                }
            }
        }
        for r in 0..panel.num_rows {
            let mut w = [S::zero(); VECTORS];
            for (v, w) in w.iter_mut().enumerate() {
                *w = S::load(panel.values.as_ptr().add(r * panel.stride + v * S::LANES));
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
    ($(#[$attr:meta])* $table:ident, $module:ident, $simd:ident, $feature:literal, $rows:literal, $vectors:literal) => {
        $(#[$attr])*
        pub(super) static $table: Kernels = Kernels {
            instruction_set: super::InstructionSet::$simd,
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
            use $crate::kernels::cpu::simd::{Element, Nf4Rows, Order, Output, Rows, dot, micro};

            #[target_feature(enable = $feature)]
            pub(super) unsafe fn dot<E: Element>(x: &[f32], w: &[E], k: usize, y: Output) {
                // SAFETY: forwarded.
                unsafe { dot::dot::<super::$simd, E>(x, w, k, y) }
            }

            #[target_feature(enable = $feature)]
            pub(super) unsafe fn dot_nf4(x: &[f32], w: Nf4Rows<'_>, k: usize, y: Output) {
                // SAFETY: forwarded.
                unsafe { dot::dot_nf4::<super::$simd>(x, w, k, y) }
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
            pub(super) unsafe fn outer(dy: Rows<'_>, panel: Rows<'_>, y: Output, first: bool) {
                // SAFETY: forwarded.
                unsafe { micro::outer::<super::$simd, $rows, $vectors>(dy, panel, y, first) }
            }
        }
    };
}
pub(super) use kernel_table;
