//! Packed documents, and their gradients.

use super::*;

/// Packed `q`, `k`, `v` of documents.
fn documents(rng: &mut Rng, [heads, kv_heads, head_dim]: Dims, lengths: &[usize]) -> [Vec<f32>; 3] {
    let tokens: usize = lengths.iter().sum();
    [heads, kv_heads, kv_heads].map(|heads| rng.values(tokens * heads * head_dim))
}

/// The shapes of `q`, `k`, `v`.
fn shapes([heads, kv_heads, head_dim]: Dims, lengths: &[usize]) -> [[usize; 3]; 3] {
    let tokens = lengths.iter().sum();
    [heads, kv_heads, kv_heads].map(|heads| [tokens, heads, head_dim])
}

const DOCUMENTS: [(Dims, &[usize]); 8] = [
    ([4, 2, 16], &[5, 5, 5]),
    ([14, 2, 64], &[150]),
    ([14, 2, 64], &[33, 1, 90, 64]),
    ([3, 3, 24], &[200, 7]),
    ([8, 1, 128], &[65, 65]),
    ([2, 2, 20], &[9, 4]),
    ([6, 2, 32], &[1]),
    ([1, 1, 16], &[300, 17]),
];

#[test]
fn causal_attention_matches_the_reference_per_document() {
    let mut rng = Rng(5);
    let device = Device::flex();
    for (dims, lengths) in DOCUMENTS {
        let inputs = documents(&mut rng, dims, lengths);
        let [q, k, v]: [Tensor<3>; 3] =
            std::array::from_fn(|i| tensor(&inputs[i], shapes(dims, lengths)[i], &device));
        let [heads, kv_heads, head_dim] = dims;
        let mut expected = Vec::new();
        let mut start = 0;
        for &len in lengths {
            let part = |i: usize, heads: usize| {
                let row = heads * head_dim;
                &inputs[i][start * row..(start + len) * row]
            };
            expected.extend(reference(
                dims,
                part(0, heads),
                part(1, kv_heads),
                part(2, kv_heads),
            ));
            start += len;
        }
        let mut attention = CausalAttention::new(lengths);
        let twin = naive::causal_attention(q.clone(), k.clone(), v.clone(), attention.plan());
        assert_close(
            &values(twin),
            &expected,
            1e-4,
            &format!("twin {dims:?} {lengths:?}"),
        );
        let rotary = unrotated(lengths.iter().sum(), head_dim, &device);
        let fast = attention.attend(0, q, k, v, &rotary, DType::F32);
        assert_close(
            &values(fast),
            &expected,
            1e-4,
            &format!("fast path {dims:?} {lengths:?}"),
        );
    }
}

#[test]
fn gradients_match_burns_autodiff_over_the_twin() {
    let mut rng = Rng(6);
    for device in [
        Device::flex().autodiff(),
        Device::flex().autodiff().gradient_checkpointing(),
    ] {
        for (dims, lengths) in DOCUMENTS {
            let inputs = documents(&mut rng, dims, lengths);
            let shapes = shapes(dims, lengths);
            let weights = rng.values(inputs[0].len());
            let attention = CausalAttention::new(lengths);
            let rotary = unrotated(attention.num_tokens(), dims[2], &Device::flex());
            let gradients = |fast: bool| -> [Vec<f32>; 4] {
                let [q, k, v]: [Tensor<3>; 3] =
                    std::array::from_fn(|i| tensor(&inputs[i], shapes[i], &device).require_grad());
                let (a, b, c) = (q.clone(), k.clone(), v.clone());
                let mut attention = attention.clone();
                let out = match fast {
                    true => attention.attend(0, a, b, c, &rotary, DType::F32),
                    false => naive::causal_attention(a, b, c, attention.plan()),
                };
                let loss = (out.clone() * tensor(&weights, shapes[0], &device)).sum();
                let grads = loss.backward();
                let [dq, dk, dv] = [q, k, v].map(|t| values(t.grad(&grads).unwrap()));
                [values(out.inner()), dq, dk, dv]
            };
            let (got, expected) = (gradients(true), gradients(false));
            for (name, (got, expected)) in ["out", "dq", "dk", "dv"]
                .iter()
                .zip(got.iter().zip(&expected))
            {
                let what = format!("{name}, {dims:?} {lengths:?}");
                assert_close(got, expected, 2e-4, &what);
                // Sums of small numbers agree relative to the largest, too.
                let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                assert!(largest > 1e-3 || lengths == [1], "{what}: all but zero");
            }
        }
    }
}

#[test]
fn constant_keys_need_no_graph() {
    let (dims, lengths) = ([4, 2, 32], [40, 3]);
    let mut rng = Rng(7);
    let inputs = documents(&mut rng, dims, &lengths);
    let shapes = shapes(dims, &lengths);
    let device = Device::flex();
    let attention = CausalAttention::new(&lengths);
    let rotary = unrotated(attention.num_tokens(), dims[2], &device);
    let gradient = |fast: bool| {
        let [q, k, v]: [Tensor<3>; 3] =
            std::array::from_fn(|i| tensor(&inputs[i], shapes[i], &device));
        let q = q.autodiff().require_grad();
        let mut attention = attention.clone();
        let out = match fast {
            true => attention.attend(0, q.clone(), k, v, &rotary, DType::F32),
            false => naive::causal_attention(q.clone(), k, v, attention.plan()),
        };
        let grads = (out.clone() * out).sum().backward();
        values(q.grad(&grads).unwrap())
    };
    assert_close(&gradient(true), &gradient(false), 2e-4, "dq");
}
