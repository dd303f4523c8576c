//! Products of bf16 operands with f32 sums, for CPUs that multiply pairs of bf16 in one instruction.
//!
//! One operand, `a [m, inner]`, is rounded and laid out as the instruction reads it ([`Packing`]). The other is rearranged into panels of 64 columns whose element is a
//! pair: the values `2 p` and `2 p + 1` along the inner dimension, side by side. Both [`PairKernels::transpose`] (for
//! `x · wᵀ`) and [`PairKernels::interleave`] (for `dy · w`) make such panels, a few rows of the weight at a time.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "no loops for other CPUs yet")
)]

use half::bf16;

use super::{InstructionSet, Output, PANEL};

/// Rows of a weight that [`PairKernels::transpose`] takes at once: a quarter of a panel.
pub(in super::super) const PANEL_QUARTER: usize = PANEL / 4;

/// Values along the inner dimension that go together; operands are padded with zeros to a multiple of it.
pub(in super::super) const INNER_STEP: usize = 32;

/// Rows of a bf16 matrix: row `i` starts at `start + i * stride`.
#[derive(Clone, Copy)]
pub(in super::super) struct PairRows {
    pub(in super::super) start: *const bf16,
    pub(in super::super) stride: usize,
    pub(in super::super) num_rows: usize,
}

// SAFETY: a view of memory that nobody writes to while it is used.
unsafe impl Send for PairRows {}
// SAFETY: as above.
unsafe impl Sync for PairRows {}

/// How the rows of `a` lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Packing {
    /// One after the other.
    Rows,
    /// In tiles of [`TILE`] rows and [`INNER_STEP`] columns, each a piece of memory of its own; those of the same rows
    /// follow each other.
    Tiles,
}

/// Rows of a tile.
pub(in super::super) const TILE: usize = 16;

/// `a`: rows are padded with zeros to a multiple of `2 * TILE` where they lie in tiles.
#[derive(Clone, Copy)]
pub(in super::super) struct PackedRows {
    pub(in super::super) start: *const bf16,
    /// From a row to the next one of the same tile.
    pub(in super::super) stride: usize,
    /// From [`INNER_STEP`] columns to the next.
    pub(in super::super) step: usize,
    /// From [`TILE`] rows to the next.
    pub(in super::super) strip: usize,
    pub(in super::super) num_rows: usize,
}

// SAFETY: a view of memory that nobody writes to while it is used.
unsafe impl Send for PackedRows {}
// SAFETY: as above.
unsafe impl Sync for PackedRows {}

impl PackedRows {
    /// `num_rows` rows of `inner` columns, a multiple of [`INNER_STEP`].
    pub(in super::super) fn new(
        packing: Packing,
        start: *const bf16,
        inner: usize,
        num_rows: usize,
    ) -> Self {
        let (stride, step) = match packing {
            Packing::Rows => (inner, INNER_STEP),
            Packing::Tiles => (INNER_STEP, TILE * INNER_STEP),
        };
        Self {
            start,
            stride,
            step,
            strip: TILE * inner,
            num_rows,
        }
    }

    /// `num_rows` rows from a row, a multiple of [`TILE`], and a column, one of [`INNER_STEP`], on.
    ///
    /// # Safety
    ///
    /// They exist.
    #[inline(always)]
    pub(in super::super) unsafe fn part(self, row: usize, column: usize, num_rows: usize) -> Self {
        debug_assert!(row.is_multiple_of(TILE) && column.is_multiple_of(INNER_STEP));
        let start = row / TILE * self.strip + column / INNER_STEP * self.step;
        Self {
            // SAFETY: inside the matrix.
            start: unsafe { self.start.add(start) },
            num_rows,
            ..self
        }
    }
}

/// Memory that the next panel is made of. Nothing is read, so that the address needn't be valid.
#[derive(Clone, Copy)]
pub(in super::super) struct Prefetch {
    pub(in super::super) start: *const u8,
    pub(in super::super) num_bytes: usize,
}

impl Prefetch {
    pub(in super::super) fn new<T>(values: &[T]) -> Self {
        Self {
            start: values.as_ptr().cast(),
            num_bytes: size_of_val(values),
        }
    }

    pub(in super::super) const NOTHING: Self = Self {
        start: std::ptr::null(),
        num_bytes: 0,
    };
}

/// The loops for one instruction set.
pub(in super::super) struct PairKernels {
    pub(in super::super) instruction_set: InstructionSet,
    /// How [`PairKernels::multiply`] wants `a`.
    pub(in super::super) packing: Packing,
    /// Rounds to the nearest bf16, ties to even; every [`INNER_STEP`] values go `step` further.
    pub(in super::super) narrow: unsafe fn(from: &[f32], to: *mut bf16, step: usize),
    /// Writes up to [`PANEL_QUARTER`] rows of `w` as columns of a panel, from column `column` on.
    ///
    /// `panel [columns of w padded / 2, PANEL]`; missing rows become zeros.
    pub(in super::super) transpose:
        unsafe fn(w: PairRows, columns: usize, panel: &mut [u32], column: usize),
    /// Writes rows `2 p` and `2 p + 1` of `w`, [`PANEL`] columns each, as row `p` of a panel.
    pub(in super::super) interleave: unsafe fn(w: PairRows, panel: &mut [u32]),
    /// `y += a · panel`: `a [m, inner]`, `panel [inner / 2, PANEL]`, `y [m, PANEL]`. The flag: `y` starts at 0.
    ///
    /// Where `a` is in tiles, `y` has as many rows as `a` with its padding. Meanwhile the memory at `next` is fetched into
    /// the second-level cache.
    pub(in super::super) multiply:
        unsafe fn(a: PackedRows, panel: &[u32], y: Output, first: bool, next: Prefetch),
}
