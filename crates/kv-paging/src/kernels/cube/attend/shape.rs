//! What the kernels of attention one token at a time are compiled for.

use super::super::splits::Merged;

/// Units that share the dot product of a query with a key.
pub(in super::super) const LANES: u32 = 8;
/// Units of a cube.
pub(super) const UNITS: usize = 128;
/// A unit for each element, at most.
pub(in super::super) const MAX_HEAD_DIM: usize = UNITS;
/// Keys between two updates of the running maximum.
pub(super) const CHUNK: usize = 64;
/// Loads of keys of a unit that are in flight together.
pub(super) const UNROLL: usize = CHUNK * LANES as usize / UNITS;
/// Keys that a part has at least.
pub(super) const MIN_PART: usize = 32;
/// Shared memory for adding up the output of all units; what else a cube needs stays below 16 KiB.
pub(super) const MAX_PARTS_BYTES: usize = 24 << 10;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Heads {
    pub(super) kv_heads: usize,
    /// Query heads per key/value head.
    pub(super) group: usize,
    /// Vectors of a head.
    pub(super) vectors: usize,
    /// Bytes of a vector of f32.
    pub(super) vector_bytes: usize,
    pub(super) block_size: usize,
    pub(super) merge: Merge,
    /// Whether queries and keys are to be rotated, and keys and values to be written.
    pub(super) is_step: bool,
}

/// How the parts of a context become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Merge {
    /// The context has one part.
    None,
    /// The cube that ends last merges the parts.
    InPlace,
    /// Another kernel merges the parts.
    Later,
}

impl Heads {
    pub(super) fn merged(&self) -> Merged {
        Merged {
            kv_heads: self.kv_heads,
            group: self.group,
            vectors: self.vectors,
        }
    }

    /// Heads whose sums of all units fit into shared memory.
    pub(super) fn heads_at_once(&self) -> usize {
        (MAX_PARTS_BYTES / (UNITS * self.vector_bytes)).clamp(1, self.group)
    }
}
