//! Products with a weight or with an adapter, as tensor operations.

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use tracing::trace_span;

use super::naive;
use super::operand::Nf4Operand;
use super::ops::{LinearOps, LoraOps};
use crate::compute_dtype::ComputeDtype;
use crate::device::is_f32_on_cpu;

/// `y + scaling · (x · aᵀ) · b`, where `b` is the transpose of LoRA's B.
///
/// # Shapes
///
/// `y [m, n]`, `x [m, k]`, `a [r, k]`, `b [r, n]` → `[m, n]`
pub fn lora_add(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scaling: f32) -> Tensor<2> {
    let _span = trace_span!("lora_add").entered();
    let ([m, n], [r, k]) = (y.dims(), a.dims());
    assert_eq!(x.dims(), [m, k], "lora_add: x");
    assert_eq!(b.dims(), [r, n], "lora_add: b");
    if ![&y, &x, &a, &b].into_iter().all(is_f32_on_cpu) {
        return naive::lora_add(y, x, a, b, scaling);
    }
    let [y, x, a, b] = [y, x, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as LoraOps>::lora_add(y, x, a, b, scaling))
}

/// `x · wᵀ` with a constant `w`.
///
/// # Shapes
///
/// `x [m, k]`, `w [n, k]` → `[m, n]`
pub fn dense_linear(x: Tensor<2>, w: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
    let [n, k] = w.dims();
    let _span = trace_span!("dense_linear", n, k).entered();
    check_inner("dense_linear", x.dims()[1], k);
    let y = <Dispatch as LinearOps>::dense_linear(x.into_dispatch(), w.into_dispatch(), compute);
    Tensor::from_dispatch(y)
}

/// `dy · w` with a constant `w`: the gradient of [`dense_linear`] with respect to `x`. With [`ComputeDtype::Bf16`] tensor cores multiply
/// operands in bf16.
///
/// # Shapes
///
/// `dy [m, n]`, `w [n, k]` → `[m, k]` in f32
pub fn dense_linear_t(dy: Tensor<2>, w: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
    let [n, k] = w.dims();
    let _span = trace_span!("dense_linear_t", n, k).entered();
    check_inner("dense_linear_t", dy.dims()[1], n);
    let dx =
        <Dispatch as LinearOps>::dense_linear_t(dy.into_dispatch(), w.into_dispatch(), compute);
    Tensor::from_dispatch(dx)
}

/// `x · wᵀ` with a constant `w` in NF4.
///
/// # Shapes
///
/// `x [m, k]`, `w [n, k]` → `[m, n]`
pub(crate) fn nf4_linear(
    x: Tensor<2>,
    w: Nf4Operand<Dispatch>,
    compute: ComputeDtype,
) -> Tensor<2> {
    let [n, k] = w.shape;
    let _span = trace_span!("nf4_linear", n, k).entered();
    check_inner("nf4_linear", x.dims()[1], k);
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_linear(
        x.into_dispatch(),
        w,
        compute,
    ))
}

/// `dy · w` with a constant `w` in NF4: the gradient of [`nf4_linear`] with respect to `x`.
///
/// # Shapes
///
/// `dy [m, n]`, `w [n, k]` → `[m, k]`
pub(crate) fn nf4_linear_t(
    dy: Tensor<2>,
    w: Nf4Operand<Dispatch>,
    compute: ComputeDtype,
) -> Tensor<2> {
    let [n, k] = w.shape;
    let _span = trace_span!("nf4_linear_t", n, k).entered();
    check_inner("nf4_linear_t", dy.dims()[1], n);
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_linear_t(
        dy.into_dispatch(),
        w,
        compute,
    ))
}

/// The whole of a weight in NF4, in f32: `[n, k]`.
pub(crate) fn nf4_dequantize(w: Nf4Operand<Dispatch>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_dequantize(w))
}

fn check_inner(op: &str, left: usize, right: usize) {
    assert_eq!(
        left, right,
        "{op}: inner dimensions {left} and {right} differ"
    );
}
