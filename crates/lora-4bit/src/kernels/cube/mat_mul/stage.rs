//! Tiles of both operands on their way to shared memory.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use super::layers::{Layers, Place};
use super::shape::{Kind, Weights};
use crate::kernels::tile::{CHUNKS, Tile, VECTOR};

/// Ends a group of asynchronous copies.
#[cube]
pub(super) fn end_group() {
    gpu_asm!("cp.async.commit_group;", options(explicit_mem));
}

/// Waits until at most `num` of this unit's groups of copies are under way.
///
/// An instruction that doesn't say what it touches makes CubeCL take every buffer of the kernel for written: when a launch
/// fails, all of them are lost then, the weights too.
#[cube]
pub(super) fn wait_for_groups(#[comptime] num: usize) {
    gpu_asm!("cp.async.wait_group {num};", options(explicit_mem, writes_address_space shared));
}

/// Where a vector of a row lies in shared memory: eight rows at the same place of their row, or eight places of a row, lie
/// in different banks.
#[cube]
pub(super) fn swizzled(row: usize, chunk: usize) -> usize {
    row * CHUNKS + (chunk ^ (row % 8))
}

/// What `x`, or `x · aᵀ`, is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RightOperand {
    /// Rows of the weight, or of `a` in a tile of adapters.
    First,
    /// Rows of `b`; of a gate, and then of what it multiplies.
    Second,
}

/// Starts to copy a tile of `x` of a step.
#[cube]
pub(super) fn load_x<W: Float>(
    x: &[Vector<W, Const<8>>],
    stage: &mut [Vector<W, Const<8>>],
    place: &Place,
    stride: usize,
    step: usize,
    #[comptime] tile: Tile,
) {
    let units = comptime!(tile.units());
    let unit = UNIT_POS as usize;
    let chunk = unit % CHUNKS;
    #[unroll]
    for i in 0..comptime!(tile.rows * CHUNKS / tile.units()) {
        let row = i * comptime!(units / CHUNKS) + unit / CHUNKS;
        let row_of_x = min(place.first_row + row, place.num_rows - 1);
        let from = row_of_x * stride + step * CHUNKS + chunk;
        let to = swizzled(row, chunk);
        copy_async(
            &x[from..from + 1],
            &mut stage[to..to + 1],
            comptime!(VECTOR as u32),
        );
    }
}

/// Starts to copy the other operand's tile of a step.
#[cube]
pub(super) fn load_right<W: Float>(
    layers: &Layers<W>,
    stage: &mut [Vector<W, Const<8>>],
    place: &Place,
    step: usize,
    #[comptime] operand: RightOperand,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let (first, second, third) = (&layers.layer0, &layers.layer1, &layers.layer2);
    let three = comptime!(kind.weights == Weights::Three);
    if comptime!(operand == RightOperand::First) {
        if comptime!(kind.has_adapters) {
            if place.is_shrink {
                let (a0, a1, a2) = (&first.a, &second.a, &third.a);
                let many = comptime!(kind.weights != Weights::One);
                load_rows(a0, a1, a2, stage, place, layers.a_stride, step, many, tile);
            } else {
                load_weight(layers, stage, place, step, kind);
            }
        } else {
            load_weight(layers, stage, place, step, kind);
        }
    } else if comptime!(kind.weights == Weights::Gated) {
        if step < first.b_steps {
            load_half(&first.b, stage, place, place.b_stride, step, 0usize, tile);
        } else {
            let (stride, step) = (second.num_slots * second.rank / 8, step - first.b_steps);
            load_half(&second.b, stage, place, stride, step, 1usize, tile);
        }
    } else {
        let (b0, b1, b2) = (&first.b, &second.b, &third.b);
        load_rows(b0, b1, b2, stage, place, place.b_stride, step, three, tile);
    }
}

#[cube]
fn load_weight<W: Float>(
    layers: &Layers<W>,
    stage: &mut [Vector<W, Const<8>>],
    place: &Place,
    step: usize,
    #[comptime] kind: Kind,
) {
    let (tile, stride) = (comptime!(kind.tile), layers.w_stride);
    let (w0, w1, w2) = (&layers.layer0.w, &layers.layer1.w, &layers.layer2.w);
    if comptime!(kind.weights == Weights::Gated) {
        load_half(w0, stage, place, stride, step, 0usize, tile);
        load_half(w1, stage, place, stride, step, 1usize, tile);
    } else {
        let three = comptime!(kind.weights == Weights::Three);
        load_rows(w0, w1, w2, stage, place, stride, step, three, tile);
    }
}

/// Rows of one of three operands, from the tile's first column on.
#[cube]
fn load_rows<W: Float>(
    from0: &[Vector<W, Const<8>>],
    from1: &[Vector<W, Const<8>>],
    from2: &[Vector<W, Const<8>>],
    stage: &mut [Vector<W, Const<8>>],
    place: &Place,
    stride: usize,
    step: usize,
    #[comptime] three: bool,
    #[comptime] tile: Tile,
) {
    let units = comptime!(tile.units());
    let unit = UNIT_POS as usize;
    let chunk = unit % CHUNKS;
    #[unroll]
    for i in 0..comptime!(tile.columns * CHUNKS / tile.units()) {
        let row = i * comptime!(units / CHUNKS) + unit / CHUNKS;
        let to = swizzled(row, chunk);
        let column = min(place.first_column + row, place.num_columns - 1);
        let from = column * stride + step * CHUNKS + chunk;
        if comptime!(!three) {
            copy_vector(from0, stage, from, to);
        } else if place.layer == 0 {
            copy_vector(from0, stage, from, to);
        } else if place.layer == 1 {
            copy_vector(from1, stage, from, to);
        } else {
            copy_vector(from2, stage, from, to);
        }
    }
}

/// The half of the tile's rows that belongs to a gate, or to what it multiplies: each plane has gates and then the values that
/// belong to them.
#[cube]
fn load_half<W: Float>(
    from: &[Vector<W, Const<8>>],
    stage: &mut [Vector<W, Const<8>>],
    place: &Place,
    stride: usize,
    step: usize,
    #[comptime] half: usize,
    #[comptime] tile: Tile,
) {
    let units = comptime!(tile.units());
    let unit = UNIT_POS as usize;
    let chunk = unit % CHUNKS;
    let half_columns = comptime!(tile.columns / tile.planes[1] / 2);
    #[unroll]
    for i in 0..comptime!(tile.columns * CHUNKS / tile.units() / 2) {
        let column = i * comptime!(units / CHUNKS) + unit / CHUNKS;
        let row = column / half_columns * comptime!(tile.columns / tile.planes[1])
            + comptime!(half * tile.columns / tile.planes[1] / 2)
            + column % half_columns;
        let column = min(place.first_column + column, place.num_columns - 1);
        let at = column * stride + step * CHUNKS + chunk;
        copy_vector(from, stage, at, swizzled(row, chunk));
    }
}

#[cube]
fn copy_vector<W: Float>(
    from: &[Vector<W, Const<8>>],
    to: &mut [Vector<W, Const<8>>],
    at: usize,
    place: usize,
) {
    copy_async(
        &from[at..at + 1],
        &mut to[place..place + 1],
        comptime!(VECTOR as u32),
    );
}
