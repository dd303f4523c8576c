//! Attention of a training step that is written by hand: the kernels of causal attention, without a graph.

use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::tensor::TensorData;

use super::{CausalState, causal_backward, causal_forward, dims};
use crate::kernels::ops::HostOps;

impl HostOps for Flex {
    fn host_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [tokens, heads, _] = dims(&q);
        let CausalState { out, lse, .. } = causal_forward(q, k, v, lengths);
        let lse = TensorData::new(Arc::unwrap_or_clone(lse), [tokens, heads, 1]);
        (out, FlexTensor::from_data(lse)) // [tokens, heads, head_dim], [tokens, heads, 1]
    }

    fn host_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        d_out: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [q, k, v, out, lse] = [q, k, v, out, lse].map(|x| x.to_contiguous());
        let state = CausalState {
            q,
            k,
            v,
            out,
            lse: Arc::new(lse.storage::<f32>().to_vec()),
            lengths,
        };
        causal_backward(&state, d_out).into() // [tokens, heads or kv_heads, head_dim]
    }
}
