//! `x · wᵀ` for a few rows of `x`: each plane multiplies some rows of the weight with up to eight of them.
//!
//! The weight is read once, in the widest loads that the device has; `x` comes from the first-level cache.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::empty;

/// Rows of `x` that a plane takes at once.
pub(super) const MAX_ROWS: usize = 8;

/// Units of a cube (threads of a block).
const UNITS: u32 = 128;

/// Rows of the weight that a plane takes at once, so that a value of `x` serves several.
const WEIGHT_ROWS: usize = 2;

/// Whether [`dense`] can read these tensors.
pub(super) fn supports(x: &CubeTensor, w: &CubeTensor) -> bool {
    x.dtype == DType::F32
        && matches!(w.dtype, DType::F32 | DType::BF16 | DType::F16)
        && rows_are_dense(w)
}

/// Whether the values of each row follow one another.
fn rows_are_dense(w: &CubeTensor) -> bool {
    !w.meta.is_tiled() && w.meta.strides()[1] == 1
}

/// `x [m, k]` f32, `w [n, k]` → `[m, n]` f32.
pub(super) fn dense(x: CubeTensor, w: CubeTensor) -> CubeTensor {
    let x = burn_cubecl::kernel::into_contiguous(x);
    let ([m, k], [n, _]) = (x.meta.shape().dims(), w.meta.shape().dims());
    let client = x.client.clone();
    let y = empty(&x, [m, n], DType::F32);
    if m * n == 0 {
        return y;
    }
    let stride = w.meta.strides()[0];
    // The widest load that divides a row; x takes two of them where the weight is half as wide.
    let vector = client
        .io_optimized_vector_sizes(w.dtype.size())
        .filter(|size| k.is_multiple_of(*size) && stride.is_multiple_of(*size))
        .max()
        .unwrap_or(1);
    let planes = UNITS / client.properties().hardware.plane_size_max;
    let rows_per_cube = planes as usize * WEIGHT_ROWS;
    let dtype = burn::backend::cubecl::dtype_to_elem_type(w.dtype);
    // SAFETY: `k` values of each row exist, and rows past the last are clamped to it.
    unsafe {
        mat_vec::launch_unchecked(
            &client,
            CubeCount::Static(
                n.div_ceil(rows_per_cube) as u32,
                m.div_ceil(MAX_ROWS) as u32,
                1,
            ),
            CubeDim::new_1d(UNITS),
            vector,
            x.into_buffer_arg(),
            w.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            n,
            k / vector,
            stride / vector,
            m,
            m.min(MAX_ROWS),
            dtype,
        );
    }
    y
}

#[cube(launch_unchecked)]
fn mat_vec<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    w: &[Vector<W, N>],
    y: &mut [f32],
    num_rows: usize,
    row_vectors: usize,
    row_stride: usize,
    num_x_rows: usize,
    #[comptime] m: usize,
    #[define(W)] _dtype: ElemType,
) {
    let lane = UNIT_POS_PLANE as usize;
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let first_x = CUBE_POS_Y as usize * MAX_ROWS;
    let first = (CUBE_POS_X as usize * planes + plane) * WEIGHT_ROWS;

    let mut sums = Array::<Vector<f32, N>>::new(m * WEIGHT_ROWS);
    #[unroll]
    for i in 0..m * WEIGHT_ROWS {
        sums[i] = Vector::new(0.0);
    }
    let mut i = lane;
    while i < row_vectors {
        let mut weights = Array::<Vector<f32, N>>::new(WEIGHT_ROWS);
        #[unroll]
        for row in 0..WEIGHT_ROWS {
            // A row past the last one is computed for nothing.
            let row_index = min(first + row, num_rows - 1);
            weights[row] = Vector::cast_from(w[row_index * row_stride + i]);
        }
        #[unroll]
        for r in 0..m {
            let values = x[min(first_x + r, num_x_rows - 1) * row_vectors + i];
            #[unroll]
            for row in 0..WEIGHT_ROWS {
                sums[r * WEIGHT_ROWS + row] += values * weights[row];
            }
        }
        i += PLANE_DIM as usize;
    }
    #[unroll]
    for r in 0..m {
        #[unroll]
        for row in 0..WEIGHT_ROWS {
            let sum = plane_sum(add_up::<N>(sums[r * WEIGHT_ROWS + row]));
            if lane == 0 && first + row < num_rows && first_x + r < num_x_rows {
                y[(first_x + r) * num_rows + first + row] = sum;
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
