//! The kernel of products with weights in NF4 on tensor cores.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::super::output::Output;
use super::super::weight::Weight;
use super::batch::Batch;
use super::memory::Memory;
use super::pairs::fill;
use super::shape::{CHUNKS, Kind, PLANE};
use super::stage::stage_x;

#[cube(launch_unchecked)]
pub(super) fn products<W: Float, X: Float>(
    x: &[Vector<X, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    w0: &Weight,
    w1: &Weight,
    w2: &Weight,
    residual: &[f32],
    out0: &mut Output,
    out1: &mut Output,
    out2: &mut Output,
    cubes0: usize,
    cubes1: usize,
    num_x: usize,
    row_steps: usize,
    eps: f32,
    #[comptime] kind: Kind,
    #[define(W, X)] _dtypes: [ElemType; 2],
) {
    let cube = CUBE_POS_X as usize;
    let mut memory = Memory::<W>::new(kind);
    if cube < cubes0 {
        one_product::<W, X>(
            x,
            norm,
            w0,
            residual,
            out0,
            &mut memory,
            cube,
            num_x,
            row_steps,
            eps,
            0usize,
            kind,
        );
    }
    if comptime!(kind.num_weights > 1) {
        if cube >= cubes0 && cube < cubes0 + cubes1 {
            let cube = cube - cubes0;
            one_product::<W, X>(
                x,
                norm,
                w1,
                residual,
                out1,
                &mut memory,
                cube,
                num_x,
                row_steps,
                eps,
                1usize,
                kind,
            );
        }
        if cube >= cubes0 + cubes1 {
            let cube = cube - cubes0 - cubes1;
            one_product::<W, X>(
                x,
                norm,
                w2,
                residual,
                out2,
                &mut memory,
                cube,
                num_x,
                row_steps,
                eps,
                2usize,
                kind,
            );
        }
    }
}

/// The product with the weight of a number, and what is added to it.
#[cube]
fn one_product<W: Float, X: Float>(
    x: &[Vector<X, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    w: &Weight,
    residual: &[f32],
    out: &mut Output,
    memory: &mut Memory<W>,
    cube: usize,
    num_x: usize,
    row_steps: usize,
    eps: f32,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let (bias, y, rows) = (&out.bias, &mut out.y, out.rows);
    multiply::<W, X, f32>(
        x, norm, w, w, bias, residual, y, memory, cube, rows, num_x, row_steps, eps, number, kind,
    );
}

#[cube(launch_unchecked)]
pub(super) fn gated<W: Float, X: Float>(
    x: &[Vector<X, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    gate: &Weight,
    up: &Weight,
    y: &mut [W],
    rows: usize,
    num_x: usize,
    row_steps: usize,
    eps: f32,
    #[comptime] kind: Kind,
    #[define(W, X)] _dtypes: [ElemType; 2],
) {
    let cube = CUBE_POS_X as usize;
    let mut memory = Memory::<W>::new(kind);
    // There is neither a bias nor a residual.
    let none = &gate.absmax;
    multiply::<W, X, W>(
        x,
        norm,
        gate,
        up,
        none,
        none,
        y,
        &mut memory,
        cube,
        rows,
        num_x,
        row_steps,
        eps,
        0usize,
        kind,
    );
}

/// Copies what codes of scales stand for to shared memory.
#[cube]
fn fill_map(to: &mut Shared<[f32]>, map: &[f32], #[comptime] units: usize) {
    #[unroll]
    for i in 0..comptime!(256usize.div_ceil(units)) {
        let code = UNIT_POS as usize + i * units;
        if code < 256 {
            to[code] = map[code];
        }
    }
}

/// Multiplies the rows of a cube, with what is done before and after.
///
/// The planes of a group share the blocks of its rows. A plane's part of the next round is loaded while it multiplies one.
#[cube]
fn multiply<W: Float, X: Float, Y: Float>(
    x: &[Vector<X, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    w: &Weight,
    other: &Weight,
    bias: &[f32],
    residual: &[f32],
    y: &mut [Y],
    memory: &mut Memory<W>,
    cube: usize,
    num_rows: usize,
    num_x: usize,
    row_steps: usize,
    eps: f32,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let lane = UNIT_POS as usize % PLANE;
    let plane = UNIT_POS as usize / PLANE;
    let num = comptime!(kind.sums());
    let group = cube * comptime!(kind.groups) + plane / comptime!(kind.planes);
    let first = group * comptime!(kind.group_rows());
    let round_steps = comptime!(kind.planes * kind.unroll);
    let rounds = row_steps.div_ceil(round_steps);
    let mut batch = Batch::new(kind);
    let mut next = Batch::new(kind);
    next.load(w, other, first, num_rows, 0usize, row_steps, kind);
    // The rest comes while these loads are under way; so does what is added in the end.
    let results = comptime!(kind.results().div_ceil(kind.planes));
    let mut added = Array::<f32>::new(results);
    #[unroll]
    for i in 0..results {
        added[i] = 0.0f32;
        if comptime!(kind.has_bias[number] || kind.has_residual) {
            let value = plane % comptime!(kind.planes) + i * comptime!(kind.planes);
            let (row, column) = place_of(first, value, kind);
            if value < comptime!(kind.results()) && row < num_rows && column < num_x {
                if comptime!(kind.has_bias[number]) {
                    added[i] += bias[row];
                }
                if comptime!(kind.has_residual) {
                    added[i] += residual[column * num_rows + row];
                }
            }
        }
    }
    let mut squares = Array::<f32>::new(kind.x_rows);
    #[unroll]
    for i in 0..comptime!(kind.x_rows) {
        squares[i] = 0.0f32;
    }
    fill::<W>(memory, &w.levels, &other.levels, kind);
    if comptime!(kind.is_double) {
        fill_map(&mut memory.map, &w.map, comptime!(kind.units()));
        if comptime!(kind.is_pair) {
            fill_map(&mut memory.other_map, &other.map, comptime!(kind.units()));
        }
    }
    if comptime!(kind.is_resident || kind.is_single) {
        stage_x::<W, X>(
            x,
            norm,
            memory,
            &mut squares,
            0usize,
            num_x,
            row_steps,
            kind,
        );
        sync_cube();
    }
    let mut sums = Array::<f32>::new(num);
    #[unroll]
    for i in 0..num {
        sums[i] = 0.0f32;
    }
    if comptime!(kind.is_single) {
        next.finish_scales::<W>(memory, w, other, first, num_rows, 0usize, row_steps, kind);
        next.multiply::<W>(memory, &mut sums, 0usize, kind);
    } else {
        for round in 0..rounds {
            batch.take(&next, kind);
            if round + 1 < rounds {
                next.load(w, other, first, num_rows, round + 1, row_steps, kind);
            }
            if comptime!(!kind.is_resident) {
                // Nobody reads the values of the round before.
                sync_cube();
                let start = round * round_steps;
                stage_x::<W, X>(x, norm, memory, &mut squares, start, num_x, row_steps, kind);
                sync_cube();
            }
            batch.finish_scales::<W>(memory, w, other, first, num_rows, round, row_steps, kind);
            batch.multiply::<W>(memory, &mut sums, round, kind);
        }
    }
    #[unroll]
    for i in 0..num {
        memory.sums[(plane * num + i) * PLANE + lane] = sums[i];
    }
    if comptime!(kind.has_norm) {
        #[unroll]
        for r in 0..comptime!(kind.x_rows) {
            let sum = plane_sum(squares[r]);
            if lane == 0 {
                memory.squares[comptime!(r * kind.units() / PLANE) + plane] = sum;
            }
        }
    }
    sync_cube();
    // Each plane adds up some of its group's sums.
    let part = plane % comptime!(kind.planes);
    #[unroll]
    for i in 0..comptime!(kind.results().div_ceil(kind.planes)) {
        let value = part + i * comptime!(kind.planes);
        let (row, column) = place_of(first, value, kind);
        if value < comptime!(kind.results()) && row < num_rows && column < num_x {
            let (block, half) = block_of(value, kind);
            let from = block * 4 + half * 2 + value % 2;
            let mut sum = 0.0f32;
            let mut up = 0.0f32;
            let start = (plane - part) * num + from;
            #[unroll]
            for other in 0..comptime!(kind.planes) {
                sum += memory.sums[(start + comptime!(other * kind.sums())) * PLANE + lane];
                if comptime!(kind.is_pair) {
                    let at = start + comptime!(other * kind.sums() + 2);
                    up += memory.sums[at * PLANE + lane];
                }
            }
            if comptime!(kind.has_norm) {
                let mut square = 0.0f32;
                #[unroll]
                for plane in 0..comptime!(kind.units() / PLANE) {
                    square += memory.squares[column * comptime!(kind.units() / PLANE) + plane];
                }
                let k = (row_steps * comptime!(CHUNKS * 8)) as f32;
                let factor = (square / k + eps).inverse_sqrt();
                sum *= factor;
                up *= factor;
            }
            if comptime!(kind.is_pair) {
                sum = sum / (1.0 + (-sum).exp()) * up;
            }
            y[column * num_rows + row] = Y::cast_from(sum + added[i]);
        }
    }
}

/// Of one of a group's values, the block of sums and its half. Of a pair, both halves belong to one value: the first is given.
#[cube]
fn block_of(value: usize, #[comptime] kind: Kind) -> (usize, usize) {
    let mut half = value / 2 % 2;
    let mut block = value / 4;
    if comptime!(kind.is_pair) {
        half = 0usize.runtime();
        block = value / 2;
    }
    (block, half)
}

/// The row of the weight, and of `x`, that one of a group's values belongs to.
#[cube]
fn place_of(first: usize, value: usize, #[comptime] kind: Kind) -> (usize, usize) {
    let lane = UNIT_POS as usize % PLANE;
    let (block, half) = block_of(value, kind);
    let tile = block / comptime!(kind.x_tiles());
    let row = first + tile * comptime!(kind.tile_rows()) + half * 8 + lane / 4;
    let column = block % comptime!(kind.x_tiles()) * 8 + lane % 4 * 2 + value % 2;
    (row, column)
}
