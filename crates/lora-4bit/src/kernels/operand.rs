//! What the operations read of a layer, on one backend.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, ExtensionType};
use burn::tensor::{Int, Tensor};

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
    #[cfg(feature = "gpu")]
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

    /// The tensor, if there is one.
    pub(super) fn into_tensor<const D: usize>(self) -> Option<Tensor<D>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(Tensor::from_dispatch(tensor)),
        }
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

/// [`StackOperand`], or none.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum MaybeStack<B: Backend> {
    /// Missing.
    None,
    /// There.
    Some {
        /// Its tensors.
        #[extension_type]
        stack: StackOperand<B>,
    },
}

#[cfg(feature = "gpu")]
impl<B: Backend> MaybeStack<B> {
    pub(super) fn into_option(self) -> Option<StackOperand<B>> {
        match self {
            Self::None => None,
            Self::Some { stack } => Some(stack),
        }
    }
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
    pub(crate) stack: MaybeStack<B>,
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
            Self::Dense(weight) => Tensor::<2>::from_dispatch(weight.clone()).dims(),
            Self::Nf4 { weight } => weight.shape,
        }
    }
}

impl LayerOperand<Dispatch> {
    /// Whether the weight or the bias gets a gradient.
    pub(super) fn is_tracked(&self) -> bool {
        let weight = match &self.weight {
            WeightOperand::Dense(weight) => Tensor::<2>::from_dispatch(weight.clone()).is_tracked(),
            WeightOperand::Nf4 { .. } => false,
        };
        let bias: Option<Tensor<1>> = self.bias.clone().into_tensor();
        weight || bias.is_some_and(|bias| bias.is_tracked())
    }
}

impl StackOperand<Dispatch> {
    /// The operand of adapters in `a [num_slots * rank * k]` and `b`.
    pub(crate) fn new(
        [a, b]: [&Tensor<1>; 2],
        [num_slots, rank]: [usize; 2],
        (slots, at): (&Tensor<1, Int>, usize),
    ) -> Self {
        Self {
            a: a.clone().into_dispatch(),
            b: b.clone().into_dispatch(),
            rank,
            num_slots,
            slots: slots.clone().into_dispatch(),
            at,
        }
    }
}
