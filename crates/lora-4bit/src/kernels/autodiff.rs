//! Gradients.
//!
//! A base weight is a constant, so the gradient with respect to `x` is the transposed product, and the only thing kept for it
//! is a handle of the weight as it is stored: `x` isn't saved, nothing is dequantized. An adapter's product keeps its input
//! and the inner product of rank `r`.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary, unary};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex};

use super::cpu::elementwise::{inner_product_backward, rms_norm_backward, swiglu_backward};
use super::cpu::{LoraState, base, base_t};
use super::elementwise::ElementwiseOps;
use super::operand::{AbsmaxOperand, Adapters, LayerOperand, Maybe, Nf4Operand, WeightOperand};
use super::ops::{LinearOps, LoraOps};
use crate::compute_dtype::ComputeDtype;
use tracing::trace_span;

/// Implements [`Backward`] for an operation whose gradient is its transposed twin.
macro_rules! backward_by_twin {
    ($(#[$doc:meta])* $name:ident, $state:ty, $twin:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        struct $name;

        impl<B: LinearOps> Backward<B, 1> for $name {
            type State = ($state, ComputeDtype);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let _span = trace_span!("backward", of = stringify!($name)).entered();
                let (w, compute) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::$twin(grad, w, compute)
                });
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
    ($backward:ident, $op:ident, $x:ident, $w:ident, $compute:ident) => {{
        let (x, node) = $x.into_parts();
        match $backward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::$op(x, $w.clone(), $compute);
                prep.finish(($w, $compute), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::$op(x, $w, $compute)),
        }
    }};
}

impl<B: LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let w = w.into_primitive();
        record!(DenseLinear, dense_linear, x, w, compute)
    }

    fn dense_linear_t(
        dy: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let w = w.into_primitive();
        record!(DenseLinearT, dense_linear_t, dy, w, compute)
    }

    fn nf4_linear(
        x: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let w = inner::<B, C>(w);
        record!(Nf4Linear, nf4_linear, x, w, compute)
    }

    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let w = inner::<B, C>(w);
        record!(Nf4LinearT, nf4_linear_t, dy, w, compute)
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

#[derive(Debug)]
struct LoraAdd;

