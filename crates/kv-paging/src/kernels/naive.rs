//! The twins made of plain tensor operations: they run on every backend, never read back to the
//! host, and are what the fast paths are tested against.
//!
//! Key/value heads are not repeated for grouped queries: the query heads of one key/value head
//! are folded into the rows of one matrix product.

pub mod training;

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, IndexingUpdateOp, Tensor};

use super::plan::{BatchPlan, DocumentPlan};
use crate::rotary::Rotary;

/// Score of a key that a query must not see. Finite, since WGSL has no infinities; its
/// exponential is zero next to any real score.
const HIDDEN: f32 = -1e30;

/// Rotary position embedding: dimension `i` of each head is turned together with dimension `i + head_dim / 2`.
///
/// # Shapes
///
/// - `x`: `[tokens, heads, head_dim]`, returned rotated
pub fn apply_rope(x: Tensor<3>, rotary: &Rotary) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let first = x.clone().narrow(2, 0, half); // [tokens, heads, head_dim / 2]
    let second = x.narrow(2, half, half); // [tokens, heads, head_dim / 2]
    let (cos, sin) = (rotary.cos.clone(), rotary.sin.clone()); // [tokens, 1, head_dim / 2]
    let rotated_first = first.clone() * cos.clone() - second.clone() * sin.clone(); // [tokens, heads, head_dim / 2]
    let rotated_second = second * cos + first * sin; // [tokens, heads, head_dim / 2]
    Tensor::cat(vec![rotated_first, rotated_second], 2) // [tokens, heads, head_dim]
}

/// Writes `new` to the cache rows of this step's tokens.
///
/// # Shapes
///
/// - `cache`: `[slots, kv_heads, head_dim]`, returned with `new` `[tokens, kv_heads, head_dim]` written
pub fn kv_write(cache: Tensor<3>, new: Tensor<3>, plan: &BatchPlan) -> Tensor<3> {
    let slot_mapping = plan.gather(&cache.device()).slot_mapping.clone(); // [tokens]
    let new = new.cast(cache.dtype()); // [tokens, kv_heads, head_dim]
    cache.select_assign(0, slot_mapping, new, IndexingUpdateOp::Assign) // [slots, kv_heads, head_dim]
}

/// Attention of packed queries over the sequences' rows of the cache.
///
/// # Shapes
///
/// - `q`: `[tokens, heads, head_dim]`; `k`, `v`: `[slots, kv_heads, head_dim]`
/// - returns `[tokens, heads, head_dim]`
pub fn paged_attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, plan: &BatchPlan) -> Tensor<3> {
    let ([_, heads, head_dim], [_, kv_heads, _]) = (q.dims(), k.dims());
    let gather = plan.gather(&q.device());
    let mut outputs = Vec::with_capacity(gather.groups.len());
    for group in &gather.groups {
        let (n, c) = (group.num_sequences, group.context_len);
        let queries = match &group.rows {
            Some(rows) => q.clone().select(0, rows.clone()),
            None => q.clone(),
        }; // [n * q, heads, head_dim]
        let queries = queries.reshape([n, group.query_len, heads, head_dim]); // [n, q, heads, head_dim]
        let rows_of = |cache: &Tensor<3>| {
            let rows = cache.clone().select(0, group.keys.clone()); // [n * c, kv_heads, head_dim]
            rows.cast(q.dtype()).reshape([n, c, kv_heads, head_dim]) // [n, c, kv_heads, head_dim]
        };
        let output = attention(queries, rows_of(&k), rows_of(&v), group.hidden.clone()); // [n, q, heads, head_dim]
        outputs.push(output.reshape([n * group.query_len, heads, head_dim])); // [n * q, heads, head_dim]
    }
    let output = match outputs.len() {
        0 => return q,
        1 => outputs.remove(0),
        _ => Tensor::cat(outputs, 0),
    }; // [tokens, heads, head_dim]
    match &gather.order {
        Some(order) => output.select(0, order.clone()), // [tokens, heads, head_dim]
        None => output,
    }
}

