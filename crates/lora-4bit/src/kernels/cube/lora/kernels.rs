//! The kernels of adapters.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::{num_shared_sums, sum_of_planes};
use super::{Kind, RANKS};

#[cube(launch_unchecked)]
pub(super) fn shrink<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    a0: &[Vector<W, N>],
    a1: &[Vector<W, N>],
    a2: &[Vector<W, N>],
    row_slots: &[i32],
    h: &mut [f32],
    at: usize,
    row_vectors: usize,
    ranks0: usize,
    ranks1: usize,
    ranks2: usize,
    cubes0: usize,
    cubes1: usize,
    max_rank: usize,
    slots0: usize,
    slots1: usize,
    slots2: usize,
    #[comptime] kind: Kind,
    #[define(X, W)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS_Y as usize;
    let rows = CUBE_COUNT_Y as usize;
    let slot = row_slots[at + row];
    if slot >= 0i32 {
        let slot = slot as usize;
        let x = &x[row * row_vectors..];
        let planes = (UNIT_POS / PLANE_DIM) as usize / comptime!(kind.planes);
        let per_cube = (CUBE_DIM / PLANE_DIM) as usize / comptime!(kind.planes);
        let cube = CUBE_POS_X as usize;
        let mut sum = Array::<f32>::new(1usize);
        let (mut layer, mut first, mut ranks, mut slots) = (0usize, 0usize, ranks0, slots0);
        if cube >= cubes0 {
            layer = 1usize;
            first = cubes0;
            ranks = ranks1;
            slots = slots1;
        }
        if cube >= cubes0 + cubes1 {
            layer = 2usize;
            first = cubes0 + cubes1;
            ranks = ranks2;
            slots = slots2;
        }
        let rank = (cube - first) * per_cube + planes;
        let from = min(slot, slots - 1) * ranks + min(rank, ranks - 1);
        if layer == 0 {
            dot::<X, W, N>(x, a0, &mut sum, from, row_vectors, kind);
        } else if layer == 1 {
            dot::<X, W, N>(x, a1, &mut sum, from, row_vectors, kind);
        } else {
            dot::<X, W, N>(x, a2, &mut sum, from, row_vectors, kind);
        }
        let mut parts = Shared::<[f32]>::new_slice(comptime!(num_shared_sums(1)));
        sum_of_planes(&mut sum, &mut parts, 1usize, comptime!(kind.planes));
        let part = (UNIT_POS / PLANE_DIM) as usize % comptime!(kind.planes);
        if UNIT_POS_PLANE == 0 && part == 0 && rank < ranks {
            h[(layer * rows + row) * max_rank + rank] = sum[0];
        }
    }
}

/// The plane's part of the product of a row of `x` with row `rank` of `a`.
#[cube]
fn dot<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    a: &[Vector<W, N>],
    result: &mut Array<f32>,
    rank: usize,
    row_vectors: usize,
    #[comptime] kind: Kind,
) {
    let lanes = PLANE_DIM as usize * comptime!(kind.planes);
    let part = (UNIT_POS / PLANE_DIM) as usize % comptime!(kind.planes);
    let unroll = comptime!(kind.unroll);
    let start = rank * row_vectors;
    let mut sums = Vector::<f32, N>::new(0.0);
    let mut i = part * PLANE_DIM as usize + UNIT_POS_PLANE as usize;
    while i < row_vectors {
        let mut weights = Array::<Vector<W, N>>::new(unroll);
        let mut values = Array::<Vector<X, N>>::new(unroll);
        #[unroll]
        for load in 0..unroll {
            let from = min(i + load * lanes, row_vectors - 1);
            weights[load] = a[start + from];
            values[load] = x[from];
        }
        #[unroll]
        for load in 0..unroll {
            let mut product =
                Vector::<f32, N>::cast_from(values[load]) * Vector::cast_from(weights[load]);
            if comptime!(kind.is_ragged) {
                product *= Vector::new(f32::cast_from(i + load * lanes < row_vectors));
            }
            sums += product;
        }
        i += unroll * lanes;
    }
    let mut sum = 0.0f32;
    #[unroll]
    for j in 0..sums.vector_size() {
        sum += sums.extract(j);
    }
    result[0] = plane_sum(sum);
}

