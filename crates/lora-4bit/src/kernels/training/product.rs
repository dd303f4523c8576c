//! Products with both operands read either way.

#[cfg(feature = "gpu")]
use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

#[cfg(feature = "gpu")]
use super::{GemmOperand, TrainingOps};
use super::{naive, swiglu};
use crate::kernels::operand::Major;
#[cfg(feature = "gpu")]
use crate::kernels::operand::Maybe;

/// An operand of a [`product`].
#[derive(Clone, Debug)]
pub(crate) struct ProductOperand {
    /// `[outer, inner]` or `[inner, outer]`.
    pub(crate) first: Tensor<2>,
    /// More of the inner dimension; the other operand goes on as well.
    pub(crate) second: Option<Tensor<2>>,
    pub(crate) major: Major,
}

impl ProductOperand {
    /// `[outer, inner]`.
    pub(crate) fn rows(first: Tensor<2>, second: Option<Tensor<2>>) -> Self {
        let major = Major::Inner;
        Self {
            first,
            second,
            major,
        }
    }

    /// `[inner, outer]`.
    pub(crate) fn columns(first: Tensor<2>, second: Option<Tensor<2>>) -> Self {
        let major = Major::Outer;
        Self {
            first,
            second,
            major,
        }
    }

    pub(super) fn outer(&self) -> usize {
        self.first.dims()[match self.major {
            Major::Inner => 0,
            Major::Outer => 1,
        }]
    }

    fn inner(&self) -> [usize; 2] {
        let axis = match self.major {
            Major::Inner => 1,
            Major::Outer => 0,
        };
        let second = self.second.as_ref();
        [
            self.first.dims()[axis],
            second.map_or(0, |second| second.dims()[axis]),
        ]
    }
}

/// What is done to the sums of a [`product`].
#[derive(Clone, Debug)]
pub(crate) struct Epilogue {
    /// f32: `[n]`.
    pub(crate) bias: Option<Tensor<1>>,
    /// `[m, n]`, of the type of the result.
    pub(crate) residual: Option<Tensor<2>>,
    /// Type of the result: f32 or the operands'.
    pub(crate) dtype: DType,
}

impl Epilogue {
    /// Only the sums.
    pub(crate) fn plain(dtype: DType) -> Self {
        Self {
            bias: None,
            residual: None,
            dtype,
        }
    }
}

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
    if crate::kernels::cube::supports_gemm(&a.first, [m, n], inner, a.major) {
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
        if crate::kernels::cube::supports_gates(&a.first.device())
            && crate::kernels::cube::supports_gemm(&a.first, [m, n], inner, a.major)
        {
            let _span = trace_span!("gated_product", m, n, k = inner[0]).entered();
            return gemm(a, b, Epilogue::plain(dtype), true);
        }
    }
    swiglu(product(a, b, Epilogue::plain(dtype)))
}
