//! Queries over block tables.

use super::*;

#[test]
fn paged_attention_matches_contiguous_attention_on_random_batches() {
    let mut rng = Rng(1);
    for case in 0..60 {
        let [heads, kv_heads] = rng.pick(&[
            [1, 1],
            [2, 1],
            [4, 2],
            [14, 2],
            [8, 8],
            [7, 1],
            [16, 1],
            [12, 2],
        ]);
        let head_dim = rng.pick(&[16, 24, 32, 48, 64, 80, 96, 128, 20]);
        let dtype = rng.pick(&[DType::F32, DType::BF16]);
        let block_size = rng.pick(&[1, 8, 16]);
        let num_sequences = 1 + rng.below(5);
        let lens: Vec<(usize, usize)> = (0..num_sequences)
            .map(|_| {
                let context = 1 + rng.below(150);
                let queries = match rng.below(3) {
                    0 => 1,
                    1 => context,
                    _ => 1 + rng.below(context),
                };
                (queries, context)
            })
            .collect();
        let dims = [heads, kv_heads, head_dim];
        let what = format!("case {case}: {dims:?} {dtype:?} block {block_size} {lens:?}");
        Case::new(&mut rng, dims, block_size, dtype, &lens).check(&what);
    }
}

#[test]
fn a_long_decode_is_split_over_its_context() {
    let mut rng = Rng(2);
    for (dims, dtype) in [
        ([14, 2, 64], DType::F32),
        ([14, 2, 64], DType::BF16),
        ([3, 1, 24], DType::F32),
    ] {
        let what = format!("{dims:?} {dtype:?}");
        Case::new(&mut rng, dims, 16, dtype, &[(1, 2049)]).check(&what);
        Case::new(&mut rng, dims, 16, dtype, &[(1, 700), (1, 3), (5, 9)]).check(&what);
    }
}

#[test]
fn long_prompts_see_what_is_before_them() {
    let mut rng = Rng(7);
    for dims in [[12, 2, 128], [14, 2, 64], [6, 6, 128]] {
        let lens = [(300, 700), (1, 140), (257, 257), (3, 500)];
        let what = format!("{dims:?}");
        Case::new(&mut rng, dims, 16, DType::BF16, &lens).check(&what);
    }
}

#[test]
fn a_chunked_prefill_equals_one_shot() {
    let (dims, block_size, context) = ([14, 2, 64], 16, 301);
    let [heads, kv_heads, head_dim] = dims;
    let mut rng = Rng(3);
    let device = Device::flex();
    let table = rng.shuffled(30);
    let (q, k, v) = (
        rng.values(context * heads * head_dim),
        rng.values(context * kv_heads * head_dim),
        rng.values(context * kv_heads * head_dim),
    );
    let expected = reference(dims, &q, &k, &v);
    let shape = KvShape {
        num_layers: 1,
        num_kv_heads: kv_heads,
        head_dim,
        block_size,
        num_blocks: 30,
        dtype: DType::F32,
    };
    for chunk in [301, 128, 50, 7] {
        let mut cache = PagedKvCache::new(&shape, &device);
        let mut out = Vec::new();
        for start in (0..context).step_by(chunk) {
            let end = context.min(start + chunk);
            let part = |from: &[f32], heads: usize| {
                let row = heads * head_dim;
                tensor(
                    &from[start * row..end * row],
                    [end - start, heads, head_dim],
                    &device,
                )
            };
            let chunk = SequenceChunk {
                query_len: end - start,
                context_len: end,
                block_table: &table,
            };
            let batch = AttentionBatch::new(&[chunk], block_size);
            let mut attention = PagedAttention::new(&mut cache, &batch);
            let rotary = unrotated(end - start, head_dim, &device);
            let [q, k, v] = [part(&q, heads), part(&k, kv_heads), part(&v, kv_heads)];
            let step = attention.attend(0, q, k, v, &rotary, DType::F32);
            out.extend(values(step));
        }
        assert_close(&out, &expected, 1e-4, &format!("chunks of {chunk}"));
    }
}

