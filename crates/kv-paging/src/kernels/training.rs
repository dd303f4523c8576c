//! Attention of a training step that is written by hand: the operations without a graph, each with its gradient. Their public
//! face is [`TrainingAttention`](crate::TrainingAttention).
//!
//! | operation | computes | twin |
//! |---|---|---|
//! | `rotate` | queries and keys turned by their positions, after their head norms | [`naive::training::rotate`] |
//! | `rotate_backward` | its gradient | [`naive::training::rotate_backward`] |
//! | `forward` | causal attention within documents, and the log-sum-exp of the scores | [`naive::training::forward`] |
//! | `backward` | its gradient | [`naive::training::backward`] |

#[cfg(feature = "gpu")]
mod device;
#[cfg(not(feature = "gpu"))]
#[path = "training/no_device.rs"]
mod device;
pub(super) mod heads;
pub(crate) mod parts;
pub(super) mod plan;

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

use self::device::Turns;
pub use self::heads::{HeadNormInput, HeadNorms, HeadShape};
pub use self::plan::TrainingPlan;
use super::on_cpu::is_untracked_cpu;
use super::ops::HostOps;
use super::{cpu, naive};
use crate::rotary::Rotary;

/// See [`TrainingAttention::rotate`](crate::TrainingAttention::rotate).
pub(crate) fn rotate(
    qkv: Tensor<2>,
    norms: Option<HeadNorms<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    let _span = trace_span!("rotate").entered();
    plan.assert_rows(&qkv);
    plan.assert_angles(qkv.dims()[0], rotary);
    if let Some(turns) = Turns::of(&qkv, plan.shape()) {
        return turns.rotate(qkv, norms, rotary);
    }
    naive::training::rotate(qkv, norms, rotary, plan)
}

/// See [`TrainingAttention::rotate_backward`](crate::TrainingAttention::rotate_backward).
pub(crate) fn rotate_backward(
    d: Tensor<2>,
    head_norms: Option<HeadNormInput<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    let _span = trace_span!("rotate_backward").entered();
    plan.assert_rows(&d);
    plan.assert_angles(d.dims()[0], rotary);
    if let Some(HeadNormInput { qkv, .. }) = &head_norms {
        assert_eq!(qkv.dims(), d.dims(), "queries, keys and values");
    }
    if let Some(turns) = Turns::of(&d, plan.shape()) {
        return turns.rotate_backward(d, head_norms, rotary);
    }
    naive::training::rotate_backward(d, head_norms, rotary, plan)
}

/// See [`TrainingAttention::forward`](crate::TrainingAttention::forward).
pub(crate) fn forward(qkv: Tensor<2>, plan: &TrainingPlan) -> (Tensor<2>, Tensor<2>) {
    let _span = trace_span!("training_forward").entered();
    plan.assert_rows(&qkv);
    match plan.tables(&qkv.device()) {
        Some(tables) if qkv.dtype() == DType::BF16 => tables.forward(qkv),
        _ if on_host(&qkv, plan) => host_forward(qkv, plan),
        _ => naive::training::forward(qkv, plan),
    }
}

/// See [`TrainingAttention::backward`](crate::TrainingAttention::backward).
pub(crate) fn backward(
    qkv: Tensor<2>,
    [out, lse, d_out]: [Tensor<2>; 3],
    plan: &TrainingPlan,
) -> Tensor<2> {
    let _span = trace_span!("training_backward").entered();
    plan.assert_rows(&qkv);
    let [tokens, _] = qkv.dims();
    let row = plan.heads() * plan.head_dim();
    assert_eq!(out.dims(), [tokens, row], "output");
    assert_eq!(d_out.dims(), [tokens, row], "gradient of the output");
    assert_eq!(lse.dims(), [tokens, plan.heads()], "log-sum-exp");
    let saved = [out, lse, d_out];
    match plan.tables(&qkv.device()) {
        Some(tables) if qkv.dtype() == DType::BF16 => tables.backward(qkv, saved),
        _ if on_host(&qkv, plan) => host_backward(qkv, saved, plan),
        _ => naive::training::backward(qkv, saved, plan),
    }
}

/// Whether the kernels of the plain CPU backend take `qkv`.
fn on_host(qkv: &Tensor<2>, plan: &TrainingPlan) -> bool {
    is_untracked_cpu(qkv) && cpu::supports(plan.head_dim()) && plan.num_tokens() > 0
}

fn host_forward(qkv: Tensor<2>, plan: &TrainingPlan) -> (Tensor<2>, Tensor<2>) {
    let (dtype, [tokens, _]) = (qkv.dtype(), qkv.dims());
    let (heads, row) = (plan.heads(), plan.heads() * plan.head_dim());
    let [q, k, v] = naive::training::split(documents(qkv, plan), plan).map(Tensor::into_dispatch);
    let (out, lse) = Dispatch::host_forward(q, k, v, plan.lengths().clone());
    let (out, lse) = (
        Tensor::<3>::from_dispatch(out), // [num_tokens, heads, head_dim]
        Tensor::<3>::from_dispatch(lse), // [num_tokens, heads, 1]
    );
    let out = out.reshape([plan.num_tokens(), row]).cast(dtype); // [num_tokens, heads * head_dim]
    let lse = lse.reshape([plan.num_tokens(), heads]); // [num_tokens, heads]
    (padded(out, tokens), padded(lse, tokens)) // [tokens, heads * head_dim], [tokens, heads]
}

fn host_backward(qkv: Tensor<2>, saved: [Tensor<2>; 3], plan: &TrainingPlan) -> Tensor<2> {
    let (dtype, [tokens, _]) = (qkv.dtype(), qkv.dims());
    let [q, k, v] = naive::training::split(documents(qkv, plan), plan).map(Tensor::into_dispatch);
    let [out, lse, d_out] = saved.map(|x| {
        let x = documents(x, plan).cast(DType::F32); // [num_tokens, ..]
        x.reshape([plan.num_tokens() as i32, plan.heads() as i32, -1]) // [num_tokens, heads, head_dim or 1]
            .into_dispatch()
    });
    let lengths = plan.lengths().clone();
    let (dq, dk, dv) = Dispatch::host_backward(q, k, v, out, lse, d_out, lengths);
    let gradients = [dq, dk, dv].map(Tensor::from_dispatch); // [num_tokens, heads or kv_heads, head_dim]
    padded(naive::training::join(gradients, dtype), tokens) // [tokens, (heads + 2 * kv_heads) * head_dim]
}

/// The rows of documents.
fn documents(x: Tensor<2>, plan: &TrainingPlan) -> Tensor<2> {
    x.narrow(0, 0, plan.num_tokens()) // [num_tokens, columns]
}

/// Rows of documents, with rows of zeros behind them.
fn padded(x: Tensor<2>, tokens: usize) -> Tensor<2> {
    let [num, columns] = x.dims();
    if num == tokens {
        return x;
    }
    let zeros = Tensor::<2>::zeros([tokens - num, columns], &x.device()).cast(x.dtype()); // [tokens - num, columns]
    Tensor::cat(vec![x, zeros], 0) // [tokens, columns]
}
