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
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Scalar, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::{ComputeDtype, DenseLayer, DeviceLinearOps, Extra, LinearOps, NormOperand, naive};

/// From how many rows on tensor cores are faster than plain sums.
const MIN_CORE_ROWS: usize = 5;

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
        if !is_exact && !is_small && mat_mul::supports(x, w) {
            return Self::MatMul;
        }
        // Burn multiplies f32 with 10 bits on tensor cores.
        if has_plane_operations(x) && mat_vec::supports(x, w) {
            return Self::MatVec;
        }
        Self::Burn
    }
}

impl LinearOps for Cube {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        match Method::of(&x, &w, compute) {
            Method::MatVec => {
                let [y] = mat_vec::products(x, None, [w], [None], None);
                y
            }
            Method::MatMul => mat_mul::product(x, w, None, None),
            Method::Burn => naive::dense_linear::<Self>(x, w),
        }
    }
}

impl DeviceLinearOps for Cube {
    fn device_linear(
        x: FloatTensor<Self>,
        layer: DenseLayer<Self>,
        residual: Extra<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        linear(x, layer, residual.into_option(), compute)
    }

    fn device_three_linears(
        x: FloatTensor<Self>,
        first: DenseLayer<Self>,
        second: DenseLayer<Self>,
        third: DenseLayer<Self>,
        norm: NormOperand<Self>,
        compute: ComputeDtype,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let layers = [first, second, third];
        let dtype = layers[0].weight.dtype;
        let together = layers.iter().all(|layer| {
            layer.weight.dtype == dtype
                && layer.weight.meta.strides() == layers[0].weight.meta.strides()
                && Method::of(&x, &layer.weight, compute) == Method::MatVec
        });
        let [a, b, c] = if together {
            let biases = layers.clone().map(|layer| layer.bias.into_option());
            let weights = layers.map(|layer| layer.weight);
            mat_vec::products(x, norm.into_norm(), weights, biases, None)
        } else {
            let x = norm.apply(x);
            layers.map(|layer| linear(x.clone(), layer, None, compute))
        };
        (a, b, c)
    }

    fn device_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let methods = [&gate, &up].map(|w| Method::of(&x, w, compute));
        let alike = gate.dtype == up.dtype && gate.meta.strides() == up.meta.strides();
        if methods == [Method::MatVec; 2] && alike {
            return mat_vec::gated(x, gate, up);
        }
        let plain = |w: CubeTensor| DenseLayer {
            weight: w,
            bias: Extra::None,
        };
        let gate = linear(x.clone(), plain(gate), None, compute);
        let up = linear(x, plain(up), None, compute);
        silu_mul(gate, up)
    }
}

impl NormOperand<Cube> {
    fn into_norm(self) -> Option<mat_vec::Norm> {
        let weight = self.weight.into_option()?;
        let eps = self.eps as f32;
        Some(mat_vec::Norm { weight, eps })
    }

    /// The norm by itself.
    fn apply(self, x: CubeTensor) -> CubeTensor {
        let Some(weight) = self.weight.into_option() else {
            return x;
        };
        let k = x.meta.shape()[1];
        let mean_square = Cube::float_mean_dim(Cube::float_mul(x.clone(), x.clone()), 1);
        let shifted = Cube::float_add_scalar(mean_square, Scalar::from(self.eps));
        let normed = Cube::float_div(x, Cube::float_sqrt(shifted));
        Cube::float_mul(normed, Cube::float_reshape(weight, Shape::new([1, k])))
    }
}

/// `x · wᵀ + bias + residual`.
fn linear(
    x: CubeTensor,
    layer: DenseLayer<Cube>,
    residual: Option<CubeTensor>,
    compute: ComputeDtype,
) -> CubeTensor {
    let (w, bias) = (layer.weight, layer.bias.into_option());
    match Method::of(&x, &w, compute) {
        Method::MatVec => {
            let [y] = mat_vec::products(x, None, [w], [bias], residual);
            y
        }
        Method::MatMul => mat_mul::product(x, w, bias, residual),
        Method::Burn => {
            let y = naive::dense_linear::<Cube>(x, w);
            let n = y.meta.shape()[1];
            let bias = bias.map(|bias| Cube::float_reshape(bias, Shape::new([1, n])));
            bias.into_iter().chain(residual).fold(y, Cube::float_add)
        }
    }
}

/// `silu(gate) · up`, elementwise, of two contiguous tensors; in place of the first.
fn silu_mul(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    const UNITS: usize = 256;
    let len = gate.meta.num_elements();
    if len > 0 {
        // SAFETY: units stay below the number of elements.
        unsafe {
            silu_mul_kernel::launch_unchecked(
                &gate.client,
                CubeCount::Static(len.div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                gate.clone().into_buffer_arg(),
                up.into_buffer_arg(),
                len,
            );
        }
    }
    gate
}

#[cube(launch_unchecked)]
fn silu_mul_kernel(gate: &mut [f32], up: &[f32], len: usize) {
    if ABSOLUTE_POS < len {
        let value = gate[ABSOLUTE_POS];
        gate[ABSOLUTE_POS] = value / (1.0 + (-value).exp()) * up[ABSOLUTE_POS];
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
