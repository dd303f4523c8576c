//! What the kernel is compiled for.

use super::super::blocks::{Blocks, KEYS};

/// Each takes 16 keys of a block.
pub(super) const PLANES: usize = KEYS / 16;
pub(super) const PLANE: usize = 32;
pub(super) const UNITS: usize = PLANES * PLANE;
/// Blocks in shared memory.
pub(super) const STAGES: usize = 2;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Heads {
    /// Query heads per key/value head.
    pub(super) group: usize,
    pub(super) blocks: Blocks,
    pub(super) is_split: bool,
}
