//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU), outside of autodiff graphs.

// For the launches of kernels, which index without checks.
#![allow(unsafe_code)]

mod choose;
mod draw;
mod int8_head;
mod read;

use burn::backend::cubecl::dtype_to_elem_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Cube, DispatchDevice};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

pub(super) use choose::{NONE, top_logits_of};
pub(super) use int8_head::MAX_ROWS as MAX_INT8_ROWS;
pub(super) use read::{PendingWords, queues};

use super::DeviceModelOps;
use super::choice::GpuChoiceOps;

/// Units of a cube.
const UNITS: usize = 256;

/// Whether the kernels can run where a tensor lives.
pub(super) fn supports<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && has_plane_operations(&x.device())
}

/// Whether lm_head `[vocab, hidden]` can be copied in int8.
pub(super) fn can_copy_int8(weight: &Tensor<2>) -> bool {
    int8_head::supports(weight.dims(), weight.dtype()) && has_plane_operations(&weight.device())
}

fn has_plane_operations(device: &Device) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return false;
    };
    // CubeCL doesn't use plane operations on a CPU's Vulkan device (Mesa's lavapipe), although they work there. The tests
    // run on it, so that a variable can say otherwise.
    device.client().features().plane.contains(Plane::Ops)
        || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
}

impl DeviceModelOps for Cube {
    fn device_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        dtype: DType,
    ) -> FloatTensor<Self> {
        let (x, weight) = (into_contiguous(x), into_contiguous(weight));
        let [rows, dim] = x.meta.shape().dims();
        let y = empty_of(&x, [rows, dim], dtype);
        let vector = if dim.is_multiple_of(4) { 4 } else { 1 };
        if rows > 0 {
            // SAFETY: a cube for each row; units stay below `dim`.
            unsafe {
                rms_norm::launch_unchecked(
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

    fn device_rotate_both(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k) = (into_contiguous(q), into_contiguous(k));
        let (cos, sin) = (into_contiguous(cos), into_contiguous(sin));
        let ([tokens, heads, head_dim], [_, kv_heads, _]) =
            (q.meta.shape().dims(), k.meta.shape().dims());
        let (q_out, k_out) = (empty(&q), empty(&k));
        let pairs = tokens * (heads + kv_heads) * head_dim / 2;
        if pairs > 0 {
            // SAFETY: units stay below the number of pairs.
            unsafe {
                rotary::launch_unchecked(
                    &q.client.clone(),
                    cubes(pairs),
                    CubeDim::new_1d(UNITS as u32),
                    q.into_buffer_arg(),
                    k.into_buffer_arg(),
                    cos.into_buffer_arg(),
                    sin.into_buffer_arg(),
                    q_out.clone().into_buffer_arg(),
                    k_out.clone().into_buffer_arg(),
                    pairs,
                    heads,
                    kv_heads,
                    head_dim / 2,
                );
            }
        }
        (q_out, k_out)
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

    fn device_begin(
        weight: FloatTensor<Self>,
        step: IntTensor<Self>,
        chosen: IntTensor<Self>,
        inv_freq: FloatTensor<Self>,
        tokens_at: usize,
        positions_at: usize,
        rows: usize,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let weight = into_contiguous(weight);
        let ([_, hidden], [half]) = (weight.meta.shape().dims(), inv_freq.meta.shape().dims());
        let x = empty_of(&weight, [rows, hidden], DType::F32);
        let angles = || empty_of(&inv_freq, [rows, 1, half], DType::F32);
        let (cos, sin) = (angles(), angles());
        let dtype = dtype_to_elem_type(weight.dtype);
        // SAFETY: units stay below the numbers of elements; tokens are below the size of the vocabulary.
        unsafe {
            begin::launch_unchecked(
                &weight.client.clone(),
                cubes(rows * hidden.max(half)),
                CubeDim::new_1d(UNITS as u32),
                weight.into_buffer_arg(),
                step.into_buffer_arg(),
                chosen.into_buffer_arg(),
                inv_freq.into_buffer_arg(),
                x.clone().into_buffer_arg(),
                cos.clone().into_buffer_arg(),
                sin.clone().into_buffer_arg(),
                rows,
                hidden,
                half,
                tokens_at,
                positions_at,
                scale,
                dtype,
            );
        }
        (x, cos, sin)
    }
}

impl GpuChoiceOps for Cube {
    fn gpu_argmax(logits: FloatTensor<Self>) -> IntTensor<Self> {
        let rows = logits.meta.shape()[0];
        let chosen = empty_of(&logits, [rows], DType::I32);
        Self::gpu_choose(logits, chosen)
    }

    fn gpu_read_ids(ids: IntTensor<Self>) -> PendingWords {
        PendingWords::new(into_contiguous(ids))
    }

    fn gpu_choose(logits: FloatTensor<Self>, chosen: IntTensor<Self>) -> IntTensor<Self> {
        choose::argmax(logits, chosen)
    }

    fn gpu_copy_lm_head(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>) {
        int8_head::copy(weight)
    }

    fn gpu_choose_by_int8(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        eps: f64,
        head: FloatTensor<Self>,
        codes: IntTensor<Self>,
        factors: FloatTensor<Self>,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self> {
        int8_head::argmax(x, (norm, eps as f32), head, (codes, factors), chosen)
    }

    fn gpu_top_logits(logits: FloatTensor<Self>, scales: IntTensor<Self>) -> PendingWords {
        let top = choose::top_logits(logits, into_contiguous(scales), 0);
        PendingWords::new(top.words)
    }

    fn gpu_draw(
        logits: FloatTensor<Self>,
        draws: IntTensor<Self>,
        at: usize,
        num_draws: usize,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self> {
        draw::draw(logits, draws, (at, num_draws), chosen)
    }
}

#[cube(launch_unchecked)]
fn begin<E: Float>(
    weight: &[E],
    step: &[i32],
    chosen: &[i32],
    inv_freq: &[f32],
    x: &mut [f32],
    cos: &mut [f32],
    sin: &mut [f32],
    rows: usize,
    hidden: usize,
    half: usize,
    tokens_at: usize,
    positions_at: usize,
    scale: f32,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < rows * hidden {
        let mut id = step[tokens_at + ABSOLUTE_POS / hidden];
        if id < 0i32 {
            id = chosen[(-1i32 - id) as usize];
        }
        let id = id as usize;
        x[ABSOLUTE_POS] = f32::cast_from(weight[id * hidden + ABSOLUTE_POS % hidden]);
    }
    if ABSOLUTE_POS < rows * half {
        let position = step[positions_at + ABSOLUTE_POS / half] as f32;
        let angle = position * inv_freq[ABSOLUTE_POS % half];
        cos[ABSOLUTE_POS] = angle.cos() * scale;
        sin[ABSOLUTE_POS] = angle.sin() * scale;
    }
}

/// The first GPU that is compiled in.
#[cfg(test)]
pub(crate) fn first_gpu() -> burn::tensor::Device {
    use burn::tensor::{Device, DeviceType};
    let types: &[DeviceType] = &[
        #[cfg(feature = "cuda")]
        DeviceType::Cuda,
        #[cfg(feature = "wgpu")]
        DeviceType::Wgpu,
    ];
    let mut devices = types.iter().cloned().flat_map(Device::enumerate);
    devices.next().expect("a CUDA or WebGPU device")
}

/// A tensor of the same shape whose values are not set yet.
fn empty(like: &CubeTensor) -> CubeTensor {
    empty_of(like, like.meta.shape().clone(), DType::F32)
}

/// A tensor on the same device whose values are not set yet.
fn empty_of(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// Enough cubes for a unit each; two dimensions, since one holds 65,535 on some devices.
fn cubes(units: usize) -> CubeCount {
    let cubes = units.div_ceil(UNITS);
    let rows = cubes.div_ceil(65_535);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

#[cube(launch_unchecked)]
fn rms_norm<Y: Float, N: Size>(
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
    q: &[f32],
    k: &[f32],
    cos: &[f32],
    sin: &[f32],
    q_out: &mut [f32],
    k_out: &mut [f32],
    pairs: usize,
    heads: usize,
    kv_heads: usize,
    half: usize,
) {
    if ABSOLUTE_POS < pairs {
        let (row, i) = (ABSOLUTE_POS / half, ABSOLUTE_POS % half);
        let (token, head) = (row / (heads + kv_heads), row % (heads + kv_heads));
        let (cos, sin) = (cos[token * half + i], sin[token * half + i]);
        if head < heads {
            rotate(
                q,
                q_out,
                (token * heads + head) * 2 * half + i,
                half,
                cos,
                sin,
            );
        } else {
            let row = token * kv_heads + head - heads;
            rotate(k, k_out, row * 2 * half + i, half, cos, sin);
        }
    }
}

/// Turns the pair of elements `at` and `at + half`.
#[cube]
fn rotate(x: &[f32], y: &mut [f32], at: usize, half: usize, cos: f32, sin: f32) {
    let (first, second) = (x[at], x[at + half]);
    y[at] = first * cos - second * sin;
    y[at + half] = second * cos + first * sin;
}

#[cube(launch_unchecked)]
fn silu_mul(gate: &[f32], up: &[f32], y: &mut [f32], len: usize) {
    if ABSOLUTE_POS < len {
        let value = gate[ABSOLUTE_POS];
        y[ABSOLUTE_POS] = value / (1.0 + (-value).exp()) * up[ABSOLUTE_POS];
    }
}