#[cube(launch_unchecked)]
pub(super) fn expand<W: Float>(
    h: &[f32],
    b0: &[Vector<W, Const<4>>],
    b1: &[Vector<W, Const<4>>],
    b2: &[Vector<W, Const<4>>],
    slots: &[i32],
    y0: &mut [Vector<f32, Const<4>>],
    y1: &mut [Vector<f32, Const<4>>],
    y2: &mut [Vector<f32, Const<4>>],
    at: usize,
    ranks0: usize,
    ranks1: usize,
    ranks2: usize,
    columns0: usize,
    columns1: usize,
    columns2: usize,
    cubes0: usize,
    cubes1: usize,
    max_rank: usize,
    slots0: usize,
    slots1: usize,
    slots2: usize,
    #[define(W)] _dtype: ElemType,
) {
    let row = CUBE_POS_Y as usize;
    let rows = CUBE_COUNT_Y as usize;
    let cube = CUBE_POS_X as usize;
    let slot = slots[at + row];
    if slot >= 0i32 {
        let slot = slot as usize;
        if cube < cubes0 {
            if slot < slots0 {
                let h = &h[row * max_rank..];
                add_to::<W>(h, b0, y0, cube, slot, ranks0, row, columns0);
            }
        } else if cube < cubes0 + cubes1 {
            if slot < slots1 {
                let h = &h[(rows + row) * max_rank..];
                add_to::<W>(h, b1, y1, cube - cubes0, slot, ranks1, row, columns1);
            }
        } else if slot < slots2 {
            let h = &h[(2 * rows + row) * max_rank..];
            let cube = cube - cubes0 - cubes1;
            add_to::<W>(h, b2, y2, cube, slot, ranks2, row, columns2);
        }
    }
}

/// Adds the adapter's product to a part of a row.
#[cube]
fn add_to<W: Float>(
    h: &[f32],
    b: &[Vector<W, Const<4>>],
    y: &mut [Vector<f32, Const<4>>],
    cube: usize,
    slot: usize,
    ranks: usize,
    row: usize,
    columns: usize,
) {
    let column = cube * CUBE_DIM as usize + UNIT_POS as usize;
    if column < columns {
        y[row * columns + column] += product::<W>(h, b, slot, ranks, column, columns);
    }
}

/// The sum of the rows of `b`, at four columns, times `h`.
#[cube]
fn product<W: Float>(
    h: &[f32],
    b: &[Vector<W, Const<4>>],
    slot: usize,
    ranks: usize,
    column: usize,
    columns: usize,
) -> Vector<f32, Const<4>> {
    let mut sum = Vector::<f32, Const<4>>::new(0.0);
    let mut rank = 0usize;
    while rank < ranks {
        let mut weights = Array::<Vector<W, Const<4>>>::new(RANKS);
        #[unroll]
        for i in 0..RANKS {
            weights[i] = b[(slot * ranks + rank + i) * columns + column];
        }
        #[unroll]
        for i in 0..RANKS {
            sum += Vector::cast_from(weights[i]) * Vector::new(h[rank + i]);
        }
        rank += RANKS;
    }
    sum
}

#[cube(launch_unchecked)]
pub(super) fn expand_gated<W: Float, Y: Float>(
    h: &[f32],
    gate_b: &[Vector<W, Const<4>>],
    up_b: &[Vector<W, Const<4>>],
    slots: &[i32],
    gate: &[Vector<f32, Const<4>>],
    up: &[Vector<f32, Const<4>>],
    y: &mut [Vector<Y, Const<4>>],
    at: usize,
    gate_ranks: usize,
    up_ranks: usize,
    columns: usize,
    max_rank: usize,
    gate_slots: usize,
    up_slots: usize,
    #[define(W, Y)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS_Y as usize;
    let rows = CUBE_COUNT_Y as usize;
    let column = CUBE_POS_X as usize * CUBE_DIM as usize + UNIT_POS as usize;
    if column < columns {
        let to = row * columns + column;
        let (mut gate, mut up) = (gate[to], up[to]);
        let slot = slots[at + row];
        if slot >= 0i32 {
            let slot = slot as usize;
            let gate_h = &h[row * max_rank..];
            let up_h = &h[(rows + row) * max_rank..];
            if slot < gate_slots {
                gate += product::<W>(gate_h, gate_b, slot, gate_ranks, column, columns);
            }
            if slot < up_slots {
                up += product::<W>(up_h, up_b, slot, up_ranks, column, columns);
            }
        }
        let one = Vector::<f32, Const<4>>::new(1.0);
        y[to] = Vector::cast_from(gate / (one + (-gate).exp()) * up);
    }
}
