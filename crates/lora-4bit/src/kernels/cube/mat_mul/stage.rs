//! Tiles of both factors on their way to shared memory.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use super::{CHUNKS, Kind, Tile, VECTOR, Weights};

/// Ends a group of asynchronous copies.
#[cube]
pub(super) fn end_group() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until at most `num` of this unit's groups of copies are under way.
#[cube]
pub(super) fn wait_for_groups(#[comptime] num: usize) {
    gpu_asm!("cp.async.wait_group {num};");
}

/// Where a vector of a row lies in shared memory: eight rows at the same place of their row, or eight places of a row, lie
/// in different banks.
#[cube]
pub(super) fn place(row: usize, chunk: usize) -> usize {
    row * CHUNKS + (chunk ^ (row % 8))
}

/// Starts to copy a step's tile of `x` to the vectors from `at` on, and that of the weight behind it.
#[cube]
pub(super) fn load_step<W: Float>(
    x: &[Vector<W, Const<8>>],
    w0: &[Vector<W, Const<8>>],
    w1: &[Vector<W, Const<8>>],
    w2: &[Vector<W, Const<8>>],
    memory: &mut [Vector<W, Const<8>>],
    at: usize,
    weight: usize,
    first_row: usize,
    num_rows: usize,
    x_stride: usize,
    first_column: usize,
    num_columns: usize,
    w_stride: usize,
    step: usize,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let x_len = comptime!(kind.tile.rows * CHUNKS);
    load_x::<W>(
        x,
        &mut memory[at..],
        first_row,
        num_rows,
        x_stride,
        step,
        tile,
    );
    load_w::<W>(
        w0,
        w1,
        w2,
        &mut memory[at + x_len..],
        weight,
        first_column,
        num_columns,
        w_stride,
        step,
        kind,
    );
}

#[cube]
fn load_x<W: Float>(
    x: &[Vector<W, Const<8>>],
    stage: &mut [Vector<W, Const<8>>],
    first_row: usize,
    num_rows: usize,
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
        let from = min(first_row + row, num_rows - 1) * stride + step * CHUNKS + chunk;
        let to = place(row, chunk);
        copy_async(
            &x[from..from + 1],
            &mut stage[to..to + 1],
            comptime!(VECTOR as u32),
        );
    }
}

#[cube]
fn load_w<W: Float>(
    w0: &[Vector<W, Const<8>>],
    w1: &[Vector<W, Const<8>>],
    w2: &[Vector<W, Const<8>>],
    stage: &mut [Vector<W, Const<8>>],
    weight: usize,
    first_column: usize,
    num_columns: usize,
    stride: usize,
    step: usize,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let units = comptime!(tile.units());
    let unit = UNIT_POS as usize;
    let chunk = unit % CHUNKS;
    #[unroll]
    for i in 0..comptime!(tile.columns * CHUNKS / tile.units()) {
        let row = i * comptime!(units / CHUNKS) + unit / CHUNKS;
        let to = place(row, chunk);
        let mut column = row;
        let mut second = false;
        if comptime!(kind.weights == Weights::Gated) {
            // Each plane has gates and then the values that belong to them.
            let columns = comptime!(tile.columns / tile.planes[1]);
            let within = row % columns;
            second = within >= comptime!(columns / 2);
            column = row / columns * comptime!(columns / 2) + within % comptime!(columns / 2);
        }
        let from = min(first_column + column, num_columns - 1) * stride + step * CHUNKS + chunk;
        if comptime!(kind.weights == Weights::One) {
            copy_async(
                &w0[from..from + 1],
                &mut stage[to..to + 1],
                comptime!(VECTOR as u32),
            );
        } else if comptime!(kind.weights == Weights::Gated) {
            if second {
                copy_async(
                    &w1[from..from + 1],
                    &mut stage[to..to + 1],
                    comptime!(VECTOR as u32),
                );
            } else {
                copy_async(
                    &w0[from..from + 1],
                    &mut stage[to..to + 1],
                    comptime!(VECTOR as u32),
                );
            }
        } else {
            if weight == 0 {
                copy_async(
                    &w0[from..from + 1],
                    &mut stage[to..to + 1],
                    comptime!(VECTOR as u32),
                );
            } else if weight == 1 {
                copy_async(
                    &w1[from..from + 1],
                    &mut stage[to..to + 1],
                    comptime!(VECTOR as u32),
                );
            } else {
                copy_async(
                    &w2[from..from + 1],
                    &mut stage[to..to + 1],
                    comptime!(VECTOR as u32),
                );
            }
        }
    }
}
