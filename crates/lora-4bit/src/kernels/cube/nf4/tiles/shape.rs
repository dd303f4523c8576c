//! What a kernel is compiled for.

use crate::nf4::BLOCK_SIZE;

/// Units of a plane.
pub(super) const PLANE: usize = 32;
/// Rows of the weight of an instruction.
const TILE: usize = 16;
/// Values of `x` in a load from shared memory.
const CHUNK: usize = 8;
/// Such loads of a block of codes.
pub(super) const CHUNKS: usize = BLOCK_SIZE / CHUNK;

/// Blocks whose scales four units compute together.
pub(super) const ROUND_SCALES: usize = 4;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// Rows of `x` in shared memory.
    pub(super) x_rows: usize,
    /// Groups of planes with rows of their own.
    pub(super) groups: usize,
    /// Planes of a group.
    pub(super) planes: usize,
    /// Tiles of a group: each value of `x` serves all of them.
    pub(super) tiles: usize,
    /// Blocks of a row that a plane loads at once.
    pub(super) unroll: usize,
    /// Blocks of the rows of `x` in shared memory.
    pub(super) stage_steps: usize,
    /// Whether these are all.
    pub(super) is_resident: bool,
    /// Whether there is one round.
    pub(super) is_single: bool,
    /// Whether the last round goes past the end of a row.
    pub(super) is_ragged: bool,
    /// Copies of the table of pairs: units that read the same one may wait for each other.
    pub(super) copies: usize,
    pub(super) has_bias: [bool; 3],
    pub(super) has_residual: bool,
    /// Whether `x` is normalised first.
    pub(super) has_norm: bool,
    /// Whether scales are double-quantized.
    pub(super) is_double: bool,
    /// Whether the weights are a gate and what it multiplies.
    pub(super) is_pair: bool,
    /// Weights with results of their own.
    pub(super) num_weights: usize,
}

impl Kind {
    pub(super) const fn units(&self) -> usize {
        self.groups * self.planes * PLANE
    }

    /// Blocks of eight rows of `x`.
    pub(super) const fn x_tiles(&self) -> usize {
        self.x_rows.div_ceil(8)
    }

    /// Rows of a tile.
    pub(super) const fn tile_rows(&self) -> usize {
        if self.is_pair { TILE / 2 } else { TILE }
    }

    /// Rows of a group.
    pub(super) const fn group_rows(&self) -> usize {
        self.tiles * self.tile_rows()
    }

    /// Rows of a cube.
    pub(super) const fn cube_rows(&self) -> usize {
        self.groups * self.group_rows()
    }

    /// Sums of a unit.
    pub(super) const fn sums(&self) -> usize {
        self.tiles * self.x_tiles() * 4
    }

    /// Results of the sums of the units at one place of all planes of a group.
    pub(super) const fn results(&self) -> usize {
        self.sums() / if self.is_pair { 2 } else { 1 }
    }

    /// Scales of a row that a unit computes in a round.
    pub(super) const fn scales(&self) -> usize {
        self.unroll.div_ceil(ROUND_SCALES)
    }

    /// Sums of squares that planes exchange.
    pub(super) const fn num_squares(&self) -> usize {
        self.x_rows * self.groups * self.planes
    }

    /// Loads from one row of `x` in shared memory to the next; odd, so that eight rows lie in different banks.
    pub(super) const fn stage_stride(&self) -> usize {
        self.stage_steps * CHUNKS + 1
    }
}
