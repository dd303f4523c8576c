//! Products with a few rows of `x`: each plane multiplies a row or two of the weight with up to eight of them.
//!
//! The weight is read once, in the widest loads that the device has, some of them in flight at a time; `x` comes from the
//! first-level cache. What follows a product in the model is done before the result is written.

use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::empty;

/// Rows of `x` that a plane takes at once.
pub(super) const MAX_ROWS: usize = 8;

/// Units of a cube (threads of a block).
const UNITS: u32 = 128;

/// Loads of a unit that are in flight together, at most.
const MAX_UNROLL: usize = 8;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows of `x` at once.
    m: usize,
    /// Rows of the weight at once.
    rows: usize,
    /// Loads of each row at once.
    unroll: usize,
    /// Planes that share a row.
    planes: usize,
    /// Whether each of up to three weights has a bias.
    has_bias: [bool; 3],
    has_residual: bool,
    /// Whether `x` is normalised first.
    has_norm: bool,
}

impl Shape {
    /// Sums that the planes of a row add up: the products, and with a norm the squares of `x`.
    fn num_totals(&self) -> usize {
        self.m * self.rows + if self.has_norm { self.m } else { 0 }
    }
}

/// Whether [`products`] can read these tensors.
pub(super) fn supports(x: &CubeTensor, w: &CubeTensor) -> bool {
    x.dtype == DType::F32
        && matches!(w.dtype, DType::F32 | DType::BF16 | DType::F16)
        && !w.meta.is_tiled()
        && w.meta.strides()[1] == 1
}

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
    fn new(x: &CubeTensor, w: &CubeTensor, num_rows: usize) -> Self {
        let [m, k] = x.meta.shape().dims();
        let stride = w.meta.strides()[0];
        let client = &x.client;
        let lanes = client.properties().hardware.plane_size_max as usize;
        let vector = client
            .io_optimized_vector_sizes(w.dtype.size())
            .filter(|size| k.is_multiple_of(*size) && stride.is_multiple_of(*size))
            .max()
            .unwrap_or(1);
        // Each value of `x` then serves two rows.
        let rows = if m <= 2 { 1 } else { 2 };
        // Few rows are too few planes to wait for memory at once.
        let planes = match num_rows * m.div_ceil(MAX_ROWS) / rows {
            0..=1024 => 4,
            1025..=4096 if k >= 4096 => 4,
            1025..=4096 => 2,
            _ => 1,
        };
        let planes = usize::min(planes, UNITS as usize / lanes);
        let loads = k / vector / lanes / planes;
        let most = (MAX_UNROLL / rows).min(loads).max(1);
        // The number of loads that leaves the fewest for the slower loop.
        let unroll = (1..=most)
            .rev()
            .min_by_key(|unroll| loads % unroll * 4 + most - unroll);
        Self {
            vector,
            row_stride: stride / vector,
            shape: Shape {
                m: m.min(MAX_ROWS),
                rows,
                unroll: unroll.unwrap_or(1),
                planes,
                has_bias: [false; 3],
                has_residual: false,
                has_norm: false,
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
    let rows: [usize; 3] = std::array::from_fn(|i| weights.get(i).map_or(0, rows));
    let mut plan = Plan::new(&x, &weights[0], rows.iter().sum());
    plan.shape.has_residual = residual.is_some();
    plan.shape.has_norm = norm.is_some();
    let (norm, eps) = norm_args(&x, norm);
    let cubes = rows.map(|rows| rows.div_ceil(plan.rows_per_cube));
    for (has_bias, bias) in plan.shape.has_bias.iter_mut().zip(&biases) {
        *has_bias = bias.is_some();
    }
    // Arguments that a kernel has no use for are another one.
    let weight = |i: usize| weights.get(i).unwrap_or(&weights[0]).clone();
    let bias = |i: usize| match biases.get(i) {
        Some(Some(bias)) => into_contiguous(bias.clone()),
        _ => x.clone(),
    };
    let result = |i: usize| results.get(i).unwrap_or(&results[0]).clone();
    let residual = residual.map_or_else(|| x.clone(), into_contiguous);
    // SAFETY: `k` values of each row exist, and rows past the last are clamped to it.
    unsafe {
        products_kernel::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static(cubes.iter().sum::<usize>() as u32, plan.x_cubes, 1),
            CubeDim::new_1d(UNITS),
            plan.vector,
            x.clone().into_buffer_arg(),
            norm.into_buffer_arg(),
            weight(0).into_buffer_arg(),
            weight(1).into_buffer_arg(),
            weight(2).into_buffer_arg(),
            bias(0).into_buffer_arg(),
            bias(1).into_buffer_arg(),
            bias(2).into_buffer_arg(),
            residual.into_buffer_arg(),
            result(0).into_buffer_arg(),
            result(1).into_buffer_arg(),
            result(2).into_buffer_arg(),
            rows[0],
            rows[1],
            rows[2],
            cubes[0],
            cubes[1],
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
fn norm_args(x: &CubeTensor, norm: Option<Norm>) -> (CubeTensor, f32) {
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
    let plan = Plan::new(&x, &gate, 2 * n);
    let dtype = dtype_to_elem_type(gate.dtype);
    // SAFETY: as in `products`.
    unsafe {
        gated_kernel::launch_unchecked(
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

#[cube(launch_unchecked)]
fn products_kernel<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    norm: &[Vector<f32, N>],
    w0: &[Vector<W, N>],
    w1: &[Vector<W, N>],
    w2: &[Vector<W, N>],
    bias0: &[f32],
    bias1: &[f32],
    bias2: &[f32],
    residual: &[f32],
    y0: &mut [f32],
    y1: &mut [f32],
    y2: &mut [f32],
    rows0: usize,
    rows1: usize,
    rows2: usize,
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
    let mut sums = Array::<f32>::new(comptime!(shape.m * shape.rows));
    if cube < cubes0 {
        let first = first_row(cube, shape);
        dots::<W, N>(
            x,
            norm,
            w0,
            &mut sums,
            first,
            rows0,
            row_vectors,
            row_stride,
            num_x,
            eps,
            shape,
        );
        if comptime!(shape.has_bias[0]) {
            add_bias(&mut sums, bias0, first, rows0, shape);
        }
        if comptime!(shape.has_residual) {
            add_rows(&mut sums, residual, first, rows0, num_x, shape);
        }
        write(&sums, y0, first, rows0, num_x, shape);
    } else if cube < cubes0 + cubes1 {
        let first = first_row(cube - cubes0, shape);
        dots::<W, N>(
            x,
            norm,
            w1,
            &mut sums,
            first,
            rows1,
            row_vectors,
            row_stride,
            num_x,
            eps,
            shape,
        );
        if comptime!(shape.has_bias[1]) {
            add_bias(&mut sums, bias1, first, rows1, shape);
        }
        write(&sums, y1, first, rows1, num_x, shape);
    } else {
        let first = first_row(cube - cubes0 - cubes1, shape);
        dots::<W, N>(
            x,
            norm,
            w2,
            &mut sums,
            first,
            rows2,
            row_vectors,
            row_stride,
            num_x,
            eps,
            shape,
        );
        if comptime!(shape.has_bias[2]) {
            add_bias(&mut sums, bias2, first, rows2, shape);
        }
        write(&sums, y2, first, rows2, num_x, shape);
    }
}

#[cube(launch_unchecked)]
fn gated_kernel<W: Float, N: Size>(
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
    let mut gates = Array::<f32>::new(comptime!(shape.m * shape.rows));
    let mut ups = Array::<f32>::new(comptime!(shape.m * shape.rows));
    dots::<W, N>(
        x,
        x,
        gate,
        &mut gates,
        first,
        num_rows,
        row_vectors,
        row_stride,
        num_x,
        0.0,
        shape,
    );
    dots::<W, N>(
        x,
        x,
        up,
        &mut ups,
        first,
        num_rows,
        row_vectors,
        row_stride,
        num_x,
        0.0,
        shape,
    );
    #[unroll]
    for i in 0..comptime!(shape.m * shape.rows) {
        gates[i] = gates[i] / (1.0 + (-gates[i]).exp()) * ups[i];
    }
    write(&gates, y, first, num_rows, num_x, shape);
}

/// The first row of the weight that a plane of a cube computes.
#[cube]
fn first_row(cube: usize, #[comptime] shape: Shape) -> usize {
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let groups = planes / comptime!(shape.planes);
    (cube * groups + plane / comptime!(shape.planes)) * comptime!(shape.rows)
}

/// `x · wᵀ` for the plane's rows of both, in all its units: `[m, rows]`.
#[cube]
fn dots<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    norm: &[Vector<f32, N>],
    w: &[Vector<W, N>],
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
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let part = plane % comptime!(shape.planes);
    let first_x = CUBE_POS_Y as usize * MAX_ROWS;
    let m = comptime!(shape.m);
    let rows = comptime!(shape.rows);
    let unroll = comptime!(shape.unroll);
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(shape.m * shape.rows));
    #[unroll]
    for i in 0..m * rows {
        sums[i] = Vector::new(0.0);
    }
    // Sums of the squares of each row of `x`.
    let mut squares = Array::<Vector<f32, N>>::new(m);
    #[unroll]
    for r in 0..m {
        squares[r] = Vector::new(0.0);
    }
    let mut i = part * PLANE_DIM as usize + UNIT_POS_PLANE as usize;
    while i + (unroll - 1) * lanes < row_vectors {
        let mut weights = Array::<Vector<W, N>>::new(comptime!(shape.unroll * shape.rows));
        #[unroll]
        for load in 0..unroll {
            #[unroll]
            for row in 0..rows {
                // A row past the last one is computed for nothing.
                let at = min(first + row, num_rows - 1) * row_stride + i + load * lanes;
                weights[load * rows + row] = w[at];
            }
        }
        #[unroll]
        for load in 0..unroll {
            #[unroll]
            for r in 0..m {
                let mut values = x[min(first_x + r, num_x - 1) * row_vectors + i + load * lanes];
                if comptime!(shape.has_norm) {
                    squares[r] += values * values;
                    values *= norm[i + load * lanes];
                }
                #[unroll]
                for row in 0..rows {
                    let weight = Vector::<f32, N>::cast_from(weights[load * rows + row]);
                    sums[r * rows + row] += values * weight;
                }
            }
        }
        i += unroll * lanes;
    }
    while i < row_vectors {
        #[unroll]
        for r in 0..m {
            let mut values = x[min(first_x + r, num_x - 1) * row_vectors + i];
            if comptime!(shape.has_norm) {
                squares[r] += values * values;
                values *= norm[i];
            }
            #[unroll]
            for row in 0..rows {
                let at = min(first + row, num_rows - 1) * row_stride + i;
                sums[r * rows + row] += values * Vector::<f32, N>::cast_from(w[at]);
            }
        }
        i += lanes;
    }
    let results_len = comptime!(shape.m * shape.rows);
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
    if comptime!(shape.planes > 1) {
        let num = comptime!(shape.num_totals());
        // A plane has at least four units.
        let mut parts =
            Shared::<[f32]>::new_slice(comptime!(UNITS as usize / 4 * shape.num_totals()));
        if UNIT_POS_PLANE == 0 {
            #[unroll]
            for i in 0..num {
                parts[plane * num + i] = totals[i];
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..num {
            let mut sum = 0.0f32;
            #[unroll]
            for other in 0..comptime!(shape.planes) {
                sum += parts[(plane - part + other) * num + i];
            }
            totals[i] = sum;
        }
        sync_cube();
    }
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
        }
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
