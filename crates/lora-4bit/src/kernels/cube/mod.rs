//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU).
//!
//! - `mat_vec`: products with few rows of `x`, bound by reading the weight, or with exact factors,
//! - `mat_mul`: products on tensor cores.
//!
//! Everything else runs as its naive twin, which casts or dequantizes the whole weight on the device and multiplies with
//! burn's matmul.

mod mat_mul;
mod mat_vec;

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::Plane;

use super::{ComputeDtype, LinearOps, naive};

impl LinearOps for Cube {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let [m, _] = x.meta.shape().dims();
        let is_exact = compute != ComputeDtype::Bf16 || w.dtype == DType::F32;
        let is_small = m <= mat_vec::MAX_ROWS || is_exact && m <= MAX_EXACT_ROWS;
        if is_small && has_plane_operations(&x) && mat_vec::supports(&x, &w) {
            return mat_vec::dense(x, w);
        }
        if !is_exact && mat_mul::supports(&x, &w) {
            return mat_mul::dense(x, w);
        }
        if compute != ComputeDtype::Bf16 || w.dtype == DType::F32 {
            return naive::dense_linear::<Self>(x, w);
        }
        // Burn's product multiplies in the weight's type; `x` is rounded to it, as every bf16 model does.
        let y = naive::dense_linear::<Self>(cast(x, w.dtype), w);
        cast(y, DType::F32)
    }
}

/// More rows with exact factors are faster in burn's product, although the weight is converted to f32 for it.
const MAX_EXACT_ROWS: usize = 256;

/// A tensor on the same device whose values are not set yet.
fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

fn cast(tensor: CubeTensor, dtype: DType) -> CubeTensor {
    match tensor.dtype == dtype {
        true => tensor,
        false => burn_cubecl::kernel::cast(tensor, dtype),
    }
}

/// Whether units of a plane (a warp) can add up their values.
///
/// CubeCL doesn't use these operations on a CPU's Vulkan device (Mesa's lavapipe), although they work there. The tests run
/// on it, so that a variable can say otherwise.
fn has_plane_operations(x: &CubeTensor) -> bool {
    x.client.features().plane.contains(Plane::Ops)
        || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
}
