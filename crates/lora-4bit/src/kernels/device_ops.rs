//! What a GPU computes in a training step.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};
use burn::tensor::DType;

use crate::kernels::operand::{GemmOperand, Maybe, Part, PartOperand, WeightOperand};

/// The operations on a GPU.
#[backend_extension(Cube)]
pub(crate) trait TrainingOps: Backend {
    /// See [`product`](super::product()) and [`gated_product`](super::gated_product).
    fn gemm(#[extension_type] operand: GemmOperand<Self>) -> FloatTensor<Self>;
    /// Writes `weight` to the rows of `to [n, k]` from row `at` on; the result is `to`.
    fn write_weight(
        to: FloatTensor<Self>,
        #[extension_type] weight: WeightOperand<Self>,
        at: usize,
    ) -> FloatTensor<Self>;
    /// See [`stack_adapters`](super::stack_adapters): of `[k, n, ranks]` in `dtype`.
    fn stack_adapters(
        #[extension_type] first: PartOperand<Self>,
        #[extension_type] second: PartOperand<Self>,
        #[extension_type] third: PartOperand<Self>,
        shape: [usize; 3],
        dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`adapter_gradients`](super::adapter_gradients).
    fn adapter_gradients(
        da: FloatTensor<Self>,
        db: FloatTensor<Self>,
        part: Part,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`add_adapter_gradients`](super::add_adapter_gradients); the results are `a` and `b_t`.
    fn add_adapter_gradients(
        da: FloatTensor<Self>,
        db: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b_t: FloatTensor<Self>,
        part: Part,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`rms_norm`](super::rms_norm).
    fn training_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// See [`rms_norm_backward`](super::rms_norm_backward).
    fn training_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// See [`drop_values`](super::drop_values).
    fn training_dropout(
        x: FloatTensor<Self>,
        keys: [u32; 2],
        threshold: u32,
        keep: f32,
    ) -> FloatTensor<Self>;
    /// See [`rescale`](super::rescale).
    fn training_rescale(
        x: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        #[extension_type] offset: Maybe<Self>,
        #[extension_type] residual: Maybe<Self>,
    ) -> FloatTensor<Self>;
    /// See [`swiglu`](super::swiglu()).
    fn training_swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`swiglu_backward`](super::swiglu_backward); the results are `gate_up` and `dy`, overwritten.
    fn training_swiglu_backward(
        gate_up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
