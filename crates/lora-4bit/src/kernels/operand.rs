//! What the operations read of a layer, on one backend.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchTensor, ExtensionType, TensorMetadata};
use burn::tensor::{DType, Tensor};

use crate::compute_dtype::ComputeDtype;

/// A stack's rank is a multiple of this.
pub(crate) const STACK_RANKS: usize = 8;

/// Values behind the last row of a stack's `b`: kernels read rows in parts of this size.
pub(crate) const STACK_PADDING: usize = 64;

/// The tensors of an NF4 weight on one backend.
#[derive(ExtensionType, Clone, Debug)]
pub struct Nf4Operand<B: Backend> {
    /// Two codes a byte, first value in the high four bits: `[ceil(n * k / 2)]` in U8, or in words of four bytes.
    pub packed: IntTensor<B>,
    /// Level of each code, f32: `[16]`.
    pub quant_map: FloatTensor<B>,
    /// Scales of the blocks of 64 values.
    #[extension_type]
    pub absmax: AbsmaxOperand<B>,
    /// `[n, k]`.
    pub shape: [usize; 2],
}

/// The scales of an NF4 weight on one backend, one for each block of 64 values of the flattened matrix.
#[derive(ExtensionType, Clone, Debug)]
pub enum AbsmaxOperand<B: Backend> {
    /// f32: `[blocks]`.
    Single(FloatTensor<B>),
    /// Scale of block `i` is `map[codes[i]] * nested_absmax[i / 256] + offset`.
    Double {
        /// `[blocks]` in U8, or in words of four bytes.
        codes: IntTensor<B>,
        /// f32: `[256]`.
        map: FloatTensor<B>,
        /// f32: `[ceil(blocks / 256)]`.
        nested_absmax: FloatTensor<B>,
        /// Mean of the scales before quantization.
        offset: f32,
    },
}

/// A weight `[n, k]`.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum WeightOperand<B: Backend> {
    /// f32, bf16 or f16.
    Dense(FloatTensor<B>),
    /// 4 bits a value and scales.
    Nf4 {
        /// Its tensors.
        #[extension_type]
        weight: Nf4Operand<B>,
    },
}

/// A tensor that may be missing: the macro that dispatches operations takes no `Option` within another type.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum Maybe<B: Backend> {
    /// Missing.
    None,
    /// There.
    Some(FloatTensor<B>),
}

impl<B: Backend> Maybe<B> {
    pub(super) fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

impl Maybe<Dispatch> {
    /// A tensor of any backend, or none.
    pub(crate) fn new<const D: usize>(tensor: Option<&Tensor<D>>) -> Self {
        tensor.map_or(Self::None, |tensor| {
            Self::Some(tensor.clone().into_dispatch())
        })
    }
}

/// The stacked adapters of a layer, and the slot of each row of its input.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct StackOperand<B: Backend> {
    /// `[num_slots * rank * k]`.
    pub(crate) a: FloatTensor<B>,
    /// `[n * num_slots * rank]`, and [`STACK_PADDING`] values.
    pub(crate) b: FloatTensor<B>,
    /// Rank of every slot.
    pub(crate) rank: usize,
    /// Slots of the stack.
    pub(crate) num_slots: usize,
    /// The slot of each row, from `at` on, or -1.
    pub(crate) slots: IntTensor<B>,
    /// Index of the first row's slot in `slots`.
    pub(crate) at: usize,
}

/// The adapters that are added to a layer's product.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum Adapters<B: Backend> {
    /// None.
    None,
    /// An adapter of its own for each row.
    Stack {
        /// The adapters.
        #[extension_type]
        stack: StackOperand<B>,
    },
    /// One adapter for all rows, which may get gradients.
    One {
        /// f32: `[r, k]`.
        a: FloatTensor<B>,
        /// The transpose of LoRA's B, f32: `[r, n]`.
        b: FloatTensor<B>,
        /// Factor of the product.
        scaling: f32,
    },
}

/// A layer: `x · wᵀ + bias`, and for each row the product of its adapter.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct LayerOperand<B: Backend> {
    /// `[n, k]`.
    #[extension_type]
    pub(crate) weight: WeightOperand<B>,
    /// f32: `[n]`.
    #[extension_type]
    pub(crate) bias: Maybe<B>,
    /// The adapters of the rows.
    #[extension_type]
    pub(crate) adapters: Adapters<B>,
    /// Type in which the weight is multiplied.
    pub(crate) compute: ComputeDtype,
}

