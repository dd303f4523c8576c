//! The kernels of the products with few rows.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::output::Output;
use super::super::planes::{num_shared_sums, sum_of_planes};
use super::shape::{MAX_ROWS, Shape};

#[cube(launch_unchecked)]
pub(super) fn products_kernel<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    norm: &[Vector<f32, N>],
    w0: &[Vector<W, N>],
    w1: &[Vector<W, N>],
    w2: &[Vector<W, N>],
    residual: &[f32],
    out0: &mut Output,
    out1: &mut Output,
    out2: &mut Output,
    cubes0: usize,
    cubes1: usize,
    row_vectors: usize,
    row_stride: usize,
    num_x: usize,
    eps: f32,
    #[comptime] shape: Shape,
    #[define(W)] _dtype: ElemType,
) {
    let cube = CUBE_POS_X as usize;
    if cube < cubes0 {
        one_product::<W, N>(
            x,
            norm,
            w0,
            residual,
            out0,
            cube,
            row_vectors,
            row_stride,
            num_x,
            eps,
            0usize,
            shape,
        );
    } else if cube < cubes0 + cubes1 {
        let cube = cube - cubes0;
        one_product::<W, N>(
            x,
            norm,
            w1,
            residual,
            out1,
            cube,
            row_vectors,
            row_stride,
            num_x,
            eps,
            1usize,
            shape,
        );
    } else {
        let cube = cube - cubes0 - cubes1;
        one_product::<W, N>(
            x,
            norm,
            w2,
            residual,
            out2,
            cube,
            row_vectors,
            row_stride,
            num_x,
            eps,
            2usize,
            shape,
        );
    }
}

/// The product with the weight of a number, and what is added to it.
#[cube]
fn one_product<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    norm: &[Vector<f32, N>],
    w: &[Vector<W, N>],
    residual: &[f32],
    out: &mut Output,
    cube: usize,
    row_vectors: usize,
    row_stride: usize,
    num_x: usize,
    eps: f32,
    #[comptime] number: usize,
    #[comptime] shape: Shape,
) {
    let num_rows = out.rows;
    let first = first_row(cube, shape);
    let mut sums = Array::<f32>::new(comptime!(shape.num_sums()));
    dots::<W, N>(
        x,
        norm,
        w,
        w,
        &mut sums,
        first,
        num_rows,
        row_vectors,
        row_stride,
        num_x,
        eps,
        shape,
    );
    if comptime!(shape.has_bias[number]) {
        add_bias(&mut sums, &out.bias, first, num_rows, shape);
    }
    if comptime!(shape.has_residual) {
        add_rows(&mut sums, residual, first, num_rows, num_x, shape);
    }
    write(&sums, &mut out.y, first, num_rows, num_x, shape);
}

#[cube(launch_unchecked)]
pub(super) fn gated_kernel<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    gate: &[Vector<W, N>],
    up: &[Vector<W, N>],
    y: &mut [f32],
    num_rows: usize,
    row_vectors: usize,
    row_stride: usize,
    num_x: usize,
    #[comptime] shape: Shape,
    #[define(W)] _dtype: ElemType,
) {
    let first = first_row(CUBE_POS_X as usize, shape);
    let mut sums = Array::<f32>::new(comptime!(shape.num_sums()));
    dots::<W, N>(
        x,
        x,
        gate,
        up,
        &mut sums,
        first,
        num_rows,
        row_vectors,
        row_stride,
        num_x,
        0.0,
        shape,
    );
    let up = comptime!(shape.m * shape.rows);
    #[unroll]
    for i in 0..up {
        sums[i] = sums[i] / (1.0 + (-sums[i]).exp()) * sums[up + i];
    }
    write(&sums, y, first, num_rows, num_x, shape);
}

/// The first row of the weight that a plane of a cube computes.
#[cube]
fn first_row(cube: usize, #[comptime] shape: Shape) -> usize {
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let groups = planes / comptime!(shape.planes);
    (cube * groups + plane / comptime!(shape.planes)) * comptime!(shape.rows)
}

