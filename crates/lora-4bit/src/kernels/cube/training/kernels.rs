//! The kernels of a training step between the products.

// `#[cube]` makes a module without a comment for each public function.
#![allow(missing_docs)]

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::elementwise::sum_of_cube;
use super::super::launch::UNITS;

#[cube]
fn sum_of_vector<N: Size>(values: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..values.vector_size() {
        sum += values.extract(i);
    }
    sum
}

#[cube(launch_unchecked)]
pub(super) fn norm_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<f32, N>],
    y: &mut [Vector<E, N>],
    rows: usize,
    dim: f32,
    eps: f32,
    #[comptime] vectors: usize,
    #[define(E)] _dtype: ElemType,
) {
    // A cube past the last row writes that one again.
    let start = min(CUBE_POS, rows - 1) * vectors;
    let unit = UNIT_POS as usize;
    let loads = comptime!(vectors.div_ceil(UNITS));
    let mut values = Array::<Vector<f32, N>>::new(loads);
    let mut squares = Vector::<f32, N>::new(0.0);
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        values[load] = Vector::new(0.0);
        if i < vectors {
            values[load] = Vector::cast_from(x[start + i]);
        }
        squares += values[load] * values[load];
    }
    let factor = (sum_of_cube(sum_of_vector(squares)) / dim + eps).inverse_sqrt();
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        if i < vectors {
            y[start + i] = Vector::cast_from(values[load] * Vector::new(factor) * weight[i]);
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn norm_backward_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    weight: &[Vector<f32, N>],
    dy: &[Vector<E, N>],
    residual: &[Vector<E, N>],
    dx: &mut [Vector<E, N>],
    rows: usize,
    dim: f32,
    eps: f32,
    #[comptime] vectors: usize,
    #[comptime] has_residual: bool,
    #[define(E)] _dtype: ElemType,
) {
    let start = min(CUBE_POS, rows - 1) * vectors;
    let unit = UNIT_POS as usize;
    let loads = comptime!(vectors.div_ceil(UNITS));
    let mut values = Array::<Vector<f32, N>>::new(loads);
    let mut gradients = Array::<Vector<f32, N>>::new(loads);
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut products = Vector::<f32, N>::new(0.0);
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        values[load] = Vector::new(0.0);
        gradients[load] = Vector::new(0.0);
        if i < vectors {
            values[load] = Vector::cast_from(x[start + i]);
            gradients[load] = Vector::<f32, N>::cast_from(dy[start + i]) * weight[i];
        }
        squares += values[load] * values[load];
        products += values[load] * gradients[load];
    }
    let squares = sum_of_cube(sum_of_vector(squares));
    // All have read the first sum before the second one's parts may take its memory.
    sync_cube();
    let products = sum_of_cube(sum_of_vector(products));
    let factor = (squares / dim + eps).inverse_sqrt();
    // With x normalised: factor · (g - x · mean(g · x)).
    let mean = products * factor * factor / dim;
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        if i < vectors {
            let mut d = (gradients[load] - values[load] * Vector::new(mean)) * Vector::new(factor);
            if comptime!(has_residual) {
                d += Vector::cast_from(residual[start + i]);
            }
            dx[start + i] = Vector::cast_from(d);
        }
    }
}

/// As on the host, see `Draw`.
#[cube]
fn scramble(x: u32) -> u32 {
    let x = (x ^ (x >> 16u32)) * 0x7feb_352du32;
    let x = (x ^ (x >> 15u32)) * 0x846c_a68bu32;
    x ^ (x >> 16u32)
}

#[cube(launch_unchecked)]
pub(super) fn dropout_kernel<E: Float>(
    x: &[E],
    y: &mut [E],
    len: usize,
    first: u32,
    second: u32,
    threshold: u32,
    keep: f32,
    #[define(E)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let bits = scramble(scramble(at as u32 ^ first) + second);
        let mut value = f32::cast_from(x[at]) * keep;
        if bits < threshold {
            value = 0.0f32;
        }
        y[at] = E::cast_from(value);
    }
}

#[cube(launch_unchecked)]
pub(super) fn rescale_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    factor: &[Vector<f32, N>],
    offset: &[Vector<f32, N>],
    residual: &[Vector<E, N>],
    y: &mut [Vector<E, N>],
    len: usize,
    columns: usize,
    #[comptime] has: [bool; 2],
    #[define(E)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let column = at % columns;
        let mut value = Vector::<f32, N>::cast_from(x[at]) * factor[column];
        if comptime!(has[0]) {
            value += offset[column];
        }
        if comptime!(has[1]) {
            value += Vector::cast_from(residual[at]);
        }
        y[at] = Vector::cast_from(value);
    }
}

