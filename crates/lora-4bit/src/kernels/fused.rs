//! The operations of a decoder layer around its products. Each computes what its name says on every device: on a GPU in as few
//! launches as its kernels allow, elsewhere and in autodiff graphs one product after the other.

use burn::backend::Dispatch;
#[cfg(feature = "gpu")]
use burn::backend::{DispatchAutodiffContext, ExtensionType};
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

#[cfg(feature = "gpu")]
use super::device_ops::FusedOps;
use super::elementwise::{add, add_bias, rms_norm, swiglu};
use super::norm::Norm;
use super::operand::{Adapters, LayerOperand, WeightOperand};
#[cfg(feature = "gpu")]
use super::operand::{Maybe, NormOperand};
use super::ops::LoraOps;
use super::products::{dense_linear, lora_add, nf4_linear};
use super::{cpu, naive};
use crate::compute_dtype::ComputeDtype;
use crate::device::{is_f32_on_cpu, is_untracked_cpu};

/// Whether [`FusedOps`] take an input and its layers.
#[cfg(feature = "gpu")]
fn is_fused(x: &Tensor<2>, layers: &[&LayerOperand<Dispatch>]) -> bool {
    super::cube::features::has_plane_operations(&x.device())
        && (layers.iter())
            .all(|layer| is_untracked(*layer) && !matches!(layer.adapters, Adapters::One { .. }))
}

/// Whether an operand takes part in no autodiff graph.
#[cfg(feature = "gpu")]
fn is_untracked<T: ExtensionType<Dispatch, Target = T>>(operand: &T) -> bool {
    T::autodiff_context(operand) == DispatchAutodiffContext::Disabled
}

/// The type that [`linear`] takes its input in without a conversion: f32, or on a GPU the type that the product rounds f32 to.
///
/// # Shapes
///
/// `x [rows, k]`: of the tensor only the shape, the type and the device are read.
pub(crate) fn input_dtype(x: &Tensor<2>, layer: LayerOperand<Dispatch>) -> DType {
    #[cfg(feature = "gpu")]
    if is_fused(x, &[&layer]) {
        return <Dispatch as FusedOps>::input_dtype(x.clone().into_dispatch(), layer);
    }
    let _ = (x, layer);
    DType::F32
}

/// `x · wᵀ + bias`, the product of each row's adapter, and the residual.
///
/// # Shapes
///
/// `x [rows, k]`, `residual [rows, n]` f32 → `[rows, n]` f32
pub(crate) fn linear(
    x: Tensor<2>,
    layer: LayerOperand<Dispatch>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let [n, k] = layer.weight.shape();
    let _span = trace_span!("linear", n, k).entered();
    layer.check("linear", x.dims());
    if let Some(residual) = &residual {
        assert_eq!(residual.dims(), [x.dims()[0], n], "linear: residual");
        assert_eq!(residual.dtype(), DType::F32, "linear: type of the residual");
    }
    #[cfg(feature = "gpu")]
    if is_fused(&x, &[&layer]) && is_untracked(&Maybe::new(residual.as_ref())) {
        let residual = Maybe::new(residual.as_ref());
        let y = <Dispatch as FusedOps>::linear(x.into_dispatch(), layer, residual);
        return Tensor::from_dispatch(y);
    }
    let y = with_adapters(x, layer); // [rows, n]
    match residual {
        Some(residual) => add(residual, y),
        None => y,
    }
}

/// `x · wᵀ + bias` and the product of each row's adapter, one operation after the other, except for one adapter on the CPU.
fn with_adapters(x: Tensor<2>, layer: LayerOperand<Dispatch>) -> Tensor<2> {
    if is_f32_on_cpu(&x) && layer.is_frozen_with_adapter() {
        let y = <Dispatch as LoraOps>::linear_with_adapter(x.into_dispatch(), layer);
        return Tensor::from_dispatch(y);
    }
    let y = product(x.clone(), layer.weight, layer.compute); // [rows, n]
    let y = match layer.bias.into_option() {
        Some(bias) => add_bias(y, Tensor::from_dispatch(bias)), // [rows, n]
        None => y,
    };
    match layer.adapters {
        Adapters::None => y,
        Adapters::Stack { stack } => {
            let y = naive::add_stacked::<Dispatch>(y.into_dispatch(), x.into_dispatch(), stack);
            Tensor::from_dispatch(y)
        }
        Adapters::One { a, b, scaling } => {
            let [a, b] = [a, b].map(Tensor::from_dispatch);
            lora_add(y, x, a, b, scaling)
        }
    }
}

