//! What a kernel is compiled for, and where its counters are.

use crate::kernels::tile::Tile;

/// Tiles that can be cut along the inner dimension: others are enough.
pub(super) const MAX_SPLIT_TILES: usize = 1024;
/// Tiles of adapters, and of rows of `x` with adapters, at most.
pub(super) const MAX_SHRINK_TILES: usize = 1024;
pub(super) const MAX_ROW_TILES: usize = 1024;

/// Where counters start: of the parts of tiles that have been computed, the same for tiles of adapters, of the tiles of
/// adapters that are ready, and of those who have read them.
pub(super) const ARRIVED: usize = 0;
pub(super) const SHRINK_ARRIVED: usize = MAX_SPLIT_TILES;
pub(super) const READY: usize = SHRINK_ARRIVED + MAX_SHRINK_TILES;
pub(super) const READ: usize = READY + MAX_ROW_TILES;
pub(super) const NUM_COUNTERS: usize = READ + MAX_ROW_TILES;

/// What a cube multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Weights {
    One,
    /// Results of their own, of two or three weights.
    Three,
    /// A gate and what it multiplies: `silu(x · w0ᵀ) · (x · w1ᵀ)`. Columns of a plane are half gates.
    Gated,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) tile: Tile,
    pub(super) weights: Weights,
    pub(super) has_bias: [bool; 3],
    pub(super) has_residual: bool,
    pub(super) is_split: bool,
    pub(super) has_adapters: bool,
    /// Whether the adapters' steps follow the weight's without a gap.
    pub(super) is_seamless: bool,
}
