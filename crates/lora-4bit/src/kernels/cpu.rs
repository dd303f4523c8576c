//! Kernels of Burn's flex backend. [`Plan`] says which one computes a product.
//!
//! Weights are read as they are stored, a tile at a time, and never copied whole: bf16 and f16 are widened in registers
//! or, when a tile serves many rows of `x`, in a scratch buffer that fits the cache; NF4 codes are looked up in a table
//! of 16 levels that lies in a register. Products are accumulated in f32.
//!
//! - `forward`: `x · wᵀ`,
//! - `transposed`: `dy · w`,
//! - `lora`: an adapter's product and its gradients,
//! - `pairs`: both with bf16 operands; `forward` has one with NF4 and integers,
//! - `tiles`: `x · wᵀ` with AMX and a bf16 weight,
//! - `nf4`: ranges of an NF4 weight,
//! - `elementwise`: RMSNorm and SwiGLU,
//! - `product`: the operands of a product, and its result,
//! - `simd`: the inner loops for AVX-512, AVX2, NEON and any other CPU.

mod aligned;
pub(super) mod elementwise;
mod forward;
mod lora;
mod nf4;
mod pairs;
mod product;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod transposed;

pub(super) use self::lora::{LoraState, base, base_t};

use std::sync::OnceLock;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};
use half::{bf16, f16};

use self::product::{ProductShape, activations, operands, product, there};
use self::simd::ints::IntKernels;
use self::simd::pairs::PairKernels;
use self::simd::{Element, Kernels, Nf4Rows};
use super::naive;
use super::operand::{Adapters, LayerOperand, Maybe, Nf4Operand, WeightOperand};
use super::ops::LinearOps;
use super::plan::{CpuFeatures, Features, Operation, Plan, Product, WeightFormat};
use crate::compute_dtype::ComputeDtype;
use crate::device::is_untracked_cpu;

/// What this CPU can do.
pub(super) fn features() -> CpuFeatures {
    static FEATURES: OnceLock<CpuFeatures> = OnceLock::new();
    *FEATURES.get_or_init(|| CpuFeatures {
        integers: IntKernels::get(1).is_some(),
        bf16_pairs: PairKernels::get().is_some(),
        #[cfg(target_arch = "x86_64")]
        amx: tiles::are_available(),
        #[cfg(not(target_arch = "x86_64"))]
        amx: false,
    })
}

/// How this CPU computes a product.
fn plan(
    operation: Operation,
    rows: usize,
    [n, k]: [usize; 2],
    weight: WeightFormat,
    compute: ComputeDtype,
) -> Plan {
    let product = Product {
        operation,
        rows,
        n,
        k,
        weight,
        input: DType::F32,
        compute,
    };
    Plan::choose(&product, &Features::Cpu(features()))
}

impl LinearOps for Flex {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let Some((x, w)) = operands(&x, &w) else {
            return naive::dense_linear::<Self>(x, w);
        };
        product(&x, w.layout().shape()[0], |x, shape, y| match w.dtype() {
            DType::BF16 => forward_dense(x, w.storage::<bf16>(), shape, compute, y),
            DType::F16 => forward_dense(x, w.storage::<f16>(), shape, compute, y),
            _ => forward_dense(x, w.storage::<f32>(), shape, compute, y),
        })
    }

    fn dense_linear_t(
        dy: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let Some((dy, w)) = operands(&dy, &w) else {
            return naive::dense_linear_t::<Self>(dy, w);
        };
        product(&dy, w.layout().shape()[1], |dy, shape, dx| {
            match w.dtype() {
                DType::BF16 => transposed_dense(dy, w.storage::<bf16>(), shape, compute, dx),
                DType::F16 => transposed_dense(dy, w.storage::<f16>(), shape, compute, dx),
                _ => transposed_dense(dy, w.storage::<f32>(), shape, compute, dx),
            }
        })
    }

    fn nf4_linear(
        x: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let (Some(x), Some(rows)) = (activations(&x), Nf4Rows::new(&w)) else {
            return naive::nf4_linear::<Self>(x, w);
        };
        product(&x, w.shape[0], |x, shape, y| {
            let kernels = Kernels::get();
            let format = WeightFormat::Nf4;
            match plan(Operation::Forward, shape.m, w.shape, format, compute) {
                Plan::CpuBf16Pairs => {
                    pairs::forward(x, &pairs::Nf4::new(rows, w.shape[1]), shape, y);
                }
                Plan::CpuIntegers => {
                    let kernels = there(IntKernels::get(shape.m));
                    forward::nf4_ints(kernels, x, rows, shape, y);
                }
                _ => forward::nf4(kernels, x, rows, shape, y),
            }
        })
    }

    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let (Some(dy), Some(rows)) = (activations(&dy), Nf4Rows::new(&w)) else {
            return naive::nf4_linear_t::<Self>(dy, w);
        };
        product(&dy, w.shape[1], |dy, shape, dx| {
            let kernels = Kernels::get();
            let format = WeightFormat::Nf4;
            match plan(Operation::Transposed, shape.m, w.shape, format, compute) {
                Plan::CpuBf16Pairs => {
                    pairs::transposed(dy, &pairs::Nf4::new(rows, w.shape[1]), shape, dx);
                }
                _ => transposed::nf4(kernels, dy, rows, shape, dx),
            }
        })
    }
}

