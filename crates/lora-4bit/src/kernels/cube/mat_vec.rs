//! Products with a few rows of `x`: each plane multiplies a row or two of the weight with up to eight of them.
//!
//! The weight is read once, in the widest loads that the device has, some of them in flight at a time; `x` comes from the
//! first-level cache. What follows a product in the model is done before the result is written.

mod kernels;
mod shape;

use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::shape::{MAX_ROWS, Shape};
use super::launch::empty;
use super::output::Outputs;
use super::planes::UNITS;

/// Loads of a unit that are in flight together, at most.
const MAX_UNROLL: usize = 12;
/// The same of each weight of a pair. Such products have so many rows that other planes have loads in flight meanwhile.
const MAX_PAIR_UNROLL: usize = 2;

/// Root-mean-square normalisation of the rows of `x`.
pub(super) struct Norm {
    /// `[k]`, f32.
    pub(super) weight: CubeTensor,
    pub(super) eps: f32,
}

/// How to launch a product with `num_rows` rows of weights.
struct Plan {
    vector: usize,
    /// Vectors from a row of the weight to the next one.
    row_stride: usize,
    shape: Shape,
    /// Rows of the weight that a cube computes.
    rows_per_cube: usize,
    /// Cubes along the rows of `x`.
    x_cubes: u32,
}

impl Plan {
    fn new(x: &CubeTensor, w: &CubeTensor, num_rows: usize, is_pair: bool) -> Self {
        let [m, k] = x.meta.shape().dims();
        let stride = w.meta.strides()[0];
        let client = &x.client;
        let lanes = client.properties().hardware.plane_size_max as usize;
        let vector = client
            .io_optimized_vector_sizes(w.dtype.size())
            .filter(|size| k.is_multiple_of(*size) && stride.is_multiple_of(*size))
            .max()
            .unwrap_or(1);
        // Each value of `x` then serves two rows; a pair of weights does so by itself.
        let rows = if m <= 2 || is_pair { 1 } else { 2 };
        // Few rows are too few planes to wait for memory at once.
        let planes = match num_rows * m.div_ceil(MAX_ROWS) / rows {
            0..=1024 => 4,
            1025..=4096 if k >= 4096 => 4,
            1025..=4096 => 2,
            _ => 1,
        };
        let planes = usize::min(planes, UNITS as usize / lanes);
        let loads = (k / vector).div_ceil(lanes * planes);
        let most = if is_pair {
            MAX_PAIR_UNROLL
        } else {
            MAX_UNROLL / rows
        };
        // As few rounds as the registers allow, all alike.
        let unroll = loads.div_ceil(loads.div_ceil(most));
        Self {
            vector,
            row_stride: stride / vector,
            shape: Shape {
                m: m.min(MAX_ROWS),
                rows,
                unroll,
                planes,
                has_bias: [false; 3],
                has_residual: false,
                has_norm: false,
                is_pair,
                is_ragged: !(k / vector).is_multiple_of(lanes * planes * unroll),
            },
            rows_per_cube: UNITS as usize / lanes / planes * rows,
            x_cubes: m.div_ceil(MAX_ROWS) as u32,
        }
    }
}

/// `norm(x) · wᵀ + bias` for up to three weights, and `+ residual` for one: `x [m, k]` f32, `w [n, k]` → `[m, n]` f32.
pub(super) fn products<const N: usize>(
    x: CubeTensor,
    norm: Option<Norm>,
    weights: [CubeTensor; N],
    biases: [Option<CubeTensor>; N],
    residual: Option<CubeTensor>,
) -> [CubeTensor; N] {
    assert!((1..=3).contains(&N) && (N == 1 || residual.is_none()));
    let x = into_contiguous(x);
    let [m, k] = x.meta.shape().dims();
    let rows = |w: &CubeTensor| w.meta.shape()[0];
    let results: [CubeTensor; N] =
        std::array::from_fn(|i| empty(&x, [m, rows(&weights[i])], DType::F32));
    if m * k == 0 {
        return results;
    }

    let dtype = dtype_to_elem_type(weights[0].dtype);
    let mut plan = Plan::new(&x, &weights[0], weights.iter().map(rows).sum(), false);
    let outputs = Outputs::new(&biases, residual, &results);
    (plan.shape.has_bias, plan.shape.has_residual) = (outputs.has_bias, outputs.has_residual);
    plan.shape.has_norm = norm.is_some();
    let (norm, eps) = norm_args(&x, norm);
    let cubes = |i: usize| {
        weights
            .get(i)
            .map_or(0, |w| rows(w).div_ceil(plan.rows_per_cube))
    };
    // The first weight stands in for a missing one.
    let weight = |i: usize| weights.get(i).unwrap_or(&weights[0]).clone();
    let [out0, out1, out2] = outputs.launch;
    // SAFETY: `k` values of each row exist, and rows past the last are clamped to it.
    unsafe {
        kernels::products_kernel::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static((cubes(0) + cubes(1) + cubes(2)) as u32, plan.x_cubes, 1),
            CubeDim::new_1d(UNITS),
            plan.vector,
            x.into_buffer_arg(),
            norm.into_buffer_arg(),
            weight(0).into_buffer_arg(),
            weight(1).into_buffer_arg(),
            weight(2).into_buffer_arg(),
            outputs.residual,
            out0,
            out1,
            out2,
            cubes(0),
            cubes(1),
            k / plan.vector,
            plan.row_stride,
            m,
            eps,
            plan.shape,
            dtype,
        );
    }
    results
}

/// Weight and epsilon of a norm, or arguments that nobody reads.
pub(super) fn norm_args(x: &CubeTensor, norm: Option<Norm>) -> (CubeTensor, f32) {
    match norm {
        Some(Norm { weight, eps }) => (into_contiguous(weight), eps),
        None => (x.clone(), 0.0),
    }
}

/// `silu(x · gateᵀ) · (x · upᵀ)`: `x [m, k]` f32, both weights `[n, k]` → `[m, n]` f32.
pub(super) fn gated(x: CubeTensor, gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    let ([m, k], [n, _]) = (x.meta.shape().dims(), gate.meta.shape().dims());
    let y = empty(&x, [m, n], DType::F32);
    if m * k == 0 {
        return y;
    }
    let plan = Plan::new(&x, &gate, n, true);
    let dtype = dtype_to_elem_type(gate.dtype);
    // SAFETY: as in `products`.
    unsafe {
        kernels::gated_kernel::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static(n.div_ceil(plan.rows_per_cube) as u32, plan.x_cubes, 1),
            CubeDim::new_1d(UNITS),
            plan.vector,
            x.into_buffer_arg(),
            gate.into_buffer_arg(),
            up.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            n,
            k / plan.vector,
            plan.row_stride,
            m,
            plan.shape,
            dtype,
        );
    }
    y
}
