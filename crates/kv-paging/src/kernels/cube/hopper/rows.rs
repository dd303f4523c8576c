//! Rows of a document's query heads, for the gradients: a row for each query and each head that shares its keys.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use super::wgmma::{ROW_BYTES, WARPGROUP};
use crate::kernels::training::{HeadShape, WIDE_ROWS};

/// Values in a load.
pub(super) const VECTOR: usize = 8;
/// Rows, or keys, of a step.
pub(super) const STEP_ROWS: usize = 64;
/// Rows, or keys, of a cube.
pub(super) const CUBE_ROWS: usize = WIDE_ROWS;
/// Units of a cube: two warpgroups multiply, one copies.
pub(super) const UNITS: usize = 3 * WARPGROUP;
/// Registers of a unit that copies, and of one that multiplies, out of 65,536 for all.
pub(super) const COPYING_REGISTERS: u32 = 24;
pub(super) const MULTIPLYING_REGISTERS: u32 = 240;
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;

impl HeadShape {
    /// Bytes of the rows of a step.
    pub(super) const fn step_bytes(&self) -> u32 {
        (STEP_ROWS * self.head_dim * 2) as u32
    }

    /// Vectors of the rows of a step.
    pub(super) const fn step_len(&self) -> usize {
        STEP_ROWS * self.head_dim / VECTOR
    }
}

/// What the backward reads.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Saved<E: Float> {
    /// `[tokens, heads + 2 * kv_heads, head_dim]` in vectors.
    pub(super) qkv: Box<[Vector<E, Const<8>>]>,
    /// `[tokens, heads, head_dim]` in vectors.
    pub(super) d_out: Box<[Vector<E, Const<8>>]>,
    /// `[tokens, heads]`.
    pub(super) lse: Box<[f32]>,
}

/// A document, and a head of its keys and values.
#[derive(CubeType)]
pub(super) struct Document {
    /// Row of the document's first token.
    pub(super) first: usize,
    /// Tokens of the document.
    pub(super) len: usize,
    pub(super) kv_head: usize,
}

#[cube]
impl Document {
    /// Rows of query heads.
    pub(super) fn num_rows(&self, #[comptime] shape: HeadShape) -> usize {
        self.len * comptime!(shape.group())
    }

    /// Token and head of a row, as the place in `[tokens, heads]`; past the last row, that one again.
    pub(super) fn place_of(&self, row: usize, #[comptime] shape: HeadShape) -> usize {
        let row = min(row, self.num_rows(shape) - 1);
        let (query, head) = (
            row / comptime!(shape.group()),
            row % comptime!(shape.group()),
        );
        (self.first + query) * comptime!(shape.heads)
            + self.kv_head * comptime!(shape.group())
            + head
    }

    /// Where the query of a row starts, in vectors.
    pub(super) fn query_at(&self, row: usize, #[comptime] shape: HeadShape) -> usize {
        let row = min(row, self.num_rows(shape) - 1);
        let (query, head) = (
            row / comptime!(shape.group()),
            row % comptime!(shape.group()),
        );
        let all = comptime!(shape.heads + 2 * shape.kv_heads);
        ((self.first + query) * all + self.kv_head * comptime!(shape.group()) + head)
            * comptime!(shape.head_dim / VECTOR)
    }

    /// Where the key of a position starts, in vectors; past the last, that one again. Its value is `kv_heads` heads further.
    pub(super) fn key_at(&self, position: usize, #[comptime] shape: HeadShape) -> usize {
        let token = self.first + min(position, self.len - 1);
        let all = comptime!(shape.heads + 2 * shape.kv_heads);
        (token * all + comptime!(shape.heads) + self.kv_head) * comptime!(shape.head_dim / VECTOR)
    }
}

/// Where a vector of a row lies among the rows of a step.
#[cube]
fn place(row: usize, chunk: usize) -> usize {
    (chunk / 8 * STEP_ROWS + row) * comptime!(ROW_BYTES / 16) + ((chunk % 8) ^ (row % 8))
}

/// Starts to copy the queries of a step's rows to `to`, and the gradients of their outputs behind them; a warpgroup does.
#[cube]
pub(super) fn load_queries<E: Float>(
    saved: &Saved<E>,
    memory: &mut [Vector<E, Const<8>>],
    document: &Document,
    start: usize,
    to: usize,
    distance: usize,
    #[comptime] shape: HeadShape,
) {
    let chunks = comptime!(shape.head_dim / VECTOR);
    let unit = UNIT_POS as usize % WARPGROUP;
    let (first, chunk) = (unit / chunks, unit % chunks);
    #[unroll]
    for i in 0..comptime!(STEP_ROWS * shape.head_dim / VECTOR / WARPGROUP) {
        let row = first + i * comptime!(WARPGROUP * VECTOR / shape.head_dim);
        let to = to + place(row, chunk);
        let query = document.query_at(start + row, shape) + chunk;
        let gradient = document.place_of(start + row, shape) * chunks + chunk;
        copy(&saved.qkv, memory, query, to);
        copy(&saved.d_out, memory, gradient, to + distance);
    }
}

/// Starts to copy keys to `to`, and their values behind them; a warpgroup does.
#[cube]
pub(super) fn load_keys<E: Float>(
    saved: &Saved<E>,
    memory: &mut [Vector<E, Const<8>>],
    document: &Document,
    start: usize,
    to: usize,
    distance: usize,
    #[comptime] shape: HeadShape,
) {
    let chunks = comptime!(shape.head_dim / VECTOR);
    let unit = UNIT_POS as usize % WARPGROUP;
    let (first, chunk) = (unit / chunks, unit % chunks);
    #[unroll]
    for i in 0..comptime!(STEP_ROWS * shape.head_dim / VECTOR / WARPGROUP) {
        let key = first + i * comptime!(WARPGROUP * VECTOR / shape.head_dim);
        let to = to + place(key, chunk);
        let from = document.key_at(start + key, shape) + chunk;
        copy(&saved.qkv, memory, from, to);
        let value = from + comptime!(shape.kv_heads * shape.head_dim / VECTOR);
        copy(&saved.qkv, memory, value, to + distance);
    }
}

#[cube]
fn copy<E: Float>(
    from: &[Vector<E, Const<8>>],
    memory: &mut [Vector<E, Const<8>>],
    source: usize,
    to: usize,
) {
    copy_async(
        &from[source..source + 1],
        &mut memory[to..to + 1],
        comptime!(VECTOR as u32),
    );
}
