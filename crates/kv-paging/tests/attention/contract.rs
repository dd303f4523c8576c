//! What every implementation of [`Attention`] does besides attending.

use super::*;

const DIMS: Dims = [4, 2, 16];
const TOKENS: usize = 9;

/// Calls `check` with both implementations that run everywhere, over one sequence of [`TOKENS`] tokens.
fn for_each_attention(device: &Device, mut check: impl FnMut(&mut dyn Attention, &str)) {
    check(&mut CausalAttention::new(&[TOKENS]), "causal");
    let shape = KvShape {
        num_layers: 1,
        num_kv_heads: DIMS[1],
        head_dim: DIMS[2],
        block_size: 4,
        num_blocks: 3,
        dtype: DType::F32,
    };
    let mut cache = PagedKvCache::new(&shape, device);
    let chunk = SequenceChunk {
        query_len: TOKENS,
        context_len: TOKENS,
        block_table: &[1, 2, 0],
    };
    let batch = AttentionBatch::new(&[chunk], 4);
    check(&mut PagedAttention::new(&mut cache, &batch), "paged");
}

#[test]
fn queries_and_keys_are_rotated() {
    let [heads, kv_heads, head_dim] = DIMS;
    let mut rng = Rng(21);
    let inputs = [heads, kv_heads, kv_heads].map(|heads| rng.values(TOKENS * heads * head_dim));
    let angles = rng.values(TOKENS * head_dim / 2);
    let turn = |values: &[f32], heads: usize| -> Vec<f32> {
        let tokens = values.chunks(heads * head_dim);
        tokens
            .zip(angles.chunks(head_dim / 2))
            .flat_map(|(token, angles)| rotated(token, angles))
            .collect()
    };
    let (q, k) = (turn(&inputs[0], heads), turn(&inputs[1], kv_heads));
    let expected = reference(DIMS, &q, &k, &inputs[2]);
    for device in devices() {
        let [cos, sin] = [f32::cos, f32::sin].map(|f| {
            let values: Vec<f32> = angles.iter().map(|&angle| f(angle)).collect();
            tensor(&values, [TOKENS, 1, head_dim / 2], &device)
        });
        let rotary = Rotary { cos, sin };
        for_each_attention(&device, |attention, name| {
            let [q, k, v] = [(0, heads), (1, kv_heads), (2, kv_heads)]
                .map(|(i, heads)| tensor(&inputs[i], [TOKENS, heads, head_dim], &device));
            let out = attention.attend(0, q, k, v, &rotary, DType::F32);
            // Burn multiplies f32 on tensor cores with 10 bits.
            let is_gpu = device != Device::flex();
            let tolerance = if is_gpu { 3e-3 } else { 1e-4 };
            assert_close(&values(out), &expected, tolerance, name);
        });
    }
}

#[test]
fn the_result_has_the_type_that_is_asked_for() {
    let [heads, kv_heads, head_dim] = DIMS;
    let mut rng = Rng(22);
    let device = Device::flex();
    let inputs = [heads, kv_heads, kv_heads].map(|heads| {
        let values = rng.values(TOKENS * heads * head_dim);
        tensor(&values, [TOKENS, heads, head_dim], &device)
    });
    let rotary = unrotated(TOKENS, head_dim, &device);
    for_each_attention(&device, |attention, name| {
        let mut attend = |dtype| {
            let [q, k, v] = inputs.clone();
            attention.attend(0, q, k, v, &rotary, dtype)
        };
        let (exact, rounded) = (attend(DType::F32), attend(DType::BF16));
        assert_eq!(rounded.dtype(), DType::BF16, "{name}");
        assert_close(&values(rounded), &values(exact), 1e-2, name);
    });
}