/// Neighbours in one sequence share tiles, and other sequences run beside them: each decode has the bits that it has alone.
#[test]
fn a_decode_has_the_bits_that_it_has_alone() {
    for ([heads, kv_heads, head_dim], dtype) in [
        ([14, 2, 64], DType::F32),
        ([14, 2, 64], DType::BF16),
        ([16, 1, 32], DType::F32),
        ([4, 4, 24], DType::F32),
    ] {
        let (mut rng, device, block_size) = (Rng(5), Device::flex(), 16);
        let shape = KvShape {
            num_layers: 1,
            num_kv_heads: kv_heads,
            head_dim,
            block_size,
            num_blocks: 100,
            dtype,
        };
        let mut cache = PagedKvCache::new(&shape, &device);
        let blocks = rng.shuffled(100);
        let (table, other) = blocks.split_at(70);
        let mut attend = |tokens: &[(usize, &[u32])], [q, k, v]: [&[f32]; 3]| {
            let chunk = |&(context_len, block_table)| SequenceChunk {
                query_len: 1,
                context_len,
                block_table,
            };
            let chunks: Vec<SequenceChunk<'_>> = tokens.iter().map(chunk).collect();
            let batch = AttentionBatch::new(&chunks, block_size);
            let mut attention = PagedAttention::new(&mut cache, &batch);
            let num = tokens.len();
            let rotary = unrotated(num, head_dim, &device);
            let q = tensor(q, [num, heads, head_dim], &device);
            let [k, v] = [k, v].map(|x| tensor(x, [num, kv_heads, head_dim], &device));
            values(attention.attend(0, q, k, v, &rotary, DType::F32))
        };
        let mut random = |num: usize| {
            let [q, k, v] = [heads, kv_heads, kv_heads].map(|of| rng.values(num * of * head_dim));
            (q, k, v)
        };
        // Fill the cache, 60 neighbours at a time.
        for (table, len) in [(table, 1100), (other, 420)] {
            for first in (1..=len).step_by(60) {
                let tokens: Vec<(usize, &[u32])> =
                    (first..=len.min(first + 59)).map(|n| (n, table)).collect();
                let (q, k, v) = random(tokens.len());
                attend(&tokens, [&q, &k, &v]);
            }
        }
        for first in [1, 15, 60, 125, 250, 300, 380, 509, 700, 767, 1020] {
            let mut tokens: Vec<(usize, &[u32])> = (first..first + 7).map(|n| (n, table)).collect();
            tokens.insert(0, (400, other));
            tokens.push((401, other));
            let (q, k, v) = random(tokens.len());
            let together = attend(&tokens, [&q, &k, &v]);
            for (i, &token) in tokens.iter().enumerate() {
                let part = |x: &[f32]| {
                    let row = x.len() / tokens.len();
                    x[i * row..(i + 1) * row].to_vec()
                };
                let alone = attend(&[token], [&part(&q), &part(&k), &part(&v)]);
                assert!(
                    alone == part(&together),
                    "{heads} heads, {kv_heads} of keys, {dtype:?}, from {first}, row {i}"
                );
            }
        }
    }
}

fn pointers(cache: &PagedKvCache) -> Vec<*const u8> {
    let pointer = |tensor: Tensor<3>| {
        let primitive = tensor
            .try_into_primitive::<Flex>()
            .expect("a tensor on Flex");
        primitive.bytes().as_ptr()
    };
    (0..cache.shape().num_layers)
        .flat_map(|layer| {
            let (k, v) = cache.layer(layer);
            [pointer(k), pointer(v)]
        })
        .collect()
}

#[test]
fn writes_happen_in_place() {
    for dtype in [DType::F32, DType::BF16] {
        let shape = KvShape {
            num_layers: 3,
            num_kv_heads: 2,
            head_dim: 32,
            block_size: 8,
            num_blocks: 20,
            dtype,
        };
        let device = Device::flex();
        let mut cache = PagedKvCache::new(&shape, &device);
        let before = pointers(&cache);
        let mut rng = Rng(4);
        let table = rng.shuffled(20);
        for context_len in 1..=160 {
            let chunk = SequenceChunk {
                query_len: 1,
                context_len,
                block_table: &table,
            };
            let batch = AttentionBatch::new(&[chunk], 8);
            for layer in 0..3 {
                let (q, k) = (rng.values(4 * 32), rng.values(2 * 32));
                let q = tensor(&q, [1, 4, 32], &device);
                let k = tensor(&k, [1, 2, 32], &device);
                let rotary = unrotated(1, 32, &device);
                let mut attention = PagedAttention::new(&mut cache, &batch);
                attention.attend(layer, q, k.clone(), k, &rotary, DType::F32);
            }
            assert_eq!(pointers(&cache), before, "{dtype:?}, step {context_len}");
        }
        let (k, _) = cache.layer(2);
        assert!(
            values(k).iter().all(|value| *value != 0.0),
            "all slots written"
        );
    }
}

#[test]
#[should_panic(expected = "the batch names cache row 39 of 32")]
fn a_block_outside_of_the_cache_is_refused() {
    let shape = KvShape {
        num_layers: 1,
        num_kv_heads: 1,
        head_dim: 16,
        block_size: 8,
        num_blocks: 4,
        dtype: DType::F32,
    };
    let device = Device::flex();
    let mut cache = PagedKvCache::new(&shape, &device);
    let chunk = SequenceChunk {
        query_len: 1,
        context_len: 1,
        block_table: &[4],
    };
    let k = tensor(&[0.0; 16], [1, 1, 16], &device);
    cache.write(0, k.clone(), k, &AttentionBatch::new(&[chunk], 8));
}