impl Backward<Flex, 4> for LoraAdd {
    type State = LoraState;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _span = trace_span!("backward", of = "LoraAdd").entered();
        let dy = grads.consume::<Flex>(&ops.node);
        let [y, x, a, b] = ops.parents;
        let wanted = [&x, &a, &b].map(Option::is_some);
        let inputs = ops.state.backward(&dy, wanted);
        let gradients = [(y, Some(dy)), (x, inputs.x), (a, inputs.a), (b, inputs.b)];
        for (parent, gradient) in gradients {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

impl<C: CheckpointStrategy> LoraOps for Autodiff<Flex, C> {
    fn lora_add(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f32,
    ) -> FloatTensor<Self> {
        let ((y, y_node), (x, x_node)) = (y.into_parts(), x.into_parts());
        let ((a, a_node), (b, b_node)) = (a.into_parts(), b.into_parts());
        let (y, state) = LoraState::forward(y, x, a, b, scaling);
        match LoraAdd
            .prepare::<C>([y_node, x_node, a_node, b_node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(state, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn linear_with_adapter(x: FloatTensor<Self>, layer: LayerOperand<Self>) -> FloatTensor<Self> {
        let Adapters::One { a, b, scaling } = layer.adapters else {
            unreachable!("a layer with one adapter");
        };
        let (x, x_node) = x.into_parts();
        let ((a, a_node), (b, b_node)) = (a.into_parts(), b.into_parts());
        let frozen = LayerOperand {
            weight: match layer.weight {
                WeightOperand::Dense(weight) => WeightOperand::Dense(weight.into_primitive()),
                WeightOperand::Nf4 { weight } => WeightOperand::Nf4 {
                    weight: inner::<Flex, C>(weight),
                },
            },
            bias: match layer.bias {
                Maybe::Some(bias) => Maybe::Some(bias.into_primitive()),
                Maybe::None => Maybe::None,
            },
            adapters: Adapters::None,
            compute: layer.compute,
        };
        let y = base(x.clone(), frozen.clone());
        let (y, state) = LoraState::forward(y, x, a, b, scaling);
        match LinearWithAdapter
            .prepare::<C>([x_node, a_node, b_node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((frozen, state), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 1> for RmsNorm {
    type State = (FlexTensor, FlexTensor, f64);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _span = trace_span!("backward", of = "RmsNorm").entered();
        let (x, weight, eps) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |dy| {
            rms_norm_backward(x, weight, eps, dy)
        });
    }
}

#[derive(Debug)]
struct SwiGlu;

impl Backward<Flex, 2> for SwiGlu {
    type State = (FlexTensor, FlexTensor);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _span = trace_span!("backward", of = "SwiGlu").entered();
        let (gate, up) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let inputs = swiglu_backward(gate, up, dy);
        for (parent, gradient) in ops.parents.into_iter().zip(inputs) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Add;

impl Backward<Flex, 2> for Add {
    type State = ();

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        binary::<Flex, _, _>(ops.parents, ops.node, grads, |dy| dy, |dy| dy);
    }
}

#[derive(Debug)]
struct AddBias;

impl Backward<Flex, 1> for AddBias {
    type State = ();

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        unary::<Flex, _>(ops.parents, ops.node, grads, |dy| dy);
    }
}

/// `d(Σ x · y)/dx = y`
#[derive(Debug)]
struct InnerProduct;

impl Backward<Flex, 1> for InnerProduct {
    type State = FlexTensor;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let y = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            inner_product_backward(y, &grad)
        });
    }
}

impl<C: CheckpointStrategy> ElementwiseOps for Autodiff<Flex, C> {
    fn cpu_add(residual: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((residual, residual_node), (y, y_node)) = (residual.into_parts(), y.into_parts());
        let sum = Flex::cpu_add(residual, y);
        Add.prepare::<C>([residual_node, y_node])
            .compute_bound()
            .stateless(sum)
    }

    fn cpu_inner_product(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = y.into_primitive();
        let (x, node) = x.into_parts();
        let product = Flex::cpu_inner_product(x, y.clone());
        match InnerProduct.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(y, product),
            OpsKind::UnTracked(prep) => prep.finish(product),
        }
    }

    fn cpu_add_bias(y: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let bias = bias.into_primitive();
        let (y, node) = y.into_parts();
        let sum = Flex::cpu_add_bias(y, bias);
        AddBias.prepare::<C>([node]).compute_bound().stateless(sum)
    }

    fn cpu_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let weight = weight.into_primitive();
        let (x, node) = x.into_parts();
        match RmsNorm.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = Flex::cpu_rms_norm(x.clone(), weight.clone(), eps);
                prep.finish((x, weight, eps), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::cpu_rms_norm(x, weight, eps)),
        }
    }

    fn cpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        match SwiGlu
            .prepare::<C>([gate_node, up_node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let y = Flex::cpu_swiglu(gate.clone(), up.clone());
                prep.finish((gate, up), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::cpu_swiglu(gate, up)),
        }
    }
}

/// A frozen layer with its adapter.
#[derive(Debug)]
struct LinearWithAdapter;

impl Backward<Flex, 3> for LinearWithAdapter {
    type State = (LayerOperand<Flex>, LoraState);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _span = trace_span!("backward", of = "LinearWithAdapter").entered();
        let dy = grads.consume::<Flex>(&ops.node);
        let (layer, state) = ops.state;
        let [x, a, b] = ops.parents;
        let inputs = state.backward(&dy, [&x, &a, &b].map(Option::is_some));
        let dx = x.is_some().then(|| {
            let dx = base_t(dy, layer);
            match inputs.x {
                Some(of_adapter) => Flex::cpu_add(of_adapter, dx),
                None => dx,
            }
        });
        for (parent, gradient) in [(x, dx), (a, inputs.a), (b, inputs.b)] {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}
