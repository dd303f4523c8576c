//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU).
//!
//! What a step reads and writes is described by one tensor of integers: [`indices::indices`]. A kernel with
//! parts has a file `shape` or `tile` below them: what it is compiled for.

// For the launches of kernels, which index without checks.
#![allow(unsafe_code)]

mod add_parts;
mod attend;
mod attend_group;
mod attend_tiles;
mod blocks;
pub(super) mod hopper;
pub(super) mod indices;
mod launch;
mod operands;
mod rope;
mod scores;
pub(super) mod splits;
pub(super) mod training;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Cube, DispatchDevice};
use burn::tensor::{DType, Device};
use burn_cubecl::kernel::into_contiguous;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use self::launch::elem_type;
use self::operands::{KeysValues, KeysValuesLaunch, StepList, StepListLaunch};
use super::device_ops::{Context, DeviceOps, NewTokens};

/// Whether the kernels over a cache can run on a device and with heads of this length; otherwise the twins do.
pub(super) fn supports(device: &Device, head_dim: usize) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return false;
    };
    let client = device.client();
    // CubeCL doesn't use plane operations on a CPU's Vulkan device (Mesa's lavapipe), although lavapipe has them. The
    // tests run on lavapipe, so that a variable can say otherwise.
    let has_planes = client.features().plane.contains(Plane::Ops)
        || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some();
    has_planes
        && client.properties().hardware.plane_size_min >= attend::shape::LANES
        && head_dim.is_multiple_of(attend::shape::LANES as usize)
        && head_dim <= attend::shape::MAX_HEAD_DIM
}

impl DeviceOps for Cube {
    fn device_apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        rope::apply_rope(q, k, cos, sin)
    }

    fn device_kv_write(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        new_keys: FloatTensor<Self>,
        new_values: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (new_keys, new_values) = (into_contiguous(new_keys), into_contiguous(new_values));
        let [tokens, kv_heads, head_dim] = new_keys.meta.shape().dims();
        let row = kv_heads * head_dim;
        let len = tokens * row;
        if len > 0 {
            // SAFETY: the wrapper has compared the shapes; slots of a batch exist in the cache. Other handles of the caches
            // see the new rows, as `RecordedAttention` expects.
            unsafe {
                write_rows::launch_unchecked(
                    &new_keys.client.clone(),
                    CubeCount::Static(len.div_ceil(WRITE_UNITS) as u32, 1, 1),
                    CubeDim::new_1d(WRITE_UNITS as u32),
                    KeysValuesLaunch::new(new_keys.into_buffer_arg(), new_values.into_buffer_arg()),
                    StepListLaunch::new(indices.into_buffer_arg(), tokens),
                    KeysValuesLaunch::new(
                        keys.clone().into_buffer_arg(),
                        values.clone().into_buffer_arg(),
                    ),
                    len,
                    row,
                    elem_type(&keys),
                );
            }
        }
        (keys, values)
    }

    fn device_paged_attention(
        q: FloatTensor<Self>,
        context: Context<Self>,
        dtype: DType,
    ) -> FloatTensor<Self> {
        if context.is_wide {
            return hopper::attend(q, context, dtype);
        }
        if context.tiles.num > 0 && attend_tiles::supports(&q, &context.keys) {
            return attend_tiles::attend(q, context, dtype);
        }
        attend::attend(q, None, context, dtype)
    }

    fn device_step_attention(
        q: FloatTensor<Self>,
        new: NewTokens<Self>,
        context: Context<Self>,
        dtype: DType,
    ) -> FloatTensor<Self> {
        if attend_group::supports(&q, &context.keys) {
            return attend_group::attend(q, new, context, dtype);
        }
        attend::attend(q, Some(new), context, dtype)
    }

    fn device_overwrite(old: IntTensor<Self>, new: IntTensor<Self>) -> IntTensor<Self> {
        let len = new.meta.num_elements();
        if len > 0 {
            // SAFETY: the wrapper has compared the lengths.
            unsafe {
                overwrite::launch_unchecked(
                    &new.client.clone(),
                    CubeCount::Static(len.div_ceil(WRITE_UNITS) as u32, 1, 1),
                    CubeDim::new_1d(WRITE_UNITS as u32),
                    new.into_buffer_arg(),
                    old.clone().into_buffer_arg(),
                    len,
                );
            }
        }
        old
    }
}

#[cube(launch_unchecked)]
fn overwrite(from: &[i32], to: &mut [i32], len: usize) {
    if ABSOLUTE_POS < len {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}

/// Units of a cube that copies.
const WRITE_UNITS: usize = 256;

/// A unit for each of `len` elements; `row` are the elements of a token.
#[cube(launch_unchecked)]
fn write_rows<E: Float>(
    new: &KeysValues<f32, Const<1>>,
    step: &StepList,
    cache: &mut KeysValues<E, Const<1>>,
    len: usize,
    row: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let token = ABSOLUTE_POS / row;
        // A token that sees no key isn't one.
        if step.context(token) > 0 {
            let to = step.slot(token) * row + ABSOLUTE_POS % row;
            cache.keys[to] = Vector::cast_from(new.keys[ABSOLUTE_POS]);
            cache.values[to] = Vector::cast_from(new.values[ABSOLUTE_POS]);
        }
    }
}

/// The first GPU that is compiled in.
#[cfg(test)]
pub(super) fn first_gpu() -> Device {
    use burn::tensor::DeviceType;
    let types: &[DeviceType] = &[
        #[cfg(feature = "cuda")]
        DeviceType::Cuda,
        #[cfg(feature = "wgpu")]
        DeviceType::Wgpu,
    ];
    let gpu = types.iter().cloned().flat_map(Device::enumerate).next();
    gpu.expect("a CUDA or WebGPU device")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_run_on_the_first_gpu() {
        let gpu = first_gpu();
        assert!(supports(&gpu, 64) && supports(&gpu, 128));
        assert!(!supports(&gpu, 20) && !supports(&Device::flex(), 64));
    }
}
