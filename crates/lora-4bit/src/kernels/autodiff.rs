//! Gradients. The weight is a constant, so the gradient with respect to `x` is the transposed product, and the only
//! thing kept for it is a handle of the weight as it is stored: `x` isn't saved, nothing is dequantized.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

use super::{AbsmaxOperand, LinearOps, Nf4Operand};

/// Implements [`Backward`] for an operation whose gradient is its transposed twin.
macro_rules! backward_by_twin {
    ($(#[$doc:meta])* $name:ident, $state:ty, $twin:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        struct $name;

        impl<B: LinearOps> Backward<B, 1> for $name {
            type State = $state;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let w = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::$twin(grad, w));
            }
        }
    };
}

backward_by_twin!(
    /// `d(x · wᵀ)/dx = dy · w`
    DenseLinear, FloatTensor<B>, dense_linear_t
);
backward_by_twin!(
    /// `d(dy · w)/d(dy) = g · wᵀ`
    DenseLinearT, FloatTensor<B>, dense_linear
);
backward_by_twin!(
    /// `d(x · wᵀ)/dx = dy · w`
    Nf4Linear, Nf4Operand<B>, nf4_linear_t
);
backward_by_twin!(
    /// `d(dy · w)/d(dy) = g · wᵀ`
    Nf4LinearT, Nf4Operand<B>, nf4_linear
);

/// Records `$backward` for `B::$op($x, $w)`.
macro_rules! record {
    ($backward:ident, $op:ident, $x:ident, $w:ident) => {{
        let (x, node) = $x.into_parts();
        match $backward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::$op(x, $w.clone());
                prep.finish($w, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::$op(x, $w)),
        }
    }};
}

impl<B: LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn dense_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        let w = w.into_primitive();
        record!(DenseLinear, dense_linear, x, w)
    }

    fn dense_linear_t(dy: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        let w = w.into_primitive();
        record!(DenseLinearT, dense_linear_t, dy, w)
    }

    fn nf4_linear(x: FloatTensor<Self>, w: Nf4Operand<Self>) -> FloatTensor<Self> {
        let w = inner::<B, C>(w);
        record!(Nf4Linear, nf4_linear, x, w)
    }

    fn nf4_linear_t(dy: FloatTensor<Self>, w: Nf4Operand<Self>) -> FloatTensor<Self> {
        let w = inner::<B, C>(w);
        record!(Nf4LinearT, nf4_linear_t, dy, w)
    }
}

/// The same tensors without their autodiff nodes.
fn inner<B: Backend, C: CheckpointStrategy>(w: Nf4Operand<Autodiff<B, C>>) -> Nf4Operand<B> {
    let absmax = match w.absmax {
        AbsmaxOperand::Single(absmax) => AbsmaxOperand::Single(absmax.into_primitive()),
        AbsmaxOperand::Double {
            codes,
            map,
            nested_absmax,
            offset,
        } => AbsmaxOperand::Double {
            codes,
            map: map.into_primitive(),
            nested_absmax: nested_absmax.into_primitive(),
            offset,
        },
    };
    Nf4Operand {
        packed: w.packed,
        quant_map: w.quant_map.into_primitive(),
        absmax,
        shape: w.shape,
    }
}