/// A root-mean-square norm (arXiv 1910.07467) of the rows of an input.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct NormOperand<B: Backend> {
    /// f32: `[k]`.
    pub(crate) weight: FloatTensor<B>,
    /// Added to the mean square.
    pub(crate) eps: f64,
}

impl WeightOperand<Dispatch> {
    /// `[n, k]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.shape().dims(),
            Self::Nf4 { weight } => weight.shape,
        }
    }

    /// Where the weight lives.
    #[cfg(feature = "gpu")]
    pub(super) fn device(&self) -> burn::tensor::Device {
        match self {
            Self::Dense(weight) => Tensor::<2>::from_dispatch(weight.clone()).device(),
            Self::Nf4 { weight } => Tensor::<1>::from_dispatch(weight.quant_map.clone()).device(),
        }
    }
}

impl LayerOperand<Dispatch> {
    /// Whether [`LoraOps::linear_with_adapter`](super::ops::LoraOps::linear_with_adapter) computes the layer: with one adapter in f32,
    /// and a weight and a bias that get no gradient.
    pub(super) fn is_frozen_with_adapter(&self) -> bool {
        let is_f32 = |tensor: &DispatchTensor| tensor.dtype() == DType::F32;
        let is_one = match &self.adapters {
            Adapters::One { a, b, .. } => is_f32(a) && is_f32(b),
            Adapters::None | Adapters::Stack { .. } => false,
        };
        let weight = match &self.weight {
            WeightOperand::Dense(weight) => !Dispatch::is_tracked(weight),
            WeightOperand::Nf4 { .. } => true,
        };
        let bias = match &self.bias {
            Maybe::Some(bias) => is_f32(bias) && !Dispatch::is_tracked(bias),
            Maybe::None => true,
        };
        is_one && weight && bias
    }

    /// Fails if the layer doesn't fit an input `[rows, k]`. Kernels index without a check.
    ///
    /// # Panics
    ///
    /// With the name of the operation and what differs.
    #[track_caller]
    pub(super) fn check(&self, operation: &str, [rows, k]: [usize; 2]) {
        let [n, inner] = self.weight.shape();
        assert_eq!(
            k, inner,
            "{operation}: columns of the input and of the weight"
        );
        if let Maybe::Some(bias) = &self.bias {
            assert_eq!(bias.shape().dims(), [n], "{operation}: bias");
        }
        match &self.adapters {
            Adapters::None => {}
            Adapters::Stack { stack } => {
                let num = stack.slots.shape().num_elements();
                let end = stack.at + rows;
                assert!(
                    num >= end,
                    "{operation}: {num} slots, {rows} rows from {}",
                    stack.at
                );
            }
            Adapters::One { a, b, .. } => {
                let [r, columns] = a.shape().dims();
                assert_eq!(columns, k, "{operation}: columns of a");
                assert_eq!(b.shape().dims(), [r, n], "{operation}: b");
            }
        }
    }
}

/// How an operand of a product lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Major {
    /// The inner dimension along the rows: `[outer, inner]`.
    Inner,
    /// The inner dimension down the columns: `[inner, outer]`.
    Outer,
}

/// The operands of [`TrainingOps::gemm`](super::device_ops::TrainingOps::gemm).
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct GemmOperand<B: Backend> {
    pub(crate) a: FloatTensor<B>,
    #[extension_type]
    pub(crate) second_a: Maybe<B>,
    pub(crate) b: FloatTensor<B>,
    #[extension_type]
    pub(crate) second_b: Maybe<B>,
    #[extension_type]
    pub(crate) bias: Maybe<B>,
    #[extension_type]
    pub(crate) residual: Maybe<B>,
    pub(crate) majors: [Major; 2],
    /// See [`gated_product`](super::training::gated_product).
    pub(crate) is_gated: bool,
    pub(crate) dtype: DType,
}

/// An adapter of a layer of a group, and where it stands among them.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct PartOperand<B: Backend> {
    /// f32: `[r, k]`.
    pub(crate) a: FloatTensor<B>,
    /// f32: `[r, n]`.
    pub(crate) b_t: FloatTensor<B>,
    pub(crate) part: Part,
}

/// Where a layer stands in a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// See [`Linear::id`](crate::Linear::id).
    pub(crate) id: u32,
    /// The layer's rows of the weight.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// The layer's ranks, none without an adapter.
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    pub(crate) scaling: f32,
}
