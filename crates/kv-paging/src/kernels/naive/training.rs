//! The twins of attention in a training step written by hand. They compute in f32 and round once, to the type of their
//! input.

use burn::tensor::{DType, Tensor};

use super::HIDDEN;
use crate::kernels::training::heads::{HeadNormInput, HeadNorms};
use crate::kernels::training::plan::TrainingPlan;
use crate::rotary::Rotary;

/// Turns queries and keys by their positions, after their head norms; values stay as they are.
///
/// # Shapes
///
/// - `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`, as the result
pub fn rotate(
    qkv: Tensor<2>,
    norms: Option<HeadNorms<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    let dtype = qkv.dtype();
    let [q, k, v] = split(qkv, plan);
    let (q, k) = match norms {
        Some(norms) => (
            head_norm(q, norms.q, norms.eps),
            head_norm(k, norms.k, norms.eps),
        ),
        None => (q, k),
    }; // [tokens, heads or kv_heads, head_dim]
    let (q, k) = (super::apply_rope(q, rotary), super::apply_rope(k, rotary)); // [tokens, heads or kv_heads, head_dim]
    join([q, k, v], dtype)
}

/// The gradient of [`rotate`] with respect to its input.
///
/// # Shapes
///
/// - `d`: `[tokens, (heads + 2 * kv_heads) * head_dim]`, as the result
pub fn rotate_backward(
    d: Tensor<2>,
    head_norms: Option<HeadNormInput<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    let dtype = d.dtype();
    let back = Rotary {
        cos: rotary.cos.clone(),
        sin: rotary.sin.clone().neg(),
    };
    let [dq, dk, dv] = split(d, plan);
    let (dq, dk) = (super::apply_rope(dq, &back), super::apply_rope(dk, &back)); // [tokens, heads or kv_heads, head_dim]
    let (dq, dk) = match head_norms {
        Some(HeadNormInput { qkv, norms }) => {
            let [q, k, _] = split(qkv, plan);
            (
                head_norm_backward(dq, q, norms.q, norms.eps),
                head_norm_backward(dk, k, norms.k, norms.eps),
            )
        }
        None => (dq, dk),
    }; // [tokens, heads or kv_heads, head_dim]
    join([dq, dk, dv], dtype)
}

/// Causal attention within documents: the output and the log-sum-exp of each row's scaled scores.
///
/// # Shapes
///
/// - `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`
/// - returns `[tokens, heads * head_dim]` and, in f32, `[tokens, heads]`
pub fn forward(qkv: Tensor<2>, plan: &TrainingPlan) -> (Tensor<2>, Tensor<2>) {
    let (dtype, tokens) = (qkv.dtype(), qkv.dims()[0]);
    let (heads, head_dim) = (plan.heads(), plan.head_dim());
    if plan.num_tokens() == 0 {
        let zeros = |columns| Tensor::<2>::zeros([tokens, columns], &qkv.device());
        let (out, lse) = (zeros(heads * head_dim), zeros(heads));
        return (out.cast(dtype), lse.cast(DType::F32)); // [tokens, heads * head_dim], [tokens, heads]
    }
    let [q, k, v] = split(qkv, plan);
    let (q, k, v) = (queries(q, plan), keys(k, plan), keys(v, plan)); // [documents * kv_heads, ..]
    let scores = scores(q, k, plan); // [documents * kv_heads, max_len * group, max_len]
    let max = scores.clone().max_dim(2); // [documents * kv_heads, max_len * group, 1]
    let weights = (scores - max.clone()).exp(); // [documents * kv_heads, max_len * group, max_len]
    let sum = weights.clone().sum_dim(2); // [documents * kv_heads, max_len * group, 1]
    let out = (weights / sum.clone()).matmul(v); // [documents * kv_heads, max_len * group, head_dim]
    let lse = max + sum.log(); // [documents * kv_heads, max_len * group, 1]
    let out = packed_queries(out, tokens, plan); // [tokens, heads, head_dim]
    let lse = packed_queries(lse, tokens, plan); // [tokens, heads, 1]
    (
        out.reshape([tokens, heads * head_dim]).cast(dtype), // [tokens, heads * head_dim]
        lse.reshape([tokens, heads]),                        // [tokens, heads]
    )
}

