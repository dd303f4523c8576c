//! What a product of a training step reads, and what is done to its sums.

use burn::tensor::{DType, Tensor};

use crate::kernels::operand::Major;

/// An operand of a [`product`](super::product()).
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

    pub(super) fn inner(&self) -> [usize; 2] {
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

/// What is done to the sums of a [`product`](super::product()).
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