/// The first half of an MLP in one pass, on the plain CPU backend.
#[backend_extension(Flex)]
pub(super) trait SwiGluOps: Backend {
    /// `silu(x · gateᵀ) · (x · upᵀ)` with tiles: `[m, k]` f32, `[n, k]` bf16 twice → `[m, n]`.
    fn dense_swiglu(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        plan: Plan,
    ) -> FloatTensor<Self>;
}

/// `silu(x · gateᵀ) · (x · upᵀ)`, if the plan has one kernel for it: neither product goes through memory by itself.
///
/// # Shapes
///
/// `x [m, k]`, weights `[n, k]` → `[m, n]`
pub(super) fn swiglu_at_once(
    x: &Tensor<2>,
    [gate, up]: [&LayerOperand<Dispatch>; 2],
) -> Option<Tensor<2>> {
    let compute = gate.compute;
    if up.compute != compute {
        return None;
    }
    let dense = |layer: &LayerOperand<Dispatch>| match layer {
        LayerOperand {
            weight: WeightOperand::Dense(weight),
            bias: Maybe::None,
            adapters: Adapters::None,
            ..
        } => Some(Tensor::<2>::from_dispatch(weight.clone())),
        _ => None,
    };
    let (gate, up) = (dense(gate)?, dense(up)?);
    let on_cpu = [x, &gate, &up].into_iter().all(is_untracked_cpu);
    if !on_cpu || x.dtype() != DType::F32 || gate.dtype() != up.dtype() || gate.dims() != up.dims()
    {
        return None;
    }
    let format = WeightFormat::dense(gate.dtype(), gate.dims()[1]);
    match plan(Operation::SwiGlu, x.dims()[0], gate.dims(), format, compute) {
        Plan::Separate => None,
        plan => {
            let [x, gate, up] = [x.clone(), gate, up].map(Tensor::into_dispatch);
            let y = <Dispatch as SwiGluOps>::dense_swiglu(x, gate, up, plan);
            Some(Tensor::from_dispatch(y))
        }
    }
}

impl SwiGluOps for Flex {
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(unused_variables, reason = "no such kernels")
    )]
    fn dense_swiglu(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        plan: Plan,
    ) -> FloatTensor<Self> {
        #[cfg(target_arch = "x86_64")]
        if let (Some((x, gate)), Some((_, up))) = (operands(&x, &gate), operands(&x, &up)) {
            let parts = match plan {
                Plan::CpuAmxRounded => tiles::Parts::One,
                _ => tiles::Parts::Three,
            };
            let columns = gate.layout().shape()[0];
            let weights = [gate.storage::<bf16>(), up.storage::<bf16>()];
            return product(&x, columns, |x, shape, y| {
                tiles::gated(parts, x, weights, shape, y);
            });
        }
        naive::dense_swiglu::<Self>(x, gate, up)
    }
}

fn forward_dense<E: Element>(
    x: &[f32],
    values: &[E],
    shape: ProductShape,
    compute: ComputeDtype,
    y: *mut f32,
) {
    let kernels = Kernels::get();
    let (k, n) = (shape.inner, shape.columns);
    let format = WeightFormat::dense(E::DTYPE, k);
    match plan(Operation::Forward, shape.m, [n, k], format, compute) {
        #[cfg(target_arch = "x86_64")]
        Plan::CpuAmxExact => {
            tiles::forward(tiles::Parts::Three, x, there(E::as_bf16(values)), shape, y);
        }
        #[cfg(target_arch = "x86_64")]
        Plan::CpuAmxRounded => {
            tiles::forward(tiles::Parts::One, x, there(E::as_bf16(values)), shape, y);
        }
        Plan::CpuBf16Pairs => pairs::forward(x, &pairs::Dense::new(values, k), shape, y),
        _ => forward::dense(kernels, x, values, shape, y),
    }
}

fn transposed_dense<E: Element>(
    dy: &[f32],
    values: &[E],
    shape: ProductShape,
    compute: ComputeDtype,
    dx: *mut f32,
) {
    let kernels = Kernels::get();
    let (n, k) = (shape.inner, shape.columns);
    let format = WeightFormat::dense(E::DTYPE, k);
    match plan(Operation::Transposed, shape.m, [n, k], format, compute) {
        Plan::CpuBf16Pairs => pairs::transposed(dy, &pairs::Dense::new(values, k), shape, dx),
        _ => transposed::dense(kernels, dy, values, shape, dx),
    }
}
