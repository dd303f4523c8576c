//! Tiles of queries and of keys: what the kernel is compiled for, where rows lie, and shared memory.

use cubecl::prelude::*;

use super::super::rows::VECTOR;
use super::super::wgmma::{Panels, Product, ROWS};
use crate::kernels::training::heads::HeadShape;

/// Rows of a cube: for each query and each head that shares its keys.
pub(in super::super) const CUBE_ROWS: usize = 2 * ROWS;
/// Keys of a tile.
pub(super) const KEYS: usize = 128;
/// Tiles of keys in shared memory; as many of values.
pub(super) const STAGES: usize = 2;

/// Bytes of shared memory of a cube.
pub(in super::super) const fn memory_bytes(head_dim: usize) -> usize {
    (CUBE_ROWS + 2 * STAGES * KEYS) * head_dim * 2 + 8 * 4 * STAGES
}

/// Numbers of a tile in the list of tiles.
pub(in super::super) const TILE_LEN: usize = 4;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct Heads {
    pub(in super::super) shape: HeadShape,
    /// Tokens of a block of the cache; 0 where the keys of a document follow each other.
    pub(in super::super) block_size: usize,
    /// Whether the log-sum-exp of the scores is written.
    pub(in super::super) has_lse: bool,
}

impl Heads {
    /// Vectors of a head.
    pub(super) const fn chunks(&self) -> usize {
        self.shape.head_dim / VECTOR
    }

    /// Bytes of a tile of keys or values, and of the queries of a warpgroup.
    pub(super) const fn tile_bytes(&self) -> u32 {
        (KEYS * self.shape.head_dim * 2) as u32
    }

    pub(super) const fn query_bytes(&self) -> u32 {
        (ROWS * self.shape.head_dim * 2) as u32
    }

    pub(super) const fn scores(&self) -> Product {
        Product {
            sums: "score",
            columns: KEYS,
            inner: self.shape.head_dim,
            is_first: true,
            right: Panels {
                rows: KEYS,
                is_outer: false,
            },
        }
    }

    pub(super) const fn output(&self) -> Product {
        Product {
            sums: "output",
            columns: self.shape.head_dim,
            inner: KEYS,
            is_first: false,
            right: Panels {
                rows: KEYS,
                is_outer: true,
            },
        }
    }
}

/// Where rows of heads lie, in vectors.
#[derive(CubeType, CubeLaunch)]
pub(in super::super) struct Layout {
    /// From one row of queries to the next.
    pub(in super::super) query_row: usize,
    /// From one row of keys, or of values, to the next.
    pub(in super::super) key_row: usize,
    /// Where keys and values start in their rows.
    pub(in super::super) keys_at: usize,
    pub(in super::super) values_at: usize,
}

/// A tile of queries, see [`TILE_LEN`].
#[derive(CubeType)]
pub(super) struct Tile {
    /// Row of its first query.
    pub(super) row: usize,
    pub(super) num_queries: usize,
    /// Keys that the first query sees.
    pub(super) context: usize,
    /// Where its block table starts, or the row of its document's first key.
    pub(super) table: usize,
}

#[cube]
impl Tile {
    pub(super) fn of(tiles: &[u32], index: usize) -> Tile {
        let at = index * comptime!(TILE_LEN);
        Tile {
            row: tiles[at] as usize,
            num_queries: tiles[at + 1] as usize,
            context: tiles[at + 2] as usize,
            table: tiles[at + 3] as usize,
        }
    }

    /// Keys that the last query sees.
    pub(super) fn num_keys(&self) -> usize {
        self.context + self.num_queries - 1
    }
}

/// Shared memory and its barriers: of stage `i` the keys, then the values. Each is full, and may be overwritten.
#[derive(CubeType)]
pub(super) struct Memory {
    pub(super) queries: u32,
    pub(super) keys: u32,
    pub(super) values: u32,
    /// Four barriers of a stage: keys are there, keys are free, values are there, values are free.
    pub(super) barriers: u32,
}

pub(super) const KEYS_FULL: u32 = 0;
pub(super) const KEYS_FREE: u32 = 8;
pub(super) const VALUES_FULL: u32 = 16;
pub(super) const VALUES_FREE: u32 = 24;
pub(super) const STAGE_BARRIERS: u32 = 32;
