//! RMSNorm and SwiGLU.

// `#[cube]` makes a module without a comment for each public function.
#![allow(missing_docs)]

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::launch::{UNITS, cubes, empty};
use crate::kernels::device_ops::GpuElementwiseOps;

impl GpuElementwiseOps for Cube {
    fn gpu_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        dtype: DType,
    ) -> FloatTensor<Self> {
        rms_norm(x, weight, eps, dtype)
    }

    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu(gate, up)
    }
}

/// `x / rms(x) * weight` per row: `[rows, dim]` f32, weight `[dim]` f32 → `[rows, dim]` of type `dtype`.
pub(super) fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f64, dtype: DType) -> CubeTensor {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let [rows, dim] = x.meta.shape().dims();
    let y = empty(&x, [rows, dim], dtype);
    let vector = if dim.is_multiple_of(4) { 4 } else { 1 };
    if rows > 0 {
        // SAFETY: a cube for each row; units stay below `dim`.
        unsafe {
            rms_norm_kernel::launch_unchecked(
                &x.client.clone(),
                cubes(rows * UNITS),
                CubeDim::new_1d(UNITS as u32),
                vector,
                x.into_buffer_arg(),
                weight.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                rows,
                dim as f32,
                eps as f32,
                dim / vector,
                dtype_to_elem_type(dtype),
            );
        }
    }
    y
}

/// `silu(gate) * up`, elementwise, f32.
pub(super) fn swiglu(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let (gate, up) = (into_contiguous(gate), into_contiguous(up));
    let len = gate.meta.num_elements();
    let y = empty(&gate, gate.meta.shape().clone(), DType::F32);
    if len > 0 {
        // SAFETY: units stay below the number of elements.
        unsafe {
            swiglu_kernel::launch_unchecked(
                &gate.client.clone(),
                cubes(len),
                CubeDim::new_1d(UNITS as u32),
                gate.into_buffer_arg(),
                up.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                len,
            );
        }
    }
    y
}

#[cube(launch_unchecked)]
fn rms_norm_kernel<Y: Float, N: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    y: &mut [Vector<Y, N>],
    rows: usize,
    dim: f32,
    eps: f32,
    #[comptime] vectors: usize,
    #[define(Y)] _dtype: ElemType,
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
            values[load] = x[start + i];
        }
        squares += values[load] * values[load];
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..squares.vector_size() {
        sum += squares.extract(i);
    }
    let factor = (sum_of_cube(sum) / dim + eps).inverse_sqrt();
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        if i < vectors {
            y[start + i] = Vector::cast_from(values[load] * Vector::new(factor) * weight[i]);
        }
    }
}

/// The sum over all units of a cube of at most 256, for each of them.
#[cube]
pub fn sum_of_cube(value: f32) -> f32 {
    // A plane has at least four units.
    let mut sums = Shared::<[f32]>::new_slice(comptime!(UNITS / 4));
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let sum = plane_sum(value);
    if UNIT_POS_PLANE == 0 {
        sums[(UNIT_POS / PLANE_DIM) as usize] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    for plane in 0..planes {
        total += sums[plane];
    }
    total
}

#[cube(launch_unchecked)]
fn swiglu_kernel(gate: &[f32], up: &[f32], y: &mut [f32], len: usize) {
    if ABSOLUTE_POS < len {
        let value = gate[ABSOLUTE_POS];
        y[ABSOLUTE_POS] = value / (1.0 + (-value).exp()) * up[ABSOLUTE_POS];
    }
}
