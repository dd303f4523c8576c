//! Products with both operands read either way.

#[cfg(feature = "gpu")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;
use tracing::trace_span;

use super::naive;
use super::product_operand::{Epilogue, ProductOperand};
use super::swiglu::swiglu;
#[cfg(feature = "gpu")]
use crate::kernels::device_ops::TrainingOps;
#[cfg(feature = "gpu")]
use crate::kernels::operand::{GemmOperand, Maybe};

/// `y[i, j] = Σ a[i, k] · b[j, k] + bias[j] + residual[i, j]`.
///
/// # Shapes
///
/// `a` with `m`, `b` with `n` outer values, both of one type → `[m, n]`
pub(crate) fn product(a: ProductOperand, b: ProductOperand, epilogue: Epilogue) -> Tensor<2> {
    let (m, n, inner) = (a.outer(), b.outer(), a.inner());
    let _span = trace_span!("product", m, n, k = inner[0]).entered();
    assert_eq!(inner, b.inner(), "product: inner dimensions");
    assert_eq!(a.first.dtype(), b.first.dtype(), "product: types");
    #[cfg(feature = "gpu")]
    if crate::kernels::cube::gemm::supports_gemm(&a.first, [m, n], inner, a.major) {
        return gemm(a, b, epilogue, false);
    }
    naive::product(a, b, epilogue)
}

#[cfg(feature = "gpu")]
fn gemm(a: ProductOperand, b: ProductOperand, epilogue: Epilogue, is_gated: bool) -> Tensor<2> {
    let second = |operand: &ProductOperand| Maybe::new(operand.second.as_ref());
    let operand = GemmOperand {
        second_a: second(&a),
        second_b: second(&b),
        majors: [a.major, b.major],
        a: a.first.into_dispatch(),
        b: b.first.into_dispatch(),
        bias: Maybe::new(epilogue.bias.as_ref()),
        residual: Maybe::new(epilogue.residual.as_ref()),
        is_gated,
        dtype: epilogue.dtype,
    };
    Tensor::from_dispatch(<Dispatch as TrainingOps>::gemm(operand))
}

/// [`swiglu`] of [`product`], where rows of `b` are gates, and then what they multiply. In one kernel, nothing between the two is
/// rounded.
///
/// # Shapes
///
/// `a` with `m`, `b` with `2 * n` outer values, both of one type → `[m, n]`, of the same type
pub(crate) fn gated_product(a: ProductOperand, b: ProductOperand) -> Tensor<2> {
    let dtype = a.first.dtype();
    #[cfg(feature = "gpu")]
    {
        let (m, n, inner) = (a.outer(), b.outer() / 2, a.inner());
        assert_eq!(inner, b.inner(), "gated_product: inner dimensions");
        if crate::kernels::cube::gemm::supports_gates(&a.first.device())
            && crate::kernels::cube::gemm::supports_gemm(&a.first, [m, n], inner, a.major)
        {
            let _span = trace_span!("gated_product", m, n, k = inner[0]).entered();
            return gemm(a, b, Epilogue::plain(dtype), true);
        }
    }
    swiglu(product(a, b, Epilogue::plain(dtype)))
}
