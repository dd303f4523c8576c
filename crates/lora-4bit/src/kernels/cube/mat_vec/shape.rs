//! What a kernel is compiled for.

/// Rows of `x` that a plane takes at once.
pub(in super::super) const MAX_ROWS: usize = 8;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows of `x` at once.
    pub(super) m: usize,
    /// Rows of the weight at once.
    pub(super) rows: usize,
    /// Loads of each row at once.
    pub(super) unroll: usize,
    /// Planes that share a row.
    pub(super) planes: usize,
    /// Whether each of up to three weights has a bias.
    pub(super) has_bias: [bool; 3],
    pub(super) has_residual: bool,
    /// Whether `x` is normalised first.
    pub(super) has_norm: bool,
    /// Whether a row is the rows of two weights.
    pub(super) is_pair: bool,
    /// Whether the last loads of a row may lie past its end.
    pub(super) is_ragged: bool,
}

impl Shape {
    /// Products of a plane.
    pub(super) fn num_sums(&self) -> usize {
        self.m * self.rows * if self.is_pair { 2 } else { 1 }
    }

    /// Sums that the planes of a row add up: the products, and with a norm the squares of `x`.
    pub(super) fn num_totals(&self) -> usize {
        self.num_sums() + if self.has_norm { self.m } else { 0 }
    }
}