#[cube(launch_unchecked)]
pub(super) fn swiglu_kernel<E: Float, N: Size>(
    gate_up: &[Vector<E, N>],
    y: &mut [Vector<E, N>],
    len: usize,
    width: usize,
    #[define(E)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let from = at / width * width + at;
        let gate = Vector::<f32, N>::cast_from(gate_up[from]);
        let up = Vector::<f32, N>::cast_from(gate_up[from + width]);
        let one = Vector::<f32, N>::new(1.0);
        y[at] = Vector::cast_from(gate / (one + (-gate).exp()) * up);
    }
}

#[cube(launch_unchecked)]
pub(super) fn swiglu_backward_kernel<E: Float, N: Size>(
    gate_up: &mut [Vector<E, N>],
    dy: &mut [Vector<E, N>],
    len: usize,
    width: usize,
    #[define(E)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let from = at / width * width + at;
        let gate = Vector::<f32, N>::cast_from(gate_up[from]);
        let up = Vector::<f32, N>::cast_from(gate_up[from + width]);
        let d = Vector::<f32, N>::cast_from(dy[at]);
        let one = Vector::<f32, N>::new(1.0);
        let sigma = one / (one + (-gate).exp());
        let slope = sigma * (one + gate * (one - sigma));
        gate_up[from] = Vector::cast_from(d * up * slope);
        gate_up[from + width] = Vector::cast_from(d * gate * sigma);
        dy[at] = Vector::cast_from(gate * sigma * up);
    }
}

/// An adapter of a layer, and its place among those of a group.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Adapter {
    /// `[ranks, k]`.
    pub(super) a: Box<[f32]>,
    /// `[ranks, rows]`.
    pub(super) b_t: Box<[f32]>,
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) rank: usize,
    pub(super) ranks: usize,
    pub(super) scaling: f32,
}

#[cube]
impl Adapter {
    fn value_of_a(&self, rank: usize, column: usize, k: usize) -> f32 {
        let mut value = 0.0f32;
        if rank >= self.rank && rank < self.rank + self.ranks {
            value = self.a[(rank - self.rank) * k + column];
        }
        value
    }

    fn value_of_b(&self, row: usize, rank: usize) -> f32 {
        let mut value = 0.0f32;
        if rank >= self.rank
            && rank < self.rank + self.ranks
            && row >= self.row
            && row < self.row + self.rows
        {
            value = self.b_t[(rank - self.rank) * self.rows + row - self.row] * self.scaling;
        }
        value
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn stack_kernel<E: Float>(
    first: &Adapter,
    second: &Adapter,
    third: &Adapter,
    a: &mut [E],
    b: &mut [E],
    len: usize,
    k: usize,
    ranks: usize,
    #[define(E)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < ranks * k {
        let (rank, column) = (at / k, at % k);
        let value = first.value_of_a(rank, column, k)
            + second.value_of_a(rank, column, k)
            + third.value_of_a(rank, column, k);
        a[at] = E::cast_from(value);
    } else if at < len {
        let at = at - ranks * k;
        let (row, rank) = (at / ranks, at % ranks);
        let value = first.value_of_b(row, rank)
            + second.value_of_b(row, rank)
            + third.value_of_b(row, rank);
        b[at] = E::cast_from(value);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn gradients_kernel(
    da: &[f32],
    db: &[f32],
    a: &mut [f32],
    b_t: &mut [f32],
    len: usize,
    k: usize,
    rows: usize,
    row: usize,
    rank: usize,
    ranks: usize,
    da_columns: usize,
    db_columns: usize,
    scaling: f32,
    #[comptime] adds: bool,
) {
    let at = ABSOLUTE_POS;
    if at < ranks * k {
        let value = da[at % k * da_columns + rank + at / k];
        if adds {
            a[at] += value;
        } else {
            a[at] = value;
        }
    } else if at < len {
        let at = at - ranks * k;
        let value = db[(row + at % rows) * db_columns + rank + at / rows] * scaling;
        if adds {
            b_t[at] += value;
        } else {
            b_t[at] = value;
        }
    }
}
