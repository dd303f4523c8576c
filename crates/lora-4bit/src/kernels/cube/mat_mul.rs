//! `x · wᵀ` with tensor cores: each cube computes a tile of the result, step by step along the inner dimension.
//!
//! `x` is rounded to the type of the weight on its way into shared memory; sums are f32. While a step is multiplied, the
//! next one is loaded into registers. A result of few tiles is also cut along the inner dimension, and the parts are added
//! up afterwards.

use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cmma;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::empty;

/// Rows, columns and inner values of a tensor core's instruction.
const CORE: usize = 16;
/// Units of a plane.
const PLANE: usize = 32;
/// Values of the weight in a load.
const W_VECTOR: usize = 8;
/// Values by which rows in shared memory are longer, so that their starts lie in different banks.
const SKEW: usize = 8;
/// Cubes that keep a large GPU busy.
const WANTED_CUBES: usize = 396;
/// More parts cost more to add up than they save.
const MAX_SPLITS: usize = 8;

/// The part of the result that a cube computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    rows: usize,
    columns: usize,
    /// Inner values of a step.
    inner: usize,
    /// Planes along the rows and along the columns.
    planes: [usize; 2],
    /// Values of `x` in a load of 16 bytes: 4 in f32; 8 if `x` is rounded beforehand, which pays where many cubes read it.
    x_vector: usize,
}

/// Inner values of a step that every product is made of.
const INNER: usize = 64;

/// For few rows: bound by reading the weight.
const NARROW: Tile = Tile {
    rows: 32,
    columns: 64,
    inner: 128,
    planes: [1, 4],
    x_vector: 4,
};
const MEDIUM: Tile = Tile {
    rows: 64,
    columns: 64,
    inner: 128,
    planes: [2, 2],
    x_vector: 4,
};
/// For many rows: bound by arithmetic.
const WIDE: Tile = Tile {
    rows: 128,
    columns: 128,
    inner: 64,
    planes: [2, 4],
    x_vector: 8,
};

impl Tile {
    const fn units(&self) -> usize {
        self.planes[0] * self.planes[1] * PLANE
    }
}

/// Whether the device has tensor cores for these operands, and [`dense`] can read them.
pub(super) fn supports(x: &CubeTensor, w: &CubeTensor) -> bool {
    let kind = match w.dtype {
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        _ => return false,
    };
    let (m, n, k) = (CORE as u32, CORE as u32, CORE as u32);
    let config = MmaConfig {
        a_type: ElemType::Float(kind),
        b_type: ElemType::Float(kind),
        cd_type: ElemType::Float(FloatKind::F32),
        m,
        n,
        k,
    };
    let hardware = &x.client.properties().hardware;
    let [_, inner] = w.meta.shape().dims();
    x.dtype == DType::F32
        && x.client.features().matmul.cmma.contains(&config)
        && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
        && inner.is_multiple_of(INNER)
        && !w.meta.is_tiled()
        && w.meta.strides()[1] == 1
        && w.meta.strides()[0].is_multiple_of(W_VECTOR)
}

