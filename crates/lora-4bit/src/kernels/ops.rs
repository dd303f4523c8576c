//! Products that a backend computes.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

use super::naive;
use super::operand::{LayerOperand, Nf4Operand};
use crate::compute_dtype::ComputeDtype;

/// Products with a frozen weight. The bodies given here are the naive ones; a backend with kernels overrides them.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub trait LinearOps: Backend {
    /// `x · wᵀ`: `[m, k]`, `[n, k]` → `[m, n]`.
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::dense_linear::<Self>(x, w)
    }

    /// `dy · w`: `[m, n]`, `[n, k]` → `[m, k]`.
    fn dense_linear_t(
        dy: FloatTensor<Self>,
        w: FloatTensor<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::dense_linear_t::<Self>(dy, w)
    }

    /// `x · wᵀ` with `w` in NF4: `[m, k]` → `[m, n]`.
    fn nf4_linear(
        x: FloatTensor<Self>,
        #[extension_type] w: Nf4Operand<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::nf4_linear::<Self>(x, w)
    }

    /// `dy · w` with `w` in NF4: `[m, n]` → `[m, k]`.
    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        #[extension_type] w: Nf4Operand<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::nf4_linear_t::<Self>(dy, w)
    }

    /// The whole weight in f32: `[n, k]`.
    fn nf4_dequantize(#[extension_type] w: Nf4Operand<Self>) -> FloatTensor<Self> {
        naive::dequantize::<Self>(w)
    }
}

/// Products of one LoRA adapter, on the CPU, inside and outside of autodiff graphs.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait LoraOps: Backend {
    /// `y + scaling · (x · aᵀ) · b`: `[m, n]`, `[m, k]`, `[r, k]`, `[r, n]`, all f32 → `[m, n]`.
    fn lora_add(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f32,
    ) -> FloatTensor<Self>;

    /// A layer with [`Adapters::One`](super::operand::Adapters::One), its weight and bias constants. The input gets one gradient, not a sum of two.
    fn linear_with_adapter(
        x: FloatTensor<Self>,
        #[extension_type] layer: LayerOperand<Self>,
    ) -> FloatTensor<Self>;
}
