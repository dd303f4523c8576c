//! Rows of a document's query heads, for the gradients: a row for each query and each head that shares its keys.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use super::super::blocks::wait_for_groups;
use super::wgmma::{self, ROW_BYTES, WARPGROUP};
use crate::kernels::training::heads::HeadShape;
use crate::kernels::training::parts::WIDE_ROWS;

/// Values in a load.
pub(super) const VECTOR: usize = 8;
/// Rows, or keys, of a step.
pub(super) const STEP_ROWS: usize = 64;
/// Rows, or keys, of a cube.
pub(super) const CUBE_ROWS: usize = WIDE_ROWS;
/// Units of a cube: two warpgroups multiply, one copies.
pub(super) const UNITS: u32 = 3 * WARPGROUP as u32;
/// Registers of a unit that copies, and of one that multiplies, out of 65,536 for all.
pub(super) const COPYING_REGISTERS: u32 = 24;
pub(super) const MULTIPLYING_REGISTERS: u32 = 240;

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
        let (token, head) = self.token_and_head(row, shape);
        token * comptime!(shape.heads) + head
    }

    /// Where the query of a row starts, in vectors.
    pub(super) fn query_at(&self, row: usize, #[comptime] shape: HeadShape) -> usize {
        let (token, head) = self.token_and_head(row, shape);
        (token * comptime!(shape.heads + 2 * shape.kv_heads) + head)
            * comptime!(shape.head_dim / VECTOR)
    }

    fn token_and_head(&self, row: usize, #[comptime] shape: HeadShape) -> (usize, usize) {
        let group = comptime!(shape.group());
        let row = min(row, self.num_rows(shape) - 1);
        (self.first + row / group, self.kv_head * group + row % group)
    }

    /// Where the key of a position starts, in vectors; past the last, that one again. Its value is `kv_heads` heads further.
    pub(super) fn key_at(&self, position: usize, #[comptime] shape: HeadShape) -> usize {
        let token = self.first + min(position, self.len - 1);
        let all = comptime!(shape.heads + 2 * shape.kv_heads);
        (token * all + comptime!(shape.heads) + self.kv_head) * comptime!(shape.head_dim / VECTOR)
    }
}

/// Where a vector of a row lies in a tile of `rows`, in vectors: in panels, see [`wgmma::Panels`].
#[cube]
pub(super) fn place(row: usize, chunk: usize, #[comptime] rows: usize) -> usize {
    (chunk / 8 * rows + row) * comptime!(ROW_BYTES / 16) + ((chunk % 8) ^ (row % 8))
}

/// What a step is made of, two things that lie alike: queries and the gradients of their outputs, or keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rows {
    Queries,
    Keys,
}

/// A step on its way to shared memory.
#[derive(CubeType)]
pub(super) struct StepLoad {
    /// Its first row, or the position of its first key.
    pub(super) start: usize,
    /// Where it goes, in vectors, and how far behind it its second half goes.
    pub(super) to: usize,
    pub(super) distance: usize,
}

/// Starts to copy a step; a warpgroup does.
#[cube]
pub(super) fn load<E: Float>(
    saved: &Saved<E>,
    memory: &mut [Vector<E, Const<8>>],
    document: &Document,
    load: &StepLoad,
    #[comptime] rows: Rows,
    #[comptime] shape: HeadShape,
) {
    let chunks = comptime!(shape.head_dim / VECTOR);
    let unit = UNIT_POS as usize % WARPGROUP;
    let (first, chunk) = (unit / chunks, unit % chunks);
    #[unroll]
    for i in 0..comptime!(STEP_ROWS * shape.head_dim / VECTOR / WARPGROUP) {
        let row = first + i * comptime!(WARPGROUP * VECTOR / shape.head_dim);
        let to = load.to + place(row, chunk, STEP_ROWS);
        let row = load.start + row;
        if comptime!(rows == Rows::Queries) {
            let query = document.query_at(row, shape) + chunk;
            let gradient = document.place_of(row, shape) * chunks + chunk;
            copy(&saved.qkv, memory, query, to);
            copy(&saved.d_out, memory, gradient, to + load.distance);
        } else {
            let key = document.key_at(row, shape) + chunk;
            let value = key + comptime!(shape.kv_heads * shape.head_dim / VECTOR);
            copy(&saved.qkv, memory, key, to);
            copy(&saved.qkv, memory, value, to + load.distance);
        }
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

/// Barriers of the steps in shared memory, `num` of which have places there: each is there, and its place is free.
#[derive(CubeType)]
pub(super) struct Barriers {
    full: u32,
    free: u32,
}

#[cube]
impl Barriers {
    /// Barriers in `memory`, which has two for each place. All units of the cube wait here.
    pub(super) fn new(memory: &mut [Vector<u32, Const<2>>], #[comptime] num: usize) -> Barriers {
        let full = wgmma::address(memory);
        let free = full + comptime!(8 * num as u32);
        if UNIT_POS == 0 {
            #[unroll]
            for stage in 0..comptime!(num as u32) {
                wgmma::init_barrier(full + 8 * stage, comptime!(WARPGROUP as u32));
                wgmma::init_barrier(free + 8 * stage, 2u32);
            }
        }
        sync_cube();
        Barriers { full, free }
    }

    /// What is announced when step `i` is there.
    pub(super) fn full(&self, i: usize, #[comptime] num: usize) -> u32 {
        self.full + 8 * (i % num) as u32
    }

    /// Waits until step `i` is there.
    pub(super) fn wait_for_step(&self, i: usize, #[comptime] num: usize) {
        wgmma::wait_for_phase(self.full(i, num), (i / num % 2) as u32);
    }

    /// Waits until the place of step `i` is free.
    pub(super) fn wait_for_place(&self, i: usize, #[comptime] num: usize) {
        wgmma::wait_for_phase(self.free + 8 * (i % num) as u32, (i / num % 2) as u32 ^ 1);
    }

    /// The place of the step before `i` is free, as far as this warpgroup knows.
    pub(super) fn free_before(&self, i: usize, #[comptime] num: usize) {
        if i > 0 && UNIT_POS % comptime!(WARPGROUP as u32) == 0 {
            wgmma::arrive(self.free + 8 * ((i - 1) % num) as u32);
        }
    }
}

/// Announces what belongs to this barrier, if there is one, when at most `num` groups of copies after it are under way.
#[cube]
pub(super) fn announce(barrier: u32, #[comptime] num: usize) {
    if barrier != 0 {
        wait_for_groups(num);
        wgmma::publish();
        wgmma::arrive(barrier);
    }
}
