//! The backward of `causal_attention`: a hand-written rule for the CPU kernels. Other backends
//! get theirs from the tensor operations of [`naive`](super::naive).

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};

use tracing::trace_span;

use super::CausalOps;
use super::cpu::{CausalState, causal_backward, causal_forward};

#[derive(Debug)]
struct CausalAttentionBackward;

impl Backward<Flex, 3> for CausalAttentionBackward {
    type State = CausalState;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _span = trace_span!("backward", of = "CausalAttention").entered();
        let d_out = grads.consume::<Flex>(&ops.node); // [tokens, heads, head_dim]
        let inputs = causal_backward(&ops.state, d_out);
        for (parent, gradient) in ops.parents.into_iter().zip(inputs) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

impl<C: CheckpointStrategy> CausalOps for Autodiff<Flex, C> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        let state = causal_forward(q, k, v, lengths);
        let out = state.out.clone(); // [tokens, heads, head_dim]
        match CausalAttentionBackward
            .prepare::<C>([q_node, k_node, v_node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(state, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
