//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU).
//!
//! - `mat_vec`: products with few rows of `x`, bound by reading the weight, or with exact factors,
//! - `mat_mul`: products on the tensor cores of NVIDIA's GPUs.
//!
//! Everything else runs with burn's matmul, or as its naive twin, which dequantizes the whole weight on the device.

mod mat_mul;
mod mat_vec;

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::cast;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::Plane;

use super::{ComputeDtype, DenseLayer, DeviceLinearOps, Extra, LinearOps, NormOperand, naive};

/// From how many rows on tensor cores are faster than plain sums.
const MIN_CORE_ROWS: usize = 3;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    MatVec,
    MatMul,
    Burn,
}

impl Method {
    fn of(x: &CubeTensor, w: &CubeTensor, compute: ComputeDtype) -> Self {
        let is_exact = compute != ComputeDtype::Bf16 || w.dtype == DType::F32;
        let is_small = x.meta.shape()[0] < MIN_CORE_ROWS;
        if !is_exact && !is_small {
            return match mat_mul::supports(x, w) {
                true => Self::MatMul,
                false => Self::Burn,
            };
        }
        // Burn multiplies f32 with 10 bits on tensor cores.
        if has_plane_operations(x) && mat_vec::supports(x, w) {
            return Self::MatVec;
        }
        Self::Burn
    }

    /// The method of all weights, if it is the same and they lie in memory alike.
    fn of_all(x: &CubeTensor, weights: &[&CubeTensor], compute: ComputeDtype) -> Option<Self> {
        let method = Self::of(x, weights[0], compute);
        let alike = |w: &&CubeTensor| {
            w.dtype == weights[0].dtype
                && w.meta.strides() == weights[0].meta.strides()
                && Self::of(x, w, compute) == method
        };
        weights.iter().all(alike).then_some(method)
    }
}

impl LinearOps for Cube {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        linear(x, w, None, None, compute)
    }
}

impl DeviceLinearOps for Cube {
    fn device_input_dtype(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> DType {
        match Method::of(&x, &w, compute) {
            Method::MatMul => w.dtype,
            Method::MatVec | Method::Burn => DType::F32,
        }
    }

    fn device_linear(
        x: FloatTensor<Self>,
        layer: DenseLayer<Self>,
        residual: Extra<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let (bias, residual) = (layer.bias.into_option(), residual.into_option());
        linear(x, layer.weight, bias, residual, compute)
    }

    fn device_three_linears(
        x: FloatTensor<Self>,
        first: DenseLayer<Self>,
        second: DenseLayer<Self>,
        third: DenseLayer<Self>,
        norm: NormOperand<Self>,
        compute: ComputeDtype,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>)> {
        let layers = [first, second, third];
        let weights = layers.each_ref().map(|layer| &layer.weight);
        let method = Method::of_all(&x, &weights, compute)?;
        let norm = norm.into_norm();
        // With more rows, reading the norm's weight besides costs more than a norm of its own.
        if norm.is_some() && (method != Method::MatVec || x.meta.shape()[0] > 1) {
            return None;
        }
        let biases = layers.clone().map(|layer| layer.bias.into_option());
        let weights = layers.map(|layer| layer.weight);
        let [a, b, c] = match method {
            Method::MatVec => mat_vec::products(x, norm, weights, biases, None),
            Method::MatMul => mat_mul::three_products(x, weights, biases),
            Method::Burn => return None,
        };
        Some((a, b, c))
    }

    fn device_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> Option<FloatTensor<Self>> {
        match Method::of_all(&x, &[&gate, &up], compute)? {
            Method::MatVec => Some(mat_vec::gated(x, gate, up)),
            Method::MatMul => Some(mat_mul::gated(x, gate, up)),
            Method::Burn => None,
        }
    }
}

impl NormOperand<Cube> {
    fn into_norm(self) -> Option<mat_vec::Norm> {
        let weight = self.weight.into_option()?;
        let eps = self.eps as f32;
        Some(mat_vec::Norm { weight, eps })
    }
}

/// `x · wᵀ + bias + residual`.
fn linear(
    x: CubeTensor,
    w: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    compute: ComputeDtype,
) -> CubeTensor {
    match Method::of(&x, &w, compute) {
        Method::MatVec => {
            let [y] = mat_vec::products(x, None, [w], [bias], residual);
            y
        }
        Method::MatMul => mat_mul::product(x, w, bias, residual),
        Method::Burn => {
            let y = burn_product(x, w, compute);
            let n = y.meta.shape()[1];
            let bias = bias.map(|bias| Cube::float_reshape(bias, Shape::new([1, n])));
            bias.into_iter().chain(residual).fold(y, Cube::float_add)
        }
    }
}

/// `x · wᵀ` in f32, by Burn's own kernels.
fn burn_product(x: CubeTensor, w: CubeTensor, compute: ComputeDtype) -> CubeTensor {
    if compute != ComputeDtype::Bf16 || w.dtype == DType::F32 {
        return naive::dense_linear::<Cube>(x, w);
    }
    let x = cast(x, w.dtype);
    let w = Cube::float_transpose(w);
    match matmul(x, w, None, MatmulStrategy::default(), DType::F32) {
        Ok(y) => y,
        Err(error) => unreachable!("Burn's tuned product takes every shape: {error:?}"),
    }
}

/// A tensor on the same device whose values are not set yet.
fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// Whether units of a plane (a warp) can add up their values.
///
/// CubeCL doesn't use these operations on a CPU's Vulkan device (Mesa's lavapipe), although they work there. The tests run
/// on it, so that a variable can say otherwise.
fn has_plane_operations(x: &CubeTensor) -> bool {
    x.client.features().plane.contains(Plane::Ops)
        || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
}
