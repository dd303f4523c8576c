//! What a GPU computes, outside of autodiff graphs.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};
use burn::tensor::DType;

use super::operand::{
    GemmOperand, LayerOperand, Maybe, NormOperand, Part, PartOperand, WeightOperand,
};

/// The operations of a training step.
#[backend_extension(Cube)]
pub(crate) trait TrainingOps: Backend {
    /// See [`product`](super::training::product()) and [`gated_product`](super::training::gated_product).
    fn gemm(#[extension_type] operand: GemmOperand<Self>) -> FloatTensor<Self>;
    /// Writes `weight` to the rows of `to [n, k]` from row `at` on; the result is `to`.
    fn write_weight(
        to: FloatTensor<Self>,
        #[extension_type] weight: WeightOperand<Self>,
        at: usize,
    ) -> FloatTensor<Self>;
    /// See [`stack_adapters`](super::training::stack_adapters): of `[k, n, ranks]` in `dtype`.
    fn stack_adapters(
        #[extension_type] first: PartOperand<Self>,
        #[extension_type] second: PartOperand<Self>,
        #[extension_type] third: PartOperand<Self>,
        shape: [usize; 3],
        dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`adapter_gradients`](super::training::adapter_gradients).
    fn adapter_gradients(
        da: FloatTensor<Self>,
        db: FloatTensor<Self>,
        part: Part,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`add_adapter_gradients`](super::training::add_adapter_gradients); the results are `a` and `b_t`.
    fn add_adapter_gradients(
        da: FloatTensor<Self>,
        db: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b_t: FloatTensor<Self>,
        part: Part,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`rms_norm`](super::training::rms_norm).
    fn training_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// See [`rms_norm_backward`](super::training::rms_norm_backward).
    fn training_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// See [`drop_values`](super::training::drop_values).
    fn training_dropout(
        x: FloatTensor<Self>,
        keys: [u32; 2],
        threshold: u32,
        keep: f32,
    ) -> FloatTensor<Self>;
    /// See [`rescale`](super::training::rescale).
    fn training_rescale(
        x: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        #[extension_type] offset: Maybe<Self>,
        #[extension_type] residual: Maybe<Self>,
    ) -> FloatTensor<Self>;
    /// See [`swiglu`](super::training::swiglu()).
    fn training_swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`swiglu_backward`](super::training::swiglu_backward); the results are `gate_up` and `dy`, overwritten.
    fn training_swiglu_backward(
        gate_up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// The operations between the products of a decoder layer.
#[backend_extension(Cube)]
pub(crate) trait GpuElementwiseOps: Backend {
    /// See [`rms_norm`](super::elementwise::rms_norm); the result has the type `dtype`.
    fn gpu_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        dtype: DType,
    ) -> FloatTensor<Self>;
    /// See [`swiglu`](super::elementwise::swiglu).
    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The operations of a decoder layer around its products, for layers without [`Adapters::One`](super::operand::Adapters::One).
#[backend_extension(Cube)]
pub(crate) trait FusedOps: Backend {
    /// See [`input_dtype`](super::fused::input_dtype).
    fn input_dtype(x: FloatTensor<Self>, #[extension_type] layer: LayerOperand<Self>) -> DType;

    /// See [`linear`](super::fused::linear).
    fn linear(
        x: FloatTensor<Self>,
        #[extension_type] layer: LayerOperand<Self>,
        #[extension_type] residual: Maybe<Self>,
    ) -> FloatTensor<Self>;

    /// See [`norm_linears`](super::fused::norm_linears).
    fn norm_linears(
        x: FloatTensor<Self>,
        #[extension_type] norm: NormOperand<Self>,
        #[extension_type] first: LayerOperand<Self>,
        #[extension_type] second: LayerOperand<Self>,
        #[extension_type] third: LayerOperand<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`norm_swiglu`](super::fused::norm_swiglu).
    fn norm_swiglu(
        x: FloatTensor<Self>,
        #[extension_type] norm: NormOperand<Self>,
        #[extension_type] gate: LayerOperand<Self>,
        #[extension_type] up: LayerOperand<Self>,
    ) -> FloatTensor<Self>;
}
