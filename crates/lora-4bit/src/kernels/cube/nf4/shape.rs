//! What a kernel is compiled for.

use super::super::planes::{self, UNITS};
use crate::kernels::plan::CODES;
use crate::nf4::BLOCK_SIZE;

/// Loads of the values that share a scale.
pub(super) const LOADS_PER_BLOCK: usize = BLOCK_SIZE / CODES;

/// Levels of a code: one for each unit of a plane, so that all units read from banks of their own.
pub(super) const LANES: usize = 32;
pub(super) const LANES_BITS: u32 = LANES.trailing_zeros();

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// Rows of `x`.
    pub(super) m: usize,
    /// Rows of the weight at once: each value of `x` serves all of them.
    pub(super) rows: usize,
    /// Loads of a row at once.
    pub(super) unroll: usize,
    /// Planes that share a row.
    pub(super) planes: usize,
    /// Units of a plane.
    pub(super) lanes: usize,
    /// Whether the last loads of a row lie past its end.
    pub(super) is_ragged: bool,
    pub(super) has_bias: [bool; 3],
    pub(super) has_residual: bool,
    /// Whether `x` is normalised first.
    pub(super) has_norm: bool,
    /// Whether scales are double-quantized.
    pub(super) is_double: bool,
    /// Whether a row is the rows of two weights.
    pub(super) is_pair: bool,
    /// Weights with results of their own.
    pub(super) num_weights: usize,
}

impl Kind {
    /// Sums of a plane.
    pub(super) fn num_sums(&self) -> usize {
        self.m * self.rows * if self.is_pair { 2 } else { 1 }
    }

    /// Loads of a row that a plane multiplies in a round.
    pub(super) fn segment(&self) -> usize {
        self.unroll * self.lanes
    }

    /// Vectors of a row of `x` in a round.
    pub(super) fn round_vectors(&self) -> usize {
        self.segment() * self.planes * CODES / 4
    }

    /// Vectors of `x` in shared memory.
    pub(super) fn stage_len(&self) -> usize {
        self.round_vectors() * self.m
    }

    /// Sums that planes exchange.
    pub(super) fn num_shared_sums(&self) -> usize {
        planes::num_shared_sums(self.num_sums().max(self.m))
    }

    /// Rows of the weight that a cube computes at once.
    pub(super) fn rows_per_cube(&self) -> usize {
        UNITS as usize / self.lanes / self.planes * self.rows
    }
}
