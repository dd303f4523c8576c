//! The operations of the forward pass that lie between the matrix products.
//!
//! Each has a plain twin made of tensor ops in [`naive`]: the reference of the tests, and what runs
//! under autodiff and on devices without a kernel of their own.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Tensor};

use crate::rotary::Rotary;

mod cpu;
pub(crate) mod map_file;
pub mod naive;

/// The fused operations; `Dispatch` sends each call to the backend its tensors live on.
#[backend_extension(Flex)]
pub(crate) trait ModelOps: burn::backend::Backend {
    /// `x / rms(x) * weight` per row: x `[rows, dim]`, weight `[dim]`, both f32.
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// Rotates the halves of each head: x `[tokens, heads, head_dim]`, cos and sin
    /// `[tokens, 1, head_dim / 2]`, all f32.
    fn fused_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// `silu(gate) * up`, elementwise, f32.
    fn fused_silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Whether a tensor lives where the fused operations run: plain CPU, f32, outside autodiff.
fn is_fused<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Root-mean-square normalisation (arXiv 1910.07467) over the last dimension.
///
/// # Shapes
/// x `[rows, dim]`, weight `[dim]`; result `[rows, dim]`.
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f64) -> Tensor<2> {
    if !is_fused(&x) || !is_fused(weight) {
        return naive::rms_norm(x, weight, eps);
    }
    let (x, weight) = (x.into_dispatch(), weight.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_rms_norm(x, weight, eps))
}

/// Rotary embedding as Qwen applies it: dimension `i` is paired with `i + head_dim / 2`.
///
/// # Shapes
/// x and result `[tokens, heads, head_dim]`.
pub fn apply_rotary(x: Tensor<3>, rotary: &Rotary) -> Tensor<3> {
    if !is_fused(&x) {
        return naive::apply_rotary(x, rotary);
    }
    Tensor::from_dispatch(Dispatch::fused_rotary(
        x.into_dispatch(),
        rotary.cos.clone().into_dispatch(),
        rotary.sin.clone().into_dispatch(),
    ))
}

/// The gate of the MLP: `silu(gate) * up`.
///
/// # Shapes
/// All `[tokens, intermediate]`.
pub fn silu_mul(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    if !is_fused(&gate) || !is_fused(&up) {
        return naive::silu_mul(gate, up);
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_silu_mul(gate, up))
}
