//! Gradients of the CPU kernels, each in one pass over its rows. Other backends get theirs from the tensor operations of
//! [`naive`](super::naive).

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use tracing::trace_span;

use super::{ModelOps, cpu};

#[derive(Debug)]
struct RotaryEmbedding;

impl Backward<Flex, 1> for RotaryEmbedding {
    type State = (FlexTensor, FlexTensor);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _span = trace_span!("backward", of = "RotaryEmbedding").entered();
        let (cos, sin) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |dy| {
            cpu::rotate(dy, cos, sin, -1.0)
        });
    }
}

impl<C: CheckpointStrategy> ModelOps for Autodiff<Flex, C> {
    fn fused_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let (x, node) = x.into_parts();
        let y = Flex::fused_rotary(x, cos.clone(), sin.clone());
        match RotaryEmbedding
            .prepare::<C>([node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((cos, sin), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
