//! Products of bf16 factors with f32 sums, for CPUs that multiply pairs of bf16 in one instruction.
//!
//! One operand, `a [m, inner]`, is read row by row. The other is rearranged into panels of 64 columns whose element is a
//! pair: the values `2 p` and `2 p + 1` along the inner dimension, side by side. Both [`PairKernels::transpose`] (for
//! `x · wᵀ`) and [`PairKernels::interleave`] (for `dy · w`) make such panels, a few rows of the weight at a time.

use std::sync::OnceLock;

use half::bf16;

use super::{Kernels, Output, PANEL};

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

/// Which part of a value, as the sum of two bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Part {
    /// The nearest bf16.
    Nearest,
    /// The nearest bf16 of what that leaves.
    Rest,
}

impl PairRows {
    /// `num_rows` rows from a row and a column on.
    ///
    /// # Safety
    ///
    /// They exist.
    #[inline(always)]
    pub(in super::super) unsafe fn part(self, row: usize, column: usize, num_rows: usize) -> Self {
        Self {
            // SAFETY: inside the matrix.
            start: unsafe { self.start.add(row * self.stride + column) },
            stride: self.stride,
            num_rows,
        }
    }
}

/// The loops for one instruction set.
pub(in super::super) struct PairKernels {
    /// Name of the instruction set.
    pub(in super::super) name: &'static str,
    /// Whether products with two parts of each factor are faster than those in f32.
    pub(in super::super) pays_for_parts: bool,
    /// Rounds to the nearest bf16, ties to even.
    pub(in super::super) narrow: unsafe fn(from: &[f32], to: &mut [bf16]),
    /// Writes up to [`PANEL_QUARTER`] rows of `w` as columns of a panel, from column `column` on.
    ///
    /// `panel [columns of w padded / 2, PANEL]`; missing rows become zeros.
    pub(in super::super) transpose:
        unsafe fn(w: PairRows, columns: usize, panel: &mut [u32], column: usize),
    /// Writes rows `2 p` and `2 p + 1` of `w`, [`PANEL`] columns each, as row `p` of a panel.
    pub(in super::super) interleave: unsafe fn(w: PairRows, panel: &mut [u32]),
    /// `y += a · panel`: `a [m, inner]`, `panel [inner / 2, PANEL]`, `y [m, PANEL]`. The flag: `y` starts at 0.
    pub(in super::super) multiply: unsafe fn(a: PairRows, panel: &[u32], y: Output, first: bool),
}

impl PairKernels {
    /// One part of each value.
    ///
    /// # Safety
    ///
    /// The kernels fit the CPU; both slices have the same length.
    pub(in super::super) unsafe fn part(&self, part: Part, from: &mut [f32], to: &mut [bf16]) {
        // SAFETY: forwarded.
        unsafe {
            (self.narrow)(from, to);
            if part == Part::Rest {
                for (from, to) in from.iter_mut().zip(&*to) {
                    *from -= to.to_f32();
                }
                (self.narrow)(from, to);
            }
        }
    }

    /// The best loops for this CPU; none if it has no such instruction.
    pub(in super::super) fn get() -> Option<&'static Self> {
        static KERNELS: OnceLock<Option<&'static PairKernels>> = OnceLock::new();
        *KERNELS.get_or_init(|| {
            let mut supported = Self::supported().into_iter();
            // Whoever asks for a lesser instruction set gets nothing that goes beyond it.
            let kernels = match std::env::var(Kernels::VARIABLE) {
                Ok(wanted) => supported.find(|kernels| kernels.name == wanted),
                Err(_) => supported.next(),
            };
            if let Some(kernels) = kernels {
                tracing::debug!(
                    instruction_set = kernels.name,
                    "CPU kernels for bf16 factors"
                );
            }
            kernels
        })
    }

    /// All loops that this CPU can run, best first.
    pub(in super::super) fn supported() -> Vec<&'static Self> {
        #[cfg(target_arch = "x86_64")]
        return super::pairs_x86::supported();
        #[cfg(not(target_arch = "x86_64"))]
        return Vec::new();
    }
}
