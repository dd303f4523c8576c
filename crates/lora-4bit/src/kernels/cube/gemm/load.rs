//! Tiles of both operands on their way to shared memory.
//!
//! A tile is a row of panels. A panel has 64 rows of 8 vectors: rows of the operand where its inner dimension lies along the
//! rows, and steps of the inner dimension otherwise. Vectors of a row are permuted by its number, as `wgmma` expects of
//! tiles with the pattern of 128 bytes, and as eight neighbouring rows lie in different banks.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use super::shape::{Kind, PANEL};
use crate::kernels::operand::Major;
use crate::kernels::tile::{CHUNKS, VECTOR};

/// An operand as the kernel reads it.
#[derive(CubeType, CubeLaunch)]
pub(super) struct OperandBuffers<W: Float> {
    pub(super) first: Box<[Vector<W, Const<8>>]>,
    pub(super) second: Box<[Vector<W, Const<8>>]>,
    /// Vectors from one row to the next.
    pub(super) first_stride: usize,
    pub(super) second_stride: usize,
    /// Rows or columns of the result that belong to this operand.
    pub(super) outer: usize,
}

/// Where a vector of a row of a tile lies in shared memory.
#[cube]
pub(super) fn swizzled(row: usize, chunk: usize) -> usize {
    row * CHUNKS + (chunk ^ (row % 8))
}

/// Starts to copy an operand's tile of a step; `outer` is its first row or column of the result.
#[cube]
pub(super) fn load<W: Float>(
    operand: &OperandBuffers<W>,
    stage: &mut [Vector<W, Const<8>>],
    outer: usize,
    step: usize,
    first_steps: usize,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let rows = comptime!([kind.rows, kind.columns][number]);
    let (from, stride) = (&operand.first, operand.first_stride);
    let (second, second_stride) = (&operand.second, operand.second_stride);
    let num = operand.outer;
    if comptime!(kind.has_second) {
        if step < first_steps {
            load_panels(from, stage, stride, num, outer, step, rows, number, kind);
        } else {
            let step = step - first_steps;
            load_panels(
                second,
                stage,
                second_stride,
                num,
                outer,
                step,
                rows,
                number,
                kind,
            );
        }
    } else {
        load_panels(from, stage, stride, num, outer, step, rows, number, kind);
    }
}

#[cube]
fn load_panels<W: Float>(
    from: &[Vector<W, Const<8>>],
    stage: &mut [Vector<W, Const<8>>],
    stride: usize,
    num_outer: usize,
    outer: usize,
    step: usize,
    #[comptime] rows: usize,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let units = comptime!(kind.units());
    let unit = UNIT_POS as usize;
    let chunk = unit % CHUNKS;
    #[unroll]
    for i in 0..comptime!(rows * CHUNKS / units) {
        let row = i * comptime!(units / CHUNKS) + unit / CHUNKS;
        let at = if comptime!(kind.majors[number] == Major::Inner) {
            min(outer + row, num_outer - 1) * stride + step * CHUNKS + chunk
        } else {
            let column = outer / VECTOR + row / PANEL * CHUNKS + chunk;
            (step * PANEL + row % PANEL) * stride + min(column, num_outer / VECTOR - 1)
        };
        let to = swizzled(row, chunk);
        copy_async(
            &from[at..at + 1],
            &mut stage[to..to + 1],
            comptime!(VECTOR as u32),
        );
    }
}

/// Ends a group of asynchronous copies.
#[cube]
pub(super) fn end_group() {
    gpu_asm!("cp.async.commit_group;", options(explicit_mem));
}

/// Waits until at most `num` of this unit's groups of copies are under way.
#[cube]
pub(super) fn wait_for_groups(#[comptime] num: usize) {
    gpu_asm!("cp.async.wait_group {num};", options(explicit_mem, writes_address_space shared));
}