/// The gradient of [`forward`] with respect to `qkv`.
///
/// # Shapes
///
/// - `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`, as the result
/// - `out`, `d_out`: `[tokens, heads * head_dim]`; `lse`: `[tokens, heads]`
pub fn backward(
    qkv: Tensor<2>,
    [out, lse, d_out]: [Tensor<2>; 3],
    plan: &TrainingPlan,
) -> Tensor<2> {
    let (dtype, tokens) = (qkv.dtype(), qkv.dims()[0]);
    let (heads, head_dim) = (plan.heads(), plan.head_dim());
    if plan.num_tokens() == 0 {
        return qkv.zeros_like();
    }
    let [q, k, v] = split(qkv, plan);
    let (q, k, v) = (queries(q, plan), keys(k, plan), keys(v, plan)); // [documents * kv_heads, ..]
    let rows = |x: Tensor<2>, columns| {
        let x = x.cast(DType::F32).reshape([tokens, heads, columns]); // [tokens, heads, columns]
        queries(x, plan) // [documents * kv_heads, max_len * group, columns]
    };
    let (out, lse, d_out) = (rows(out, head_dim), rows(lse, 1), rows(d_out, head_dim)); // [documents * kv_heads, max_len * group, ..]
    let scale = 1.0 / (head_dim as f64).sqrt();
    let weights = (scores(q.clone(), k.clone(), plan) - lse).exp(); // [documents * kv_heads, max_len * group, max_len]
    let delta = (out * d_out.clone()).sum_dim(2); // [documents * kv_heads, max_len * group, 1]
    let dv = weights.clone().transpose().matmul(d_out.clone()); // [documents * kv_heads, max_len, head_dim]
    let d_weights = d_out.matmul(v.transpose()); // [documents * kv_heads, max_len * group, max_len]
    let d_scores = weights * (d_weights - delta) * scale; // [documents * kv_heads, max_len * group, max_len]
    let dq = d_scores.clone().matmul(k); // [documents * kv_heads, max_len * group, head_dim]
    let dk = d_scores.transpose().matmul(q); // [documents * kv_heads, max_len, head_dim]
    let dq = packed_queries(dq, tokens, plan); // [tokens, heads, head_dim]
    let (dk, dv) = (packed_keys(dk, tokens, plan), packed_keys(dv, tokens, plan)); // [tokens, kv_heads, head_dim]
    join([dq, dk, dv], dtype)
}

/// Queries, keys and values of fused rows, in f32: `[tokens, heads or kv_heads, head_dim]`.
pub(in crate::kernels) fn split(qkv: Tensor<2>, plan: &TrainingPlan) -> [Tensor<3>; 3] {
    let [tokens, _] = qkv.dims();
    let (heads, kv_heads) = (plan.heads(), plan.kv_heads());
    let all = heads + 2 * kv_heads;
    let qkv = qkv.cast(DType::F32).reshape([tokens, all, plan.head_dim()]); // [tokens, all, head_dim]
    let part = |start, len| qkv.clone().narrow(1, start, len); // [tokens, len, head_dim]
    [
        part(0, heads),
        part(heads, kv_heads),
        part(heads + kv_heads, kv_heads),
    ]
}

/// The fused rows of queries, keys and values: `[tokens, (heads + 2 * kv_heads) * head_dim]`.
pub(in crate::kernels) fn join(parts: [Tensor<3>; 3], dtype: DType) -> Tensor<2> {
    let qkv = Tensor::cat(parts.to_vec(), 1); // [tokens, heads + 2 * kv_heads, head_dim]
    let [tokens, all, head_dim] = qkv.dims();
    qkv.reshape([tokens, all * head_dim]).cast(dtype) // [tokens, (heads + 2 * kv_heads) * head_dim]
}

/// RMSNorm of each head of `x` `[tokens, heads, head_dim]`.
fn head_norm(x: Tensor<3>, weight: &Tensor<1>, eps: f64) -> Tensor<3> {
    let weight = weight.clone().cast(DType::F32).reshape([1, 1, -1]); // [1, 1, head_dim]
    let inverse = inverse_rms(&x, eps); // [tokens, heads, 1]
    x * inverse * weight // [tokens, heads, head_dim]
}

/// The gradient of [`head_norm`] with respect to `x`.
fn head_norm_backward(d: Tensor<3>, x: Tensor<3>, weight: &Tensor<1>, eps: f64) -> Tensor<3> {
    let weight = weight.clone().cast(DType::F32).reshape([1, 1, -1]); // [1, 1, head_dim]
    let inverse = inverse_rms(&x, eps); // [tokens, heads, 1]
    let d = d * weight; // [tokens, heads, head_dim]
    let along = (d.clone() * x.clone()).mean_dim(2); // [tokens, heads, 1]
    let drop = along * inverse.clone().powi_scalar(3); // [tokens, heads, 1]
    d * inverse - x * drop // [tokens, heads, head_dim]
}

fn inverse_rms(x: &Tensor<3>, eps: f64) -> Tensor<3> {
    let mean = (x.clone() * x.clone()).mean_dim(2); // [tokens, heads, 1]
    (mean + eps).sqrt().recip() // [tokens, heads, 1]
}

