//! The kernel of the products with tensor cores.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::adapters::{
    begin_expand, continue_expand, count_reader, finish_shrink, forget_h, load_h, load_slots,
    wait_for_h,
};
use super::layers::{Adapters, Layer, Layers, Place, result_columns};
use super::parts::{collect, publish};
use super::shape::{Kind, Weights};
use super::stage::{RightOperand, end_group, load_right, load_x, swizzled, wait_for_groups};
use crate::kernels::tile::{CHUNKS, INNER, PLANE, Tile};

#[cube(launch_unchecked)]
pub(super) fn mat_mul<W: Float, Y: Float>(
    x: &[Vector<W, Const<8>>],
    layers: &Layers<W>,
    adapters: &Adapters<W>,
    residual: &[Vector<f32, Const<2>>],
    y0: &mut [Vector<Y, Const<2>>],
    y1: &mut [Vector<Y, Const<2>>],
    y2: &mut [Vector<Y, Const<2>>],
    h: &mut [Vector<W, Const<8>>],
    parts: &mut [Vector<f32, Const<2>>],
    counters: &mut [Atomic<u32>],
    num_rows: usize,
    x_stride: usize,
    steps: usize,
    splits: usize,
    split_steps: usize,
    #[comptime] kind: Kind,
    #[define(W, Y)] _dtypes: [ElemType; 2],
) {
    let tile = comptime!(kind.tile);
    let mut memory = Shared::<[Vector<W, Const<8>>]>::new_aligned_slice(
        comptime!(tile.stages * tile.stage_len()),
        128usize,
    );
    let place = Place::new(layers, adapters, num_rows, steps, splits, split_steps, kind);
    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.row_blocks() * tile.column_blocks()) {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::new(0.0);
        sum[1] = Vector::new(0.0);
        sums.push(sum);
    }
    let (first, end) = (place.first_step, place.end);
    #[unroll]
    for stage in 0..comptime!(tile.stages - 1) {
        let step = first + stage;
        if step < end {
            let at = comptime!(stage * tile.stage_len());
            load_x(x, &mut memory[at..], &place, x_stride, step, tile);
            let to = &mut memory[comptime!(stage * tile.stage_len() + tile.rows * CHUNKS)..];
            load_right(layers, to, &place, step, RightOperand::First, kind);
        }
        end_group();
    }
    let slots = load_slots(adapters, &place, kind);
    let phase = comptime!(if kind.is_seamless {
        Phase::Both
    } else {
        Phase::Weight
    });
    multiply_steps(
        x,
        layers,
        adapters,
        counters,
        &mut memory,
        &mut sums,
        &place,
        x_stride,
        phase,
        kind,
    );

    let mut writes = true;
    if comptime!(kind.is_split) {
        if place.splits > 1 && !place.is_shrink {
            writes = publish(&sums, parts, counters, &place, kind);
        }
    }
    if writes {
        let mut expands = false;
        if comptime!(kind.has_adapters && !kind.is_seamless) {
            expands = !place.is_shrink && place.b_steps > 0;
            if expands {
                begin_expand(layers, &mut memory, &place, kind);
            }
        }
        if comptime!(kind.is_split) {
            if place.splits > 1 && !place.is_shrink {
                collect(&mut sums, parts, &place, kind);
            }
        }
        if comptime!(kind.has_adapters && !kind.is_seamless) {
            if expands {
                continue_expand(adapters, counters, &mut memory, &place, kind);
                multiply_steps(
                    x,
                    layers,
                    adapters,
                    counters,
                    &mut memory,
                    &mut sums,
                    &place,
                    x_stride,
                    Phase::Adapters,
                    kind,
                );
            }
        }
        if place.is_shrink {
            if comptime!(kind.has_adapters) {
                finish_shrink(&sums, &slots, parts, h, adapters, counters, &place, kind);
            }
        } else if comptime!(kind.weights != Weights::Three) {
            write(&sums, &layers.layer0, y0, residual, &place, 0usize, kind);
        } else if place.layer == 0 {
            write(&sums, &layers.layer0, y0, residual, &place, 0usize, kind);
        } else if place.layer == 1 {
            write(&sums, &layers.layer1, y1, residual, &place, 1usize, kind);
        } else {
            write(&sums, &layers.layer2, y2, residual, &place, 2usize, kind);
        }
    }
}

/// Which steps are multiplied in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Those of the cube's part of the inner dimension.
    Weight,
    /// Those, and then those of the adapters.
    Both,
    /// Those of the adapters.
    Adapters,
}

