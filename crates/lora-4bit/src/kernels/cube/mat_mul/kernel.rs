//! The kernel of the products with tensor cores.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::stage::{end_group, load_step, place, wait_for_groups};
use super::{CHUNKS, INNER, Kind, PLANE, Tile, Weights};

#[cube(launch_unchecked)]
pub(super) fn mat_mul<W: Float, Y: Float>(
    x: &[Vector<W, Const<8>>],
    w0: &[Vector<W, Const<8>>],
    w1: &[Vector<W, Const<8>>],
    w2: &[Vector<W, Const<8>>],
    bias0: &[Vector<f32, Const<2>>],
    bias1: &[Vector<f32, Const<2>>],
    bias2: &[Vector<f32, Const<2>>],
    residual: &[Vector<f32, Const<2>>],
    parts: &mut [Vector<f32, Const<2>>],
    arrived: &mut [Atomic<u32>],
    y0: &mut [Vector<Y, Const<2>>],
    y1: &mut [Vector<Y, Const<2>>],
    y2: &mut [Vector<Y, Const<2>>],
    num_rows: usize,
    columns0: usize,
    columns1: usize,
    columns2: usize,
    tiles0: usize,
    tiles1: usize,
    x_stride: usize,
    w_stride: usize,
    steps: usize,
    steps_per_split: usize,
    #[comptime] kind: Kind,
    #[define(W, Y)] _dtypes: [ElemType; 2],
) {
    let tile = comptime!(kind.tile);
    let stages = comptime!(tile.stages);
    let row_blocks = comptime!(tile.row_blocks());
    let column_blocks = comptime!(tile.column_blocks());
    let x_rows = comptime!(tile.rows);
    let stage_len = comptime!((tile.rows + tile.columns) * CHUNKS);
    let mut memory = Shared::<[Vector<W, Const<8>>]>::new_aligned_slice(
        comptime!(tile.stages * (tile.rows + tile.columns) * CHUNKS),
        128usize,
    );

    // The weight of this cube's tile, and the tile within its result.
    let mut weight = 0usize;
    let mut column_tile = CUBE_POS_X as usize;
    let mut num_columns = columns0;
    if comptime!(kind.weights == Weights::Three) {
        if column_tile >= tiles0 + tiles1 {
            column_tile -= tiles0 + tiles1;
            weight = 2usize;
            num_columns = columns2;
        } else if column_tile >= tiles0 {
            column_tile -= tiles0;
            weight = 1usize;
            num_columns = columns1;
        }
    }
    let first_row = CUBE_POS_Y as usize * comptime!(tile.rows);
    let first_column = column_tile * comptime!(result_columns(kind));
    let first_step = CUBE_POS_Z as usize * steps_per_split;
    let end = min(first_step + steps_per_split, steps);

    let unit = UNIT_POS as usize;
    let lane = unit % PLANE;
    let plane = unit / PLANE;
    let plane_row = plane / comptime!(tile.planes[1]) * comptime!(row_blocks * 16);
    let plane_columns = plane % comptime!(tile.planes[1]) * comptime!(column_blocks * 8);

    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..row_blocks * column_blocks {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::new(0.0);
        sum[1] = Vector::new(0.0);
        sums.push(sum);
    }

    #[unroll]
    for stage in 0..comptime!(tile.stages - 1) {
        if first_step + stage < end {
            let at = stage * stage_len;
            let step = first_step + stage;
            load_step::<W>(
                x,
                w0,
                w1,
                w2,
                &mut memory,
                at,
                weight,
                first_row,
                num_rows,
                x_stride,
                first_column,
                num_columns,
                w_stride,
                step,
                kind,
            );
        }
        end_group();
    }
    let mut step = first_step;
    let mut full = 0usize;
    let mut free = comptime!(tile.stages - 1).runtime();
    while step < end {
        wait_for_groups(comptime!(tile.stages - 2));
        // What all units have loaded is there, and nobody reads the step before.
        sync_cube();
        let next = step + comptime!(tile.stages - 1);
        if next < end {
            let at = free * stage_len;
            load_step::<W>(
                x,
                w0,
                w1,
                w2,
                &mut memory,
                at,
                weight,
                first_row,
                num_rows,
                x_stride,
                first_column,
                num_columns,
                w_stride,
                next,
                kind,
            );
        }
        end_group();
        let start = full * stage_len;
        multiply::<W>(
            &memory[start..],
            &memory[start + x_rows * CHUNKS..],
            &mut sums,
            plane_row,
            plane_columns,
            lane,
            tile,
        );
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

    let mut writes = true;
    if comptime!(kind.is_split) {
        writes = add_parts(&mut sums, parts, arrived, unit, kind);
    }
    if writes {
        let plane_column =
            plane % comptime!(tile.planes[1]) * comptime!(result_columns(kind) / tile.planes[1]);
        let row = first_row + plane_row + lane / 4;
        let column = first_column + plane_column + lane % 4 * 2;
        if comptime!(kind.weights == Weights::Three) {
            if weight == 0 {
                write::<Y>(
                    &sums,
                    bias0,
                    residual,
                    y0,
                    row,
                    column,
                    num_rows,
                    columns0,
                    comptime!(kind.has_bias[0]),
                    kind,
                );
            } else if weight == 1 {
                write::<Y>(
                    &sums,
                    bias1,
                    residual,
                    y1,
                    row,
                    column,
                    num_rows,
                    columns1,
                    comptime!(kind.has_bias[1]),
                    kind,
                );
            } else {
                write::<Y>(
                    &sums,
                    bias2,
                    residual,
                    y2,
                    row,
                    column,
                    num_rows,
                    columns2,
                    comptime!(kind.has_bias[2]),
                    kind,
                );
            }
        } else {
            write::<Y>(
                &sums,
                bias0,
                residual,
                y0,
                row,
                column,
                num_rows,
                columns0,
                comptime!(kind.has_bias[0]),
                kind,
            );
        }
    }
}

/// Columns of the result in a tile.
fn result_columns(kind: Kind) -> usize {
    match kind.weights {
        Weights::Gated => kind.tile.columns / 2,
        _ => kind.tile.columns,
    }
}

/// Adds the products of a step to the plane's sums.
#[cube]
fn multiply<W: Float>(
    x: &[Vector<W, Const<8>>],
    w: &[Vector<W, Const<8>>],
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    plane_row: usize,
    plane_column: usize,
    lane: usize,
    #[comptime] tile: Tile,
) {
    let instruction = MmaDefinition::<W, W, f32>::new(16usize, 8usize, 16usize);
    let row_blocks = comptime!(tile.row_blocks());
    let column_blocks = comptime!(tile.column_blocks());
    #[unroll]
    for inner in 0..comptime!(INNER / 16) {
        // Four matrices of 8 × 8: rows 0..8 and 8..16, then the same with the next eight inner values.
        let mut left = Sequence::<Array<Vector<W, Const<2>>>>::new();
        #[unroll]
        for block in 0..row_blocks {
            let row = plane_row + block * 16 + lane % 16;
            let at = place(row, inner * 2 + lane / 16);
            left.push(instruction.load_matrix::<Vector<W, Const<8>>, Const<2>>(
                &x[at..at + 1],
                MatrixIdent::A,
                4usize,
                false,
            ));
        }
        // Columns 0..8 with both halves of the inner values, then columns 8..16.
        #[unroll]
        for pair in 0..comptime!(column_blocks / 2) {
            let column = plane_column + pair * 16 + lane / 16 * 8 + lane % 8;
            let at = place(column, inner * 2 + lane / 8 % 2);
            let right = instruction.load_matrix::<Vector<W, Const<8>>, Const<2>>(
                &w[at..at + 1],
                MatrixIdent::B,
                4usize,
                false,
            );
            #[unroll]
            for half in 0..2usize {
                let mut columns = Array::<Vector<W, Const<2>>>::new(2usize);
                columns[0] = right[half * 2];
                columns[1] = right[half * 2 + 1];
                #[unroll]
                for block in 0..row_blocks {
                    let sum = &mut sums[block * column_blocks + pair * 2 + half];
                    instruction.execute_inplace(&left[block], &columns, sum);
                }
            }
        }
    }
}

/// Publishes the sums of this cube's part of the inner dimension. In the cube that does so last, they become the sums of
/// all parts, and the result is true.
#[cube]
fn add_parts(
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    parts: &mut [Vector<f32, Const<2>>],
    arrived: &mut [Atomic<u32>],
    unit: usize,
    #[comptime] kind: Kind,
) -> bool {
    let tile = comptime!(kind.tile);
    let units = comptime!(tile.units());
    let pairs = comptime!(tile.pairs());
    let splits = CUBE_COUNT_Z as usize;
    let cube = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize;
    let start = cube * splits * comptime!(pairs * units) + unit;
    let mine = start + CUBE_POS_Z as usize * comptime!(pairs * units);
    #[unroll]
    for i in 0..comptime!(pairs / 2) {
        let sum = &sums[i];
        parts[mine + i * 2 * units] = sum[0];
        parts[mine + (i * 2 + 1) * units] = sum[1];
    }
    sync_storage();
    let mut last = Shared::<[u32]>::new_slice(1usize);
    if unit == 0 {
        let before = arrived[cube].fetch_add(1u32);
        last[0] = u32::cast_from(before == CUBE_COUNT_Z - 1);
        if before == CUBE_COUNT_Z - 1 {
            arrived[cube].store(0u32);
        }
    }
    sync_storage();
    let is_last = last[0] == 1u32;
    if is_last {
        #[unroll]
        for i in 0..comptime!(pairs / 2) {
            let sum = &mut sums[i];
            sum[0] = parts[start + i * 2 * units];
            sum[1] = parts[start + (i * 2 + 1) * units];
        }
        for split in 1..splits {
            let from = start + split * comptime!(pairs * units);
            #[unroll]
            for i in 0..comptime!(pairs / 2) {
                let sum = &mut sums[i];
                sum[0] += parts[from + i * 2 * units];
                sum[1] += parts[from + (i * 2 + 1) * units];
            }
        }
    }
    is_last
}

/// Writes the plane's results, with what is added to them.
#[cube]
fn write<Y: Float>(
    sums: &Sequence<Array<Vector<f32, Const<2>>>>,
    bias: &[Vector<f32, Const<2>>],
    residual: &[Vector<f32, Const<2>>],
    y: &mut [Vector<Y, Const<2>>],
    row: usize,
    column: usize,
    num_rows: usize,
    num_columns: usize,
    #[comptime] has_bias: bool,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let column_blocks = comptime!(tile.column_blocks());
    let is_gated = comptime!(kind.weights == Weights::Gated);
    let result_blocks = comptime!(if is_gated {
        column_blocks / 2
    } else {
        column_blocks
    });
    #[unroll]
    for block in 0..comptime!(tile.row_blocks()) {
        #[unroll]
        for half in 0..2usize {
            let r = row + block * 16 + half * 8;
            #[unroll]
            for j in 0..result_blocks {
                let c = column + j * 8;
                if r < num_rows && c < num_columns {
                    let sum = &sums[block * column_blocks + j];
                    let mut result = sum[half];
                    if comptime!(is_gated) {
                        let up = &sums[block * column_blocks + result_blocks + j];
                        let one = Vector::<f32, Const<2>>::new(1.0);
                        result = result / (one + (-result).exp()) * up[half];
                    }
                    if comptime!(has_bias) {
                        result += bias[c / 2];
                    }
                    let at = (r * num_columns + c) / 2;
                    if comptime!(kind.has_residual) {
                        result += residual[at];
                    }
                    y[at] = Vector::cast_from(result);
                }
            }
        }
    }
}
