//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU).
//!
//! - `mat_vec`: products with few rows of `x`, bound by reading the weight.
//!
//! Everything else runs as its naive twin, which casts or dequantizes the whole weight on the device and multiplies with
//! burn's matmul.

mod mat_vec;

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
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
        if m <= mat_vec::MAX_ROWS && has_plane_operations(&x) && mat_vec::supports(&x, &w) {
            return mat_vec::dense(x, w);
        }
        if compute != ComputeDtype::Bf16 || w.dtype == DType::F32 {
            return naive::dense_linear::<Self>(x, w);
        }
        // Tensor cores multiply in the weight's type; `x` is rounded to it, as every bf16 model does.
        let y = naive::dense_linear::<Self>(cast(x, w.dtype), w);
        cast(y, DType::F32)
    }
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