/// Adds the products of all steps, of which the first are on their way, to the plane's sums.
#[cube]
fn multiply_steps<W: Float>(
    x: &[Vector<W, Const<8>>],
    layers: &Layers<W>,
    adapters: &Adapters<W>,
    counters: &mut [Atomic<u32>],
    memory: &mut [Vector<W, Const<8>>],
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    place: &Place,
    x_stride: usize,
    #[comptime] phase: Phase,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let (stages, stage_len) = comptime!((tile.stages, tile.stage_len()));
    let x_len = comptime!(tile.rows * CHUNKS);
    // Steps before `own_end` are the cube's own; those after it are counted from there.
    let (mut step, mut own_end) = (place.first_step, place.end);
    if comptime!(phase == Phase::Adapters) {
        step = 0usize;
        own_end = 0usize;
    }
    let mut end = own_end;
    if comptime!(phase == Phase::Both) {
        if !place.is_shrink {
            end += place.b_steps;
        }
    }
    if comptime!(phase == Phase::Adapters) {
        end += place.b_steps;
    }
    let mut full = 0usize;
    let mut free = comptime!(tile.stages - 1).runtime();
    let mut before = 0u32;
    while step < end {
        wait_for_groups(comptime!(tile.stages - 2));
        // What all units have loaded is there, and nobody reads the step before.
        sync_cube();
        let next = step + comptime!(tile.stages - 1);
        if next < end {
            let at = free * stage_len;
            if comptime!(phase == Phase::Weight) {
                load_x(x, &mut memory[at..], place, x_stride, next, tile);
                load_right(
                    layers,
                    &mut memory[at + x_len..],
                    place,
                    next,
                    RightOperand::First,
                    kind,
                );
            } else if comptime!(phase == Phase::Both) {
                if next < own_end {
                    load_x(x, &mut memory[at..], place, x_stride, next, tile);
                    load_right(
                        layers,
                        &mut memory[at + x_len..],
                        place,
                        next,
                        RightOperand::First,
                        kind,
                    );
                } else {
                    if next == own_end {
                        wait_for_h(adapters, counters, place);
                        before = count_reader(counters, place);
                    }
                    let next = next - own_end;
                    let to = &mut memory[at + x_len..];
                    load_right(layers, to, place, next, RightOperand::Second, kind);
                    let to = &mut memory[at..];
                    load_h(adapters, to, place, next, kind);
                }
            } else {
                let to = &mut memory[at + x_len..];
                load_right(layers, to, place, next, RightOperand::Second, kind);
                let to = &mut memory[at..];
                load_h(adapters, to, place, next, kind);
            }
        }
        end_group();
        let start = full * stage_len;
        let (left, right) = (&memory[start..], &memory[start + x_len..]);
        let all = comptime!((0, tile.column_blocks()));
        if comptime!(phase == Phase::Weight) {
            multiply::<W>(left, right, sums, all, tile);
        } else if step < own_end {
            multiply::<W>(left, right, sums, all, tile);
        } else if comptime!(kind.weights == Weights::Gated) {
            // First the gates, then what they multiply.
            let middle = comptime!(tile.column_blocks() / 2);
            if step - own_end < layers.layer0.b_steps {
                multiply::<W>(left, right, sums, comptime!((0, middle)), tile);
            } else {
                let blocks = comptime!((middle, tile.column_blocks()));
                multiply::<W>(left, right, sums, blocks, tile);
            }
        } else {
            multiply::<W>(left, right, sums, all, tile);
        }
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
    if comptime!(phase == Phase::Both) {
        if end > own_end {
            // Not earlier: the counter's answer takes as long as a step.
            forget_h(adapters, counters, place, before);
        }
    }
}

/// Adds the products of a step to the plane's sums of some of its blocks of columns.
#[cube]
fn multiply<W: Float>(
    x: &[Vector<W, Const<8>>],
    w: &[Vector<W, Const<8>>],
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    #[comptime] blocks: (usize, usize),
    #[comptime] tile: Tile,
) {
    let lane = UNIT_POS as usize % PLANE;
    let plane = UNIT_POS as usize / PLANE;
    let plane_row = plane / comptime!(tile.planes[1]) * comptime!(tile.row_blocks() * 16);
    let plane_column = plane % comptime!(tile.planes[1]) * comptime!(tile.column_blocks() * 8);
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
            let at = swizzled(row, inner * 2 + lane / 16);
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
            let at = swizzled(column, inner * 2 + lane / 8 % 2);
            let right = instruction.load_matrix::<Vector<W, Const<8>>, Const<2>>(
                &w[at..at + 1],
                MatrixIdent::B,
                4usize,
                false,
            );
            #[unroll]
            for half in 0..2usize {
                if comptime!((blocks.0..blocks.1).contains(&(pair * 2 + half))) {
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
}

/// Writes the plane's results, with what is added to them.
#[cube]
fn write<W: Float, Y: Float>(
    sums: &Sequence<Array<Vector<f32, Const<2>>>>,
    layer: &Layer<W>,
    y: &mut [Vector<Y, Const<2>>],
    residual: &[Vector<f32, Const<2>>],
    place: &Place,
    #[comptime] number: usize,
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
    let lane = UNIT_POS as usize % PLANE;
    let plane = UNIT_POS as usize / PLANE;
    let plane_row = plane / comptime!(tile.planes[1]) * comptime!(tile.row_blocks() * 16);
    let plane_column = plane % comptime!(tile.planes[1])
        * comptime!(result_columns(tile, kind.weights) / tile.planes[1]);
    let row = place.first_row + plane_row + lane / 4;
    let column = place.first_column + plane_column + lane % 4 * 2;
    #[unroll]
    for block in 0..comptime!(tile.row_blocks()) {
        #[unroll]
        for half in 0..2usize {
            let r = row + block * 16 + half * 8;
            #[unroll]
            for j in 0..result_blocks {
                let c = column + j * 8;
                if r < place.num_rows && c < place.num_columns {
                    let sum = &sums[block * column_blocks + j];
                    let mut result = sum[half];
                    if comptime!(is_gated) {
                        let up = &sums[block * column_blocks + result_blocks + j];
                        let one = Vector::<f32, Const<2>>::new(1.0);
                        result = result / (one + (-result).exp()) * up[half];
                    }
                    if comptime!(kind.has_bias[number]) {
                        result += layer.bias[c / 2];
                    }
                    let at = (r * place.num_columns + c) / 2;
                    if comptime!(kind.has_residual) {
                        result += residual[at];
                    }
                    y[at] = Vector::cast_from(result);
                }
            }
        }
    }
}