/// `x · wᵀ` for the plane's rows of both, in all its units: `[m, rows]`; for a pair of weights `[2, m, rows]`.
#[cube]
fn dots<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    norm: &[Vector<f32, N>],
    w: &[Vector<W, N>],
    second: &[Vector<W, N>],
    results: &mut Array<f32>,
    first: usize,
    num_rows: usize,
    row_vectors: usize,
    row_stride: usize,
    num_x: usize,
    eps: f32,
    #[comptime] shape: Shape,
) {
    // The planes of a row take turns.
    let lanes = PLANE_DIM as usize * comptime!(shape.planes);
    let part = (UNIT_POS / PLANE_DIM) as usize % comptime!(shape.planes);
    let first_x = CUBE_POS_Y as usize * MAX_ROWS;
    let m = comptime!(shape.m);
    let rows = comptime!(shape.rows);
    let unroll = comptime!(shape.unroll);
    let of_one = comptime!(shape.m * shape.rows);
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(shape.num_sums()));
    #[unroll]
    for i in 0..comptime!(shape.num_sums()) {
        sums[i] = Vector::new(0.0);
    }
    // Sums of the squares of each row of `x`.
    let mut squares = Array::<Vector<f32, N>>::new(m);
    #[unroll]
    for r in 0..m {
        squares[r] = Vector::new(0.0);
    }
    let mut i = part * PLANE_DIM as usize + UNIT_POS_PLANE as usize;
    while i < row_vectors {
        let mut weights = Array::<Vector<W, N>>::new(comptime!(shape.unroll * shape.rows));
        let mut others = Array::<Vector<W, N>>::new(comptime!(shape.unroll * shape.rows));
        #[unroll]
        for load in 0..unroll {
            let vector = within(i + load * lanes, row_vectors, shape);
            #[unroll]
            for row in 0..rows {
                // A row past the last one is computed for nothing.
                let at = min(first + row, num_rows - 1) * row_stride + vector;
                weights[load * rows + row] = w[at];
                if comptime!(shape.is_pair) {
                    others[load * rows + row] = second[at];
                }
            }
        }
        #[unroll]
        for load in 0..unroll {
            let vector = within(i + load * lanes, row_vectors, shape);
            #[unroll]
            for r in 0..m {
                let mut values = x[min(first_x + r, num_x - 1) * row_vectors + vector];
                if comptime!(shape.is_ragged) {
                    let exists = f32::cast_from(i + load * lanes < row_vectors);
                    values *= Vector::new(exists);
                }
                if comptime!(shape.has_norm) {
                    squares[r] += values * values;
                    values *= norm[vector];
                }
                #[unroll]
                for row in 0..rows {
                    let weight = Vector::<f32, N>::cast_from(weights[load * rows + row]);
                    sums[r * rows + row] += values * weight;
                    if comptime!(shape.is_pair) {
                        let weight = Vector::<f32, N>::cast_from(others[load * rows + row]);
                        sums[of_one + r * rows + row] += values * weight;
                    }
                }
            }
        }
        i += unroll * lanes;
    }
    let results_len = comptime!(shape.num_sums());
    let mut totals = Array::<f32>::new(comptime!(shape.num_totals()));
    #[unroll]
    for i in 0..results_len {
        totals[i] = plane_sum(add_up::<N>(sums[i]));
    }
    if comptime!(shape.has_norm) {
        #[unroll]
        for r in 0..m {
            totals[results_len + r] = plane_sum(add_up::<N>(squares[r]));
        }
    }
    let (num, planes) = comptime!((shape.num_totals(), shape.planes));
    let mut parts = Shared::<[f32]>::new_slice(comptime!(num_shared_sums(shape.num_totals())));
    sum_of_planes(&mut totals, &mut parts, num, planes);
    let k = (row_vectors * x[0].vector_size()) as f32;
    #[unroll]
    for r in 0..m {
        let mut factor = 1.0f32;
        if comptime!(shape.has_norm) {
            factor = (totals[results_len + r] / k + eps).inverse_sqrt();
        }
        #[unroll]
        for row in 0..rows {
            results[r * rows + row] = totals[r * rows + row] * factor;
            if comptime!(shape.is_pair) {
                results[of_one + r * rows + row] = totals[of_one + r * rows + row] * factor;
            }
        }
    }
}

/// A vector of a row that exists, in place of one past its end.
#[cube]
fn within(vector: usize, row_vectors: usize, #[comptime] shape: Shape) -> usize {
    if comptime!(shape.is_ragged) {
        min(vector, row_vectors - 1)
    } else {
        vector
    }
}

#[cube]
fn add_bias(
    sums: &mut Array<f32>,
    bias: &[f32],
    first: usize,
    num_rows: usize,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for row in 0..comptime!(shape.rows) {
        let value = bias[min(first + row, num_rows - 1)];
        #[unroll]
        for r in 0..comptime!(shape.m) {
            sums[r * comptime!(shape.rows) + row] += value;
        }
    }
}

#[cube]
fn add_rows(
    sums: &mut Array<f32>,
    residual: &[f32],
    first: usize,
    num_rows: usize,
    num_x: usize,
    #[comptime] shape: Shape,
) {
    let first_x = CUBE_POS_Y as usize * MAX_ROWS;
    #[unroll]
    for r in 0..comptime!(shape.m) {
        let start = min(first_x + r, num_x - 1) * num_rows;
        #[unroll]
        for row in 0..comptime!(shape.rows) {
            let at = start + min(first + row, num_rows - 1);
            sums[r * comptime!(shape.rows) + row] += residual[at];
        }
    }
}

/// Writes what exists of the plane's rows.
#[cube]
fn write(
    sums: &Array<f32>,
    y: &mut [f32],
    first: usize,
    num_rows: usize,
    num_x: usize,
    #[comptime] shape: Shape,
) {
    let first_x = CUBE_POS_Y as usize * MAX_ROWS;
    let part = (UNIT_POS / PLANE_DIM) as usize % comptime!(shape.planes);
    if UNIT_POS_PLANE == 0 && part == 0 {
        #[unroll]
        for r in 0..comptime!(shape.m) {
            #[unroll]
            for row in 0..comptime!(shape.rows) {
                if first + row < num_rows && first_x + r < num_x {
                    y[(first_x + r) * num_rows + first + row] =
                        sums[r * comptime!(shape.rows) + row];
                }
            }
        }
    }
}

/// Sum of the values of a vector.
#[cube]
fn add_up<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..vector.vector_size() {
        sum += vector.extract(i);
    }
    sum
}
