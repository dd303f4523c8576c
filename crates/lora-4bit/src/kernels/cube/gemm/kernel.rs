//! The kernel of the products, and the sum of their parts.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::load::{OperandBuffers, end_group, load, wait_for_groups};
use super::shape::{Instruction, Kind};
use super::{mma, wgmma};
use crate::kernels::tile::CHUNKS;

/// Rows of tiles that cubes next to each other share: what they read then comes from the cache.
const ROW_TILES: usize = 8;

#[cube(launch_unchecked)]
pub(super) fn gemm<W: Float, Y: Float>(
    a: &OperandBuffers<W>,
    b: &OperandBuffers<W>,
    bias: &[Vector<f32, Const<2>>],
    residual: &[Vector<Y, Const<2>>],
    y: &mut [Vector<Y, Const<2>>],
    first_steps: usize,
    steps: usize,
    split_steps: usize,
    #[comptime] kind: Kind,
    #[define(W, Y)] _dtypes: [ElemType; 2],
) {
    let (stages, stage_len) = comptime!((kind.stages, kind.stage_len()));
    let a_len = comptime!(kind.rows * CHUNKS);
    let ahead = comptime!(kind.ahead());
    let mut memory = Shared::<[Vector<W, Const<8>>]>::new_aligned_slice(
        comptime!(kind.stages * kind.stage_len()),
        1024usize,
    );

    let row_tiles = a.outer.div_ceil(comptime!(kind.rows));
    let column_tiles = b.outer.div_ceil(comptime!(kind.columns));
    let cube = CUBE_POS_X as usize;
    let group = cube / (ROW_TILES * column_tiles);
    let in_group = cube % (ROW_TILES * column_tiles);
    let group_rows = min(row_tiles - group * ROW_TILES, ROW_TILES);
    let first_row = (group * ROW_TILES + in_group % group_rows) * comptime!(kind.rows);
    let first_column = in_group / group_rows * comptime!(kind.columns);

    let split = CUBE_POS_Y as usize;
    let first = split * split_steps;
    let end = min(first + split_steps, steps);

    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    if comptime!(kind.instruction == Instruction::Wgmma) {
        wgmma::declare_sums(kind);
    } else {
        #[unroll]
        for _ in 0..comptime!(kind.rows / kind.planes[0] / 16 * (kind.columns / kind.planes[1] / 8))
        {
            let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
            sum[0] = Vector::new(0.0);
            sum[1] = Vector::new(0.0);
            sums.push(sum);
        }
    }

    #[unroll]
    for i in 0..ahead {
        let step = first + i;
        if step < end {
            let at = comptime!(i * kind.stage_len());
            load(
                a,
                &mut memory[at..],
                first_row,
                step,
                first_steps,
                0usize,
                kind,
            );
            let to = &mut memory[comptime!(i * kind.stage_len() + kind.rows * CHUNKS)..];
            load(b, to, first_column, step, first_steps, 1usize, kind);
        }
        end_group();
    }
    let mut full = 0usize;
    let mut free = ahead.runtime();
    let mut step = first;
    if comptime!(kind.instruction == Instruction::Wgmma) {
        let start = wgmma::address(&mut memory);
        while step < end {
            wait_for_groups(comptime!(kind.ahead() - 1));
            wgmma::publish_copies();
            sync_cube();
            let group = UNIT_POS / comptime!(4 * 32u32);
            wgmma::multiply(start + (full * stage_len * 16usize) as u32, group, kind);
            let next = step + ahead;
            if next < end {
                let at = free * stage_len;
                load(
                    a,
                    &mut memory[at..],
                    first_row,
                    next,
                    first_steps,
                    0usize,
                    kind,
                );
                let to = &mut memory[at + a_len..];
                load(b, to, first_column, next, first_steps, 1usize, kind);
            }
            end_group();
            wgmma::wait(1usize);
            step += 1;
            full += 1;
            if full == stages {
                full = 0usize;
            }
            free += 1;
            if free == stages {
                free = 0usize;
            }
        }
        wgmma::wait(0usize);
    } else {
        while step < end {
            wait_for_groups(comptime!(kind.ahead() - 1));
            // What all units have loaded is there, and nobody reads the step before.
            sync_cube();
            let next = step + ahead;
            if next < end {
                let at = free * stage_len;
                load(
                    a,
                    &mut memory[at..],
                    first_row,
                    next,
                    first_steps,
                    0usize,
                    kind,
                );
                let to = &mut memory[at + a_len..];
                load(b, to, first_column, next, first_steps, 1usize, kind);
            }
            end_group();
            let start = full * stage_len;
            mma::multiply::<W>(&memory[start..], &memory[start + a_len..], &mut sums, kind);
            step += 1;
            full += 1;
            if full == stages {
                full = 0usize;
            }
            free += 1;
            if free == stages {
                free = 0usize;
            }
        }
    }

    // In both instructions' results, a unit has two rows, and two columns of each eight.
    let plane = (UNIT_POS / 32) as usize;
    let lane = (UNIT_POS % 32) as usize;
    let row_blocks = comptime!(kind.rows / kind.planes[0] / 16);
    let column_blocks = comptime!(kind.columns / kind.planes[1] / 8);
    let row = first_row + plane / comptime!(kind.planes[1]) * comptime!(row_blocks * 16) + lane / 4;
    let column = first_column
        + plane % comptime!(kind.planes[1]) * comptime!(column_blocks * 8)
        + lane % 4 * 2;
    let (num_rows, num_columns) = (a.outer, b.outer);
    let part = split * num_rows * num_columns;
    #[unroll]
    for block in 0..row_blocks {
        #[unroll]
        for half in 0..2usize {
            let r = row + block * 16 + half * 8;
            #[unroll]
            for j in 0..comptime!(kind.columns / kind.planes[1] / 8) {
                let c = column + j * 8;
                let mut result = if comptime!(kind.instruction == Instruction::Wgmma) {
                    wgmma::pair(comptime!(j * 4 + half * 2))
                } else {
                    let sum = &sums[block * column_blocks + j];
                    sum[half]
                };
                if r < num_rows && c < num_columns {
                    if comptime!(kind.has_bias) {
                        result += bias[c / 2];
                    }
                    let at = (part + r * num_columns + c) / 2;
                    if comptime!(kind.has_residual) {
                        result += Vector::cast_from(residual[at]);
                    }
                    y[at] = Vector::cast_from(result);
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn sum_parts<Y: Float>(
    parts: &[Vector<f32, Const<2>>],
    bias: &[Vector<f32, Const<2>>],
    residual: &[Vector<Y, Const<2>>],
    y: &mut [Vector<Y, Const<2>>],
    vectors: usize,
    row: usize,
    num_parts: usize,
    #[comptime] has_terms: [bool; 2],
    #[define(Y)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        let mut sum = parts[at];
        for part in 1..num_parts {
            sum += parts[part * vectors + at];
        }
        if comptime!(has_terms[0]) {
            sum += bias[at % row];
        }
        if comptime!(has_terms[1]) {
            sum += Vector::cast_from(residual[at]);
        }
        y[at] = Vector::cast_from(sum);
    }
}
