//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU). [`Plan`] says which kernel computes a product.
//!
//! - `fused`: a decoder layer's operations in as few launches as possible,
//! - `features`: what a device can do,
//! - `gemm`: products of many rows, both operands read either way, for training,
//! - `elementwise`: RMSNorm and SwiGLU,
//! - `training`: what a training step computes between its products,
//! - `lora`: adapters, another one for each row,
//! - `mat_vec`: products with few rows of `x`, bound by reading the weight, or with exact operands,
//! - `mat_mul`: products on the tensor cores of NVIDIA's GPUs, with adapters in the same launch,
//! - `nf4`: products of few rows with weights in NF4, on tensor cores where there are some, and dequantization, which comes
//!   before all other products with these.
//!
//! `launch`, `planes`, `copy` and `output` have what several of these use.
//!
//! Everything else runs with Burn's matmul or as its naive twin.

// In kernels, an `if` of what is known when they are compiled stays apart from one that they decide.
#![allow(clippy::collapsible_if, clippy::if_same_then_else)]

mod copy;
mod elementwise;
pub(super) mod features;
mod fused;
pub(super) mod gemm;
pub mod launch;
mod lora;
mod mat_mul;
mod mat_vec;
mod nf4;
mod optimizer;
mod output;
mod planes;
mod training;

pub use elementwise::sum_of_cube;
pub(super) use mat_mul::forget_counters;

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::cast;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

use self::features::{features, supports_bf16};
use super::naive;
use super::operand::{Nf4Operand, WeightOperand};
use super::ops::LinearOps;
use super::plan::{Features, Operation, Plan, Product, WeightFormat};
use crate::compute_dtype::ComputeDtype;

impl LinearOps for Cube {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        linear(x, WeightOperand::Dense(w), None, None, compute)
    }

    fn dense_linear_t(
        dy: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let weight = WeightOperand::Dense(w.clone());
        let product = product(Operation::Transposed, &dy, &weight, compute);
        match Plan::choose(&product, &Features::Gpu(features(&dy))) {
            Plan::GpuGemm => gemm::linear_t(dy, w),
            _ => naive::dense_linear_t::<Self>(dy, w),
        }
    }

    fn nf4_linear(
        x: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        linear(x, WeightOperand::Nf4 { weight: w }, None, None, compute)
    }

    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let dtype = match compute {
            ComputeDtype::Bf16 if supports_bf16(&dy) => DType::BF16,
            _ => DType::F32,
        };
        Self::dense_linear_t(dy, nf4::dequantize(w, dtype), compute)
    }

    fn nf4_dequantize(w: Nf4Operand<Self>) -> FloatTensor<Self> {
        nf4::dequantize(w, DType::F32)
    }
}

/// The product of `x` with a weight, as the plan sees it.
fn product(
    operation: Operation,
    x: &CubeTensor,
    w: &WeightOperand<Cube>,
    compute: ComputeDtype,
) -> Product {
    let ([n, k], weight) = match w {
        WeightOperand::Dense(w) => {
            let is_in_rows = !w.meta.is_tiled() && w.meta.strides()[1] == 1;
            let row_stride = is_in_rows.then(|| w.meta.strides()[0]);
            let dtype = w.dtype;
            let format = WeightFormat::Dense { dtype, row_stride };
            (w.meta.shape().dims(), format)
        }
        WeightOperand::Nf4 { weight } => (weight.shape, WeightFormat::Nf4),
    };
    Product {
        operation,
        rows: x.meta.shape()[0],
        n,
        k,
        weight,
        input: x.dtype,
        compute,
    }
}

/// A tensor in f32.
fn f32(x: CubeTensor) -> CubeTensor {
    match x.dtype {
        DType::F32 => x,
        // A converted tensor may have longer rows.
        _ => burn_cubecl::kernel::into_contiguous(cast(x, DType::F32)),
    }
}

/// `x · wᵀ + bias + residual`.
fn linear(
    x: CubeTensor,
    w: WeightOperand<Cube>,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    compute: ComputeDtype,
) -> CubeTensor {
    let product = product(Operation::Forward, &x, &w, compute);
    let plan = Plan::choose(&product, &Features::Gpu(features(&x)));
    let [y] = match (plan, w) {
        (Plan::GpuNf4MatMul, WeightOperand::Nf4 { weight }) => {
            nf4::tiles::products(x, None, [weight], [bias], residual)
        }
        (Plan::GpuNf4MatVec, WeightOperand::Nf4 { weight }) => {
            nf4::products(f32(x), None, [weight], [bias], residual)
        }
        (_, WeightOperand::Nf4 { weight }) => {
            let dtype = match compute {
                ComputeDtype::Bf16 if supports_bf16(&x) => DType::BF16,
                _ => DType::F32,
            };
            let w = WeightOperand::Dense(nf4::dequantize(weight, dtype));
            [linear(x, w, bias, residual, compute)]
        }
        (Plan::GpuMatVec, WeightOperand::Dense(w)) => {
            mat_vec::products(x, None, [w], [bias], residual)
        }
        (Plan::GpuMatMul, WeightOperand::Dense(w)) => {
            let stack = None;
            mat_mul::products(x, [mat_mul::Layer { w, bias, stack }], residual)
        }
        (_, WeightOperand::Dense(w)) => {
            let y = burn_product(x, w, compute);
            let n = y.meta.shape()[1];
            let bias = bias.map(|bias| Cube::float_reshape(bias, Shape::new([1, n])));
            [(bias.into_iter().chain(residual)).fold(y, Cube::float_add)]
        }
    };
    y
}

/// `x · wᵀ` in f32, by Burn's own kernels.
fn burn_product(x: CubeTensor, w: CubeTensor, compute: ComputeDtype) -> CubeTensor {
    if compute != ComputeDtype::Bf16 || w.dtype == DType::F32 {
        return naive::dense_linear::<Cube>(f32(x), w);
    }
    let x = cast(x, w.dtype);
    let w = Cube::float_transpose(w);
    match matmul(x, w, None, MatmulStrategy::default(), DType::F32) {
        Ok(y) => y,
        Err(error) => unreachable!("Burn's product takes every shape: {error:?}"),
    }
}