/// Causal attention within packed documents, batched: ragged documents are padded to the longest.
///
/// # Shapes
///
/// - `q`: `[tokens, heads, head_dim]`; `k`, `v`: `[tokens, kv_heads, head_dim]`
/// - returns `[tokens, heads, head_dim]`
pub fn causal_attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    plan: &DocumentPlan,
) -> Tensor<3> {
    let lengths = plan.lengths();
    let Some(&max_len) = lengths.iter().max() else {
        return q;
    };
    let padding = plan.padding(&q.device());
    let batched = |tensor: Tensor<3>| {
        let [_, heads, head_dim] = tensor.dims();
        let tensor = match &padding.rows {
            Some(rows) => tensor.select(0, rows.pad.clone()),
            None => tensor,
        }; // [documents * max_len, heads, head_dim]
        tensor.reshape([lengths.len(), max_len, heads, head_dim]) // [documents, max_len, heads, head_dim]
    };
    let [_, heads, head_dim] = q.dims();
    let output = attention(batched(q), batched(k), batched(v), padding.hidden.clone()); // [documents, max_len, heads, head_dim]
    let output = output.reshape([lengths.len() * max_len, heads, head_dim]); // [documents * max_len, heads, head_dim]
    match &padding.rows {
        Some(rows) => output.select(0, rows.unpad.clone()), // [tokens, heads, head_dim]
        None => output,
    }
}

/// Attention of a batch of equally long sequences; the softmax is in f32.
///
/// # Shapes
///
/// - `q`: `[n, queries, heads, head_dim]`; `k`, `v`: `[n, keys, kv_heads, head_dim]`
/// - `hidden`: `[n or 1, 1, queries, keys]`
/// - returns `[n, queries, heads, head_dim]`
fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, hidden: Tensor<4, Bool>) -> Tensor<4> {
    let [n, queries, heads, head_dim] = q.dims();
    let [_, keys, kv_heads, _] = k.dims();
    let group = heads / kv_heads;
    let dtype = q.dtype();
    let q = q.reshape([n, queries, kv_heads, group * head_dim]); // [n, queries, kv_heads, group * head_dim]
    let q = q.swap_dims(1, 2); // [n, kv_heads, queries, group * head_dim]
    let q = q.reshape([n * kv_heads, queries * group, head_dim]); // [n * kv_heads, queries * group, head_dim]
    let k = k.permute([0, 2, 3, 1]); // [n, kv_heads, head_dim, keys]
    let k = k.reshape([n * kv_heads, head_dim, keys]); // [n * kv_heads, head_dim, keys]
    let v = v.swap_dims(1, 2).reshape([n * kv_heads, keys, head_dim]); // [n * kv_heads, keys, head_dim]

    let scores = q.matmul(k).cast(DType::F32) / (head_dim as f64).sqrt(); // [n * kv_heads, queries * group, keys]
    let scores = scores.reshape([n, kv_heads, queries, group * keys]); // [n, kv_heads, queries, group * keys]
    let hidden = hidden.repeat_dim(3, group); // [n or 1, 1, queries, group * keys]
    let scores = scores.mask_fill(hidden.expand([n, kv_heads, queries, group * keys]), HIDDEN); // [n, kv_heads, queries, group * keys]
    let scores = scores.reshape([n * kv_heads, queries * group, keys]); // [n * kv_heads, queries * group, keys]
    let weights = softmax(scores, 2).cast(dtype); // [n * kv_heads, queries * group, keys]

    let output = weights.matmul(v); // [n * kv_heads, queries * group, head_dim]
    let output = output.reshape([n, kv_heads, queries, group * head_dim]); // [n, kv_heads, queries, group * head_dim]
    let output = output.swap_dims(1, 2); // [n, queries, kv_heads, group * head_dim]
    output.reshape([n, queries, heads, head_dim]) // [n, queries, heads, head_dim]
}
