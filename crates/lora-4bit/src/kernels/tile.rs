//! The part of a result that a cube of the tensor-core kernel computes. Sizes only: the plan reads them without a GPU.

#![cfg_attr(
    not(feature = "gpu"),
    allow(dead_code, reason = "the plan needs the memory of a tile only")
)]

/// Units of a plane.
pub(super) const PLANE: usize = 32;
/// Values of 16 bits in a load.
pub(super) const VECTOR: usize = 8;
/// Inner values of a step: a row of a tile then fills all banks of shared memory once.
pub(crate) const INNER: usize = 64;
/// Parts of the inner dimension of a product, at most: more cost more to add up than they save.
pub(crate) const MAX_SPLITS: usize = 16;
/// Steps of a product of `gemm` that are worth a cube of their own.
pub(crate) const MIN_GEMM_STEPS: usize = 8;
/// Vectors of a row of a tile.
pub(super) const CHUNKS: usize = INNER / VECTOR;

/// The part of the result that a cube computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Planes along the rows and along the columns.
    pub(super) planes: [usize; 2],
    /// Steps that are in shared memory together.
    pub(super) stages: usize,
}

impl Tile {
    pub(super) const fn units(&self) -> usize {
        self.planes[0] * self.planes[1] * PLANE
    }

    /// Blocks of 16 rows of a plane.
    pub(super) const fn row_blocks(&self) -> usize {
        self.rows / self.planes[0] / 16
    }

    /// Blocks of 8 columns of a plane.
    pub(super) const fn column_blocks(&self) -> usize {
        self.columns / self.planes[1] / 8
    }

    /// Sums of a unit, in pairs.
    pub(super) const fn pairs(&self) -> usize {
        self.row_blocks() * self.column_blocks() * 2
    }

    /// Vectors of a step in shared memory.
    pub(super) const fn stage_len(&self) -> usize {
        (self.rows + self.columns) * CHUNKS
    }

    /// Bytes of shared memory: the steps, a slot for each row, and two flags.
    pub(super) const fn num_bytes(&self) -> usize {
        self.stage_len() * VECTOR * 2 * self.stages + self.rows * 4 + 8
    }

    /// For a product with `rows` rows of `x`.
    pub(super) fn of(rows: usize) -> Self {
        let (rows, columns, planes, stages) = match rows {
            0..=16 => (16, 64, [1, 4], 5),
            17..=32 => (32, 64, [1, 4], 5),
            33..=64 => (64, 64, [2, 2], 4),
            65..=320 => (64, 128, [1, 4], 4),
            _ => (128, 128, [2, 2], 3),
        };
        Self {
            rows,
            columns,
            planes,
            stages,
        }
    }
}