/// `norm(x) · wᵀ + bias` for three layers with the same input, each with its adapters.
///
/// # Shapes
///
/// `x [rows, k]` f32 → `[rows, n]` f32 for each layer
pub(crate) fn norm_linears(
    x: &Tensor<2>,
    norm: Norm<'_>,
    layers: [LayerOperand<Dispatch>; 3],
) -> [Tensor<2>; 3] {
    let _span = trace_span!("norm_linears").entered();
    for layer in &layers {
        layer.check("norm_linears", x.dims());
    }
    #[cfg(feature = "gpu")]
    if is_fused(x, &layers.each_ref()) && norm.is_on_gpu(x) {
        let [first, second, third] = layers;
        let (x, norm) = (x.clone().into_dispatch(), NormOperand::new(norm));
        let (a, b, c) = <Dispatch as FusedOps>::norm_linears(x, norm, first, second, third);
        return [a, b, c].map(Tensor::from_dispatch);
    }
    let x = rms_norm(x.clone(), norm); // [rows, k]
    let [first, second, third] = layers;
    let product = |layer| linear(x.clone(), layer, None);
    let (a, (b, c)) = both(
        &x,
        || product(first),
        || both(&x, || product(second), || product(third)),
    );
    [a, b, c]
}

/// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)` of layers with adapters.
///
/// # Shapes
///
/// `x [rows, k]` f32 → `[rows, n]`, f32 or the type to which the next product would round it
pub(crate) fn norm_swiglu(
    x: &Tensor<2>,
    norm: Norm<'_>,
    [gate, up]: [LayerOperand<Dispatch>; 2],
) -> Tensor<2> {
    let _span = trace_span!("norm_swiglu").entered();
    let shapes = [&gate, &up].map(|layer| layer.weight.shape());
    assert_eq!(shapes[0], shapes[1], "norm_swiglu: gate and up");
    for layer in [&gate, &up] {
        layer.check("norm_swiglu", x.dims());
    }
    #[cfg(feature = "gpu")]
    if is_fused(x, &[&gate, &up]) && norm.is_on_gpu(x) {
        let (x, norm) = (x.clone().into_dispatch(), NormOperand::new(norm));
        return Tensor::from_dispatch(<Dispatch as FusedOps>::norm_swiglu(x, norm, gate, up));
    }
    let x = rms_norm(x.clone(), norm); // [rows, k]
    if let Some(y) = cpu::swiglu_at_once(&x, [&gate, &up]) {
        return y;
    }
    let product = |layer| linear(x.clone(), layer, None);
    let (gate, up) = both(&x, || product(gate), || product(up)); // [rows, n]
    swiglu(gate, up)
}

/// `x · wᵀ` with a constant weight, or with a dense one that takes part in the autodiff graph.
///
/// # Shapes
///
/// `x [rows, k]` → `[rows, n]`
pub(crate) fn product(
    x: Tensor<2>,
    weight: WeightOperand<Dispatch>,
    compute: ComputeDtype,
) -> Tensor<2> {
    let weight = match weight {
        WeightOperand::Nf4 { weight } => return nf4_linear(x, weight, compute),
        WeightOperand::Dense(weight) => Tensor::<2>::from_dispatch(weight),
    };
    if weight.is_tracked() {
        let weight = weight.cast(x.dtype()); // [n, k]
        return x.matmul(weight.transpose());
    }
    dense_linear(x, weight, compute)
}

/// Both results. On the plain CPU backend the threads share the work of both, instead of waiting for each other after the
/// first; a GPU queues what one thread sends it.
pub fn both<const D: usize, A: Send, B: Send>(
    x: &Tensor<D>,
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    match is_untracked_cpu(x) {
        true => rayon::join(a, b),
        false => (a(), b()),
    }
}