/// `x · wᵀ + bias + residual`: `x [m, k]` f32, `w [n, k]` bf16 or f16 → `[m, n]` f32.
pub(super) fn product(
    x: CubeTensor,
    w: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    let x = burn_cubecl::kernel::into_contiguous(x);
    let ([m, k], [n, _]) = (x.meta.shape().dims(), w.meta.shape().dims());
    let y = empty(&x, [m, n], DType::F32);
    if m * n == 0 {
        return y;
    }
    let mut tile = match m {
        0..=32 => NARROW,
        33..=256 => MEDIUM,
        _ => WIDE,
    };
    if !k.is_multiple_of(tile.inner) {
        tile.inner = INNER;
    }
    let client = x.client.clone();
    let (columns, rows) = (n.div_ceil(tile.columns), m.div_ceil(tile.rows));
    let steps = k / tile.inner;
    let splits = (WANTED_CUBES / (columns * rows)).clamp(1, MAX_SPLITS.min(steps.div_ceil(4)));
    let steps_per_split = steps.div_ceil(splits);
    let splits = steps.div_ceil(steps_per_split);
    let parts = match splits {
        1 => y.clone(),
        _ => empty(&x, [splits, m, n], DType::F32),
    };
    let stride = w.meta.strides()[0] / W_VECTOR;
    let extras = [bias.is_some(), residual.is_some()];
    // Arguments that a kernel has no use for are another one.
    let extra = |tensor: Option<CubeTensor>| {
        tensor.map_or_else(|| x.clone(), burn_cubecl::kernel::into_contiguous)
    };
    let (bias, residual) = (extra(bias), extra(residual));
    let dtype = dtype_to_elem_type(w.dtype);
    let x = match tile.x_vector {
        W_VECTOR => burn_cubecl::kernel::cast(x, w.dtype),
        _ => x,
    };
    let dtypes = [dtype_to_elem_type(x.dtype), dtype];
    // A converted tensor may have longer rows.
    let x_stride = x.meta.strides()[0];
    // SAFETY: rows past the last one are clamped to it when read and left out when written.
    unsafe {
        mat_mul::launch_unchecked(
            &client,
            CubeCount::Static(columns as u32, rows as u32, splits as u32),
            CubeDim::new_1d(tile.units() as u32),
            tile.x_vector,
            x.into_buffer_arg(),
            w.into_buffer_arg(),
            bias.clone().into_buffer_arg(),
            residual.clone().into_buffer_arg(),
            parts.clone().into_buffer_arg(),
            m,
            n,
            x_stride / tile.x_vector,
            stride,
            steps,
            steps_per_split,
            tile,
            extras.map(|extra| extra && splits == 1),
            dtypes,
        );
        if splits > 1 {
            const UNITS: usize = 256;
            sum_parts::launch_unchecked(
                &client,
                CubeCount::Static((m * n).div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                parts.into_buffer_arg(),
                bias.into_buffer_arg(),
                residual.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                m * n,
                n,
                splits,
                extras,
            );
        }
    }
    y
}

#[cube(launch_unchecked)]
fn mat_mul<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    w: &[Vector<W, Const<8>>],
    bias: &[f32],
    residual: &[f32],
    parts: &mut [f32],
    m: usize,
    num_columns: usize,
    x_stride: usize,
    w_stride: usize,
    steps: usize,
    steps_per_split: usize,
    #[comptime] tile: Tile,
    #[comptime] extras: [bool; 2],
    #[define(X, W)] _dtypes: [ElemType; 2],
) {
    let units = comptime!(tile.units());
    let line = comptime!(tile.inner + SKEW);
    let x_line = comptime!(line / tile.x_vector);
    let w_line = comptime!(line / W_VECTOR);
    // Vectors of a row of a step, and loads of a unit.
    let x_vectors = comptime!(tile.inner / tile.x_vector);
    let w_vectors = comptime!(tile.inner / W_VECTOR);
    let x_loads = comptime!(tile.rows * x_vectors / units);
    let w_loads = comptime!(tile.columns * w_vectors / units);
    // Instructions of a plane along its rows and columns.
    let core_rows = comptime!(tile.rows / tile.planes[0] / CORE);
    let core_columns = comptime!(tile.columns / tile.planes[1] / CORE);

    let mut x_stage =
        Shared::<[Vector<W, N>]>::new_aligned_slice(comptime!(tile.rows * x_line), 32usize);
    let mut w_stage = Shared::<[Vector<W, Const<8>>]>::new_aligned_slice(
        comptime!(tile.columns * w_line),
        32usize,
    );
    let mut results =
        Shared::<[f32]>::new_aligned_slice(comptime!(units / PLANE * CORE * CORE), 32usize);

    let unit = UNIT_POS as usize;
    let plane = unit / PLANE;
    let plane_row = plane / comptime!(tile.planes[1]) * comptime!(core_rows * CORE);
    let plane_column = plane % comptime!(tile.planes[1]) * comptime!(core_columns * CORE);
    let first_row = CUBE_POS_Y as usize * comptime!(tile.rows);
    let first_column = CUBE_POS_X as usize * comptime!(tile.columns);
    let first_step = CUBE_POS_Z as usize * steps_per_split;
    let end = min(first_step + steps_per_split, steps);

    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..core_rows * core_columns {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            CORE,
            CORE,
            CORE,
            cmma::MatrixLayout::Undefined,
            0.0,
        ));
    }

    let mut x_next = Array::<Vector<X, N>>::new(x_loads);
    let mut w_next = Array::<Vector<W, Const<8>>>::new(w_loads);
    #[unroll]
    for i in 0..x_loads {
        let at = i * units + unit;
        let row = min(first_row + at / x_vectors, m - 1);
        x_next[i] = x[row * x_stride + first_step * x_vectors + at % x_vectors];
    }
    #[unroll]
    for i in 0..w_loads {
        let at = i * units + unit;
        let row = min(first_column + at / w_vectors, num_columns - 1);
        w_next[i] = w[row * w_stride + first_step * w_vectors + at % w_vectors];
    }
    let mut step = first_step;
    while step < end {
        // The planes have read the step before.
        sync_cube();
        #[unroll]
        for i in 0..x_loads {
            let at = i * units + unit;
            x_stage[at / x_vectors * x_line + at % x_vectors] = Vector::cast_from(x_next[i]);
        }
        #[unroll]
        for i in 0..w_loads {
            let at = i * units + unit;
            w_stage[at / w_vectors * w_line + at % w_vectors] = w_next[i];
        }
        sync_cube();
        step += 1;
        if step < end {
            #[unroll]
            for i in 0..x_loads {
                let at = i * units + unit;
                let row = min(first_row + at / x_vectors, m - 1);
                x_next[i] = x[row * x_stride + step * x_vectors + at % x_vectors];
            }
            #[unroll]
            for i in 0..w_loads {
                let at = i * units + unit;
                let row = min(first_column + at / w_vectors, num_columns - 1);
                w_next[i] = w[row * w_stride + step * w_vectors + at % w_vectors];
            }
        }
        #[unroll]
        for inner in 0..comptime!(tile.inner / CORE) {
            let mut right = Sequence::<cmma::Matrix<Vector<W, Const<8>>>>::new();
            #[unroll]
            for column in 0..core_columns {
                let at =
                    (plane_column + column * CORE) * w_line + inner * comptime!(CORE / W_VECTOR);
                right.push(cmma::Matrix::<Vector<W, Const<8>>>::from_slice(
                    cmma::MatrixIdent::B,
                    CORE,
                    CORE,
                    CORE,
                    cmma::MatrixLayout::ColMajor,
                    &w_stage[at..],
                    comptime!(line as u32),
                ));
            }
            #[unroll]
            for row in 0..core_rows {
                let at =
                    (plane_row + row * CORE) * x_line + inner * comptime!(CORE / tile.x_vector);
                let left = cmma::Matrix::<Vector<W, N>>::from_slice(
                    cmma::MatrixIdent::A,
                    CORE,
                    CORE,
                    CORE,
                    cmma::MatrixLayout::RowMajor,
                    &x_stage[at..],
                    comptime!(line as u32),
                );
                #[unroll]
                for column in 0..core_columns {
                    let sum = &sums[row * core_columns + column];
                    cmma::execute(&left, &right[column], sum, sum);
                }
            }
        }
    }

    let part = CUBE_POS_Z as usize * m * num_columns;
    let mine = plane * comptime!(CORE * CORE);
    let lane = unit % PLANE;
    #[unroll]
    for row in 0..core_rows {
        #[unroll]
        for column in 0..core_columns {
            sync_cube();
            cmma::store(
                &mut results[mine..],
                &sums[row * core_columns + column],
                comptime!(CORE as u32),
                cmma::MatrixLayout::RowMajor,
            );
            sync_cube();
            let top = first_row + plane_row + row * CORE;
            let left = first_column + plane_column + column * CORE;
            #[unroll]
            for i in 0..comptime!(CORE * CORE / PLANE) {
                let at = i * PLANE + lane;
                let (r, c) = (top + at / CORE, left + at % CORE);
                if r < m && c < num_columns {
                    let mut result = results[mine + at];
                    if comptime!(extras[0]) {
                        result += bias[c];
                    }
                    if comptime!(extras[1]) {
                        result += residual[r * num_columns + c];
                    }
                    parts[part + r * num_columns + c] = result;
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn sum_parts(
    parts: &[f32],
    bias: &[f32],
    residual: &[f32],
    y: &mut [f32],
    len: usize,
    n: usize,
    splits: usize,
    #[comptime] extras: [bool; 2],
) {
    if ABSOLUTE_POS < len {
        let mut sum = 0.0f32;
        if comptime!(extras[0]) {
            sum += bias[ABSOLUTE_POS % n];
        }
        if comptime!(extras[1]) {
            sum += residual[ABSOLUTE_POS];
        }
        for split in 0..splits {
            sum += parts[split * len + ABSOLUTE_POS];
        }
        y[ABSOLUTE_POS] = sum;
    }
}
