//! The kernels of adapters.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::planes::{num_shared_sums, sum_of_planes};
use super::shape::Kind;
use crate::kernels::operand::STACK_RANKS as RANKS;

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

/// The second matrix of a layer's adapters, and what their product is added to.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Expansion<W: Float, N: Size> {
    /// `[columns, slots * ranks]`.
    b: Box<[Vector<W, N>]>,
    columns: usize,
    slots: usize,
    ranks: usize,
}

#[cube]
impl<W: Float, N: Size> Expansion<W, N> {
    /// Adds the adapter's product to a part of a row.
    fn add_to(
        &self,
        y: &mut [f32],
        h: &[f32],
        cube: usize,
        slot: usize,
        row: usize,
        #[comptime] vector: usize,
    ) {
        let column = cube * CUBE_DIM as usize + UNIT_POS as usize;
        if column < self.columns && slot < self.slots {
            let at = row * self.columns + column;
            y[at] += self.product(h, slot, column, vector);
        }
    }

    /// The row of `b` of a column, at the adapter's ranks, times `h`.
    fn product(&self, h: &[f32], slot: usize, column: usize, #[comptime] vector: usize) -> f32 {
        let loads = comptime!(RANKS / vector);
        let start = (column * self.slots + slot) * self.ranks / vector;
        let mut sum = 0.0f32;
        for eight in 0..self.ranks / RANKS {
            let mut weights = Array::<Vector<W, N>>::new(loads);
            #[unroll]
            for i in 0..loads {
                weights[i] = self.b[start + eight * loads + i];
            }
            #[unroll]
            for i in 0..loads {
                let values = Vector::<f32, N>::cast_from(weights[i]);
                #[unroll]
                for j in 0..vector {
                    sum += values.extract(j) * h[eight * RANKS + i * vector + j];
                }
            }
        }
        sum
    }
}

#[cube(launch_unchecked)]
pub(super) fn expand<W: Float, N: Size>(
    h: &[f32],
    layer0: &Expansion<W, N>,
    layer1: &Expansion<W, N>,
    layer2: &Expansion<W, N>,
    y0: &mut [f32],
    y1: &mut [f32],
    y2: &mut [f32],
    slots: &[i32],
    at: usize,
    cubes0: usize,
    cubes1: usize,
    max_rank: usize,
    #[comptime] vector: usize,
    #[define(W)] _dtype: ElemType,
) {
    let row = CUBE_POS_Y as usize;
    let rows = CUBE_COUNT_Y as usize;
    let cube = CUBE_POS_X as usize;
    let slot = slots[at + row];
    if slot >= 0i32 {
        let slot = slot as usize;
        if cube < cubes0 {
            layer0.add_to(y0, &h[row * max_rank..], cube, slot, row, vector);
        } else if cube < cubes0 + cubes1 {
            layer1.add_to(
                y1,
                &h[(rows + row) * max_rank..],
                cube - cubes0,
                slot,
                row,
                vector,
            );
        } else {
            let h = &h[(2 * rows + row) * max_rank..];
            layer2.add_to(y2, h, cube - cubes0 - cubes1, slot, row, vector);
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn expand_gated<W: Float, Y: Float, N: Size>(
    h: &[f32],
    gate: &Expansion<W, N>,
    up: &Expansion<W, N>,
    gate_y: &[f32],
    up_y: &[f32],
    slots: &[i32],
    y: &mut [Y],
    at: usize,
    max_rank: usize,
    #[comptime] vector: usize,
    #[define(W, Y)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS_Y as usize;
    let rows = CUBE_COUNT_Y as usize;
    let column = CUBE_POS_X as usize * CUBE_DIM as usize + UNIT_POS as usize;
    if column < gate.columns {
        let to = row * gate.columns + column;
        let (mut g, mut u) = (gate_y[to], up_y[to]);
        let slot = slots[at + row];
        if slot >= 0i32 {
            let slot = slot as usize;
            if slot < gate.slots {
                g += gate.product(&h[row * max_rank..], slot, column, vector);
            }
            if slot < up.slots {
                u += up.product(&h[(rows + row) * max_rank..], slot, column, vector);
            }
        }
        y[to] = Y::cast_from(g / (1.0 + (-g).exp()) * u);
    }
}