/// Documents padded to the longest with rows of zeros: `[tokens, n, columns]` to `[documents, max_len, n, columns]`.
fn batched(x: Tensor<3>, plan: &TrainingPlan) -> Tensor<4> {
    let [_, n, columns] = x.dims();
    let x = x.narrow(0, 0, plan.num_tokens()); // [num_tokens, n, columns]
    let x = match plan.padding(&x.device()) {
        Some(rows) => {
            let zeros = Tensor::<3>::zeros([1, n, columns], &x.device()).cast(DType::F32); // [1, n, columns]
            Tensor::cat(vec![x, zeros], 0).select(0, rows.pad.clone()) // [documents * max_len, n, columns]
        }
        None => x,
    };
    x.reshape([plan.lengths().len(), plan.max_len(), n, columns]) // [documents, max_len, n, columns]
}

/// [`batched`] undone, with zeros in the rows behind the documents.
fn packed(x: Tensor<4>, tokens: usize, plan: &TrainingPlan) -> Tensor<3> {
    let [documents, len, n, columns] = x.dims();
    let x = x.reshape([documents * len, n, columns]); // [documents * max_len, n, columns]
    let x = match plan.padding(&x.device()) {
        Some(rows) => x.select(0, rows.unpad.clone()), // [num_tokens, n, columns]
        None => x,
    };
    let behind = tokens - plan.num_tokens();
    if behind == 0 {
        return x;
    }
    let zeros = Tensor::<3>::zeros([behind, n, columns], &x.device()).cast(DType::F32); // [behind, n, columns]
    Tensor::cat(vec![x, zeros], 0) // [tokens, n, columns]
}

/// The query heads of a key/value head as rows of one matrix:
/// `[tokens, heads, columns]` to `[documents * kv_heads, max_len * group, columns]`.
fn queries(x: Tensor<3>, plan: &TrainingPlan) -> Tensor<3> {
    let (x, kv_heads) = (batched(x, plan), plan.kv_heads()); // [documents, max_len, heads, columns]
    let [n, len, heads, columns] = x.dims();
    let group = heads / kv_heads;
    let x = x
        .reshape([n, len, kv_heads, group * columns])
        .swap_dims(1, 2); // [n, kv_heads, len, group * columns]
    x.reshape([n * kv_heads, len * group, columns])
}

/// [`queries`] undone.
fn packed_queries(x: Tensor<3>, tokens: usize, plan: &TrainingPlan) -> Tensor<3> {
    let ([_, rows, columns], kv_heads) = (x.dims(), plan.kv_heads());
    let (n, group) = (plan.lengths().len(), plan.heads() / kv_heads);
    let len = rows / group;
    let x = x
        .reshape([n, kv_heads, len, group * columns])
        .swap_dims(1, 2); // [n, len, kv_heads, group * columns]
    packed(x.reshape([n, len, kv_heads * group, columns]), tokens, plan) // [tokens, heads, columns]
}

/// `[tokens, kv_heads, head_dim]` to `[documents * kv_heads, max_len, head_dim]`.
fn keys(x: Tensor<3>, plan: &TrainingPlan) -> Tensor<3> {
    let x = batched(x, plan); // [documents, max_len, kv_heads, head_dim]
    let [n, len, kv_heads, head_dim] = x.dims();
    x.swap_dims(1, 2).reshape([n * kv_heads, len, head_dim])
}

/// [`keys`] undone.
fn packed_keys(x: Tensor<3>, tokens: usize, plan: &TrainingPlan) -> Tensor<3> {
    let ([_, len, head_dim], kv_heads) = (x.dims(), plan.kv_heads());
    let x = x.reshape([plan.lengths().len(), kv_heads, len, head_dim]); // [documents, kv_heads, len, head_dim]
    packed(x.swap_dims(1, 2), tokens, plan) // [tokens, kv_heads, head_dim]
}

/// Scaled scores of [`queries`] and [`keys`]; keys behind a query are hidden.
fn scores(q: Tensor<3>, k: Tensor<3>, plan: &TrainingPlan) -> Tensor<3> {
    let ([n, rows, head_dim], len) = (q.dims(), plan.max_len());
    let hidden = plan.hidden(&q.device()).clone(); // [1, max_len, max_len]
    let scores = q.matmul(k.transpose()) / (head_dim as f64).sqrt(); // [n, len * group, len]
    let all = [n, len, rows / len * len];
    let hidden = hidden.repeat_dim(2, rows / len).expand(all); // [n, len, group * len]
    let scores = scores.reshape(all).mask_fill(hidden, HIDDEN); // [n, len, group * len]
    scores.reshape([n, rows, len]) // [n, len * group, len]
}
