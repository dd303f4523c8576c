//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU), outside of autodiff graphs.

// For the launches of kernels, which index without checks.
#![allow(unsafe_code)]

use burn::backend::tensor::FloatTensor;
use burn::backend::{Cube, DispatchDevice};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::DeviceModelOps;

/// Units of a cube.
const UNITS: usize = 256;

/// Whether the kernels can run where a tensor lives.
pub(super) fn supports<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return false;
    };
    // CubeCL doesn't use plane operations on a CPU's Vulkan device (Mesa's lavapipe), although they work there. The tests
    // run on it, so that a variable can say otherwise.
    let has_planes = device.client().features().plane.contains(Plane::Ops)
        || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some();
    x.dtype() == DType::F32 && has_planes
}

impl DeviceModelOps for Cube {
    fn device_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let (x, weight) = (into_contiguous(x), into_contiguous(weight));
        let [rows, dim] = x.meta.shape().dims();
        let y = empty(&x);
        if rows > 0 {
            // SAFETY: a cube for each row; units stay below `dim`.
            unsafe {
                rms_norm::launch_unchecked(
                    &x.client.clone(),
                    CubeCount::Static(rows as u32, 1, 1),
                    CubeDim::new_1d(UNITS as u32),
                    x.into_buffer_arg(),
                    weight.into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    dim,
                    eps as f32,
                );
            }
        }
        y
    }

    fn device_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (x, cos, sin) = (into_contiguous(x), into_contiguous(cos), into_contiguous(sin));
        let [tokens, heads, head_dim] = x.meta.shape().dims();
        let y = empty(&x);
        let pairs = tokens * heads * head_dim / 2;
        if pairs > 0 {
            // SAFETY: units stay below the number of pairs.
            unsafe {
                rotary::launch_unchecked(
                    &x.client.clone(),
                    cubes(pairs),
                    CubeDim::new_1d(UNITS as u32),
                    x.into_buffer_arg(),
                    cos.into_buffer_arg(),
                    sin.into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    pairs,
                    heads,
                    head_dim / 2,
                );
            }
        }
        y
    }

    fn device_silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (into_contiguous(gate), into_contiguous(up));
        let len = gate.meta.num_elements();
        let y = empty(&gate);
        if len > 0 {
            // SAFETY: units stay below the number of elements.
            unsafe {
                silu_mul::launch_unchecked(
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
}

/// The first GPU that is compiled in.
#[cfg(test)]
pub(super) fn first_gpu() -> burn::tensor::Device {
    use burn::tensor::{Device, DeviceType};
    let types = [DeviceType::Cuda, DeviceType::Wgpu];
    let mut devices = types.into_iter().flat_map(Device::enumerate);
    devices.next().expect("a CUDA or WebGPU device")
}

/// A tensor of the same shape whose values are not set yet.
fn empty(like: &CubeTensor) -> CubeTensor {
    let shape: Shape = like.meta.shape().clone();
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, DType::F32)
}

/// Enough cubes for a unit each; two dimensions, since one holds 65,535 on some devices.
fn cubes(units: usize) -> CubeCount {
    let cubes = units.div_ceil(UNITS);
    let rows = cubes.div_ceil(65_535);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

#[cube(launch_unchecked)]
fn rms_norm(x: &[f32], weight: &[f32], y: &mut [f32], dim: usize, eps: f32) {
    let start = CUBE_POS_X as usize * dim;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < dim {
        let value = x[start + i];
        squares += value * value;
        i += UNITS;
    }
    let factor = (sum_of_cube(squares) / dim as f32 + eps).inverse_sqrt();
    let mut i = UNIT_POS as usize;
    while i < dim {
        y[start + i] = x[start + i] * factor * weight[i];
        i += UNITS;
    }
}

/// The sum over all units of a cube, for each of them.
#[cube]
fn sum_of_cube(value: f32) -> f32 {
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
fn rotary(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    y: &mut [f32],
    pairs: usize,
    heads: usize,
    half: usize,
) {
    if ABSOLUTE_POS < pairs {
        let (head, i) = (ABSOLUTE_POS / half, ABSOLUTE_POS % half);
        let angle = head / heads * half + i;
        let at = head * 2 * half + i;
        let (first, second) = (x[at], x[at + half]);
        y[at] = first * cos[angle] - second * sin[angle];
        y[at + half] = second * cos[angle] + first * sin[angle];
    }
}

#[cube(launch_unchecked)]
fn silu_mul(gate: &[f32], up: &[f32], y: &mut [f32], len: usize) {
    if ABSOLUTE_POS < len {
        let value = gate[ABSOLUTE_POS];
        y[ABSOLUTE_POS] = value / (1.0 + (-value).exp()) * up[ABSOLUTE_POS];
    }
}
