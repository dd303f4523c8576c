//! What a kernel is compiled for.

use crate::kernels::operand::Major;
use crate::kernels::tile::{INNER, VECTOR};

/// Rows of a panel: a tile is made of panels of 64 rows of 128 bytes.
pub(super) const PANEL: usize = 64;

/// The instruction that multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Instruction {
    /// A warp multiplies 16 × 8 × 16, from registers.
    Mma,
    /// Four warps multiply 64 rows with all columns of a tile, from shared memory.
    Wgmma,
    /// [`Instruction::Wgmma`], and a warpgroup that copies tiles for the others.
    WgmmaTma,
}

/// Whether the second operand is a gate and what it multiplies: `silu(a · gate) · (a · up)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum Gate {
    None,
    /// The second tensor of `b` is multiplied by the gate, its first one.
    Second,
    /// In each tensor of `b`, what is multiplied lies below the gate.
    Stacked,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) instruction: Instruction,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Warps along the rows and along the columns.
    pub(super) planes: [usize; 2],
    /// Steps that are in shared memory together.
    pub(super) stages: usize,
    pub(super) majors: [Major; 2],
    pub(super) has_second: bool,
    pub(super) gate: Gate,
    pub(super) has_bias: bool,
    pub(super) has_residual: bool,
}

impl Kind {
    pub(super) const fn units(&self) -> usize {
        self.planes[0] * self.planes[1] * 32
    }

    /// Columns of the result in a tile.
    pub(super) const fn result_columns(&self) -> usize {
        match self.gate {
            Gate::None => self.columns,
            Gate::Second | Gate::Stacked => self.columns / 2,
        }
    }

    pub(super) const fn is_gated(&self) -> bool {
        self.result_columns() < self.columns
    }

    /// Vectors of a step in shared memory.
    pub(super) const fn stage_len(&self) -> usize {
        (self.rows + self.columns) * INNER / VECTOR
    }

    /// Steps that are on their way while one is multiplied. `wgmma` reads shared memory after it was issued: the step before must
    /// stay, too.
    pub(super) const fn ahead(&self) -> usize {
        match self.instruction {
            Instruction::Mma => self.stages - 1,
            Instruction::Wgmma | Instruction::WgmmaTma => self.stages - 2,
        }
    }
}
