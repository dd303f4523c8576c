//! Steps of one token per sequence on a GPU, which rotate, write and attend at once.

use kv_paging::{CHOICE_WORDS, DecodeStep, DecodeToken, RecordedAttention, StepRow};

use super::{assert_ran, gpu, has_dtype};
use crate::*;

#[test]
fn steps_equal_attention_over_what_they_wrote() {
    let gpu = gpu();
    let mut num_checked = 0;
    let mut rng = Rng(11);
    // More than a card computes at once, long ones last.
    let mut many = [20; 300];
    many[294..].copy_from_slice(&[1500, 511, 512, 513, 1024, 1]);
    for (dims, dtype, contexts) in [
        ([12, 2, 128], DType::BF16, &[129, 1, 700, 64, 65][..]),
        ([12, 2, 128], DType::BF16, &many[..]),
        ([14, 2, 64], DType::BF16, &[40, 3000][..]),
        ([4, 4, 64], DType::BF16, &[1; 300][..]),
        ([12, 2, 128], DType::F32, &[129, 1, 700][..]),
        ([3, 1, 24], DType::F32, &[5, 90][..]),
        ([16, 8, 32], DType::F32, &[33; 40][..]),
    ] {
        let [heads, kv_heads, head_dim] = dims;
        if !has_dtype(&gpu, dtype) || !DecodeStep::is_supported(&gpu, head_dim) {
            continue;
        }
        num_checked += 1;
        let what = format!("{dims:?} {dtype:?} {} sequences", contexts.len());
        let (block_size, num_steps) = (16, 3);
        let num_blocks = |context: usize| (context + num_steps).div_ceil(block_size);
        let blocks = rng.shuffled(contexts.iter().map(|&context| num_blocks(context)).sum());
        let mut rest = &blocks[..];
        let mut tables = Vec::new();
        for &context in contexts {
            let (table, others) = rest.split_at(num_blocks(context));
            tables.push(table);
            rest = others;
        }
        let shape = KvShape {
            num_layers: 1,
            num_kv_heads: kv_heads,
            head_dim,
            block_size,
            num_blocks: blocks.len(),
            dtype,
        };
        let mut cache = PagedKvCache::new(&shape, &gpu);

        // What came before: keys and values of each sequence.
        let row = kv_heads * head_dim;
        let round = |values: Vec<f32>| match dtype {
            DType::BF16 => values
                .into_iter()
                .map(|v| bf16::from_f32(v).to_f32())
                .collect(),
            _ => values,
        };
        let mut past: Vec<[Vec<f32>; 2]> = Vec::new();
        for (&context, table) in contexts.iter().zip(&tables) {
            let [k, v] = [0, 1].map(|_| round(rng.values(context * row)));
            let chunk = SequenceChunk {
                query_len: context,
                context_len: context,
                block_table: table,
            };
            let batch = AttentionBatch::new(&[chunk], block_size);
            let new = |values| tensor(values, [context, kv_heads, head_dim], &gpu);
            cache.write(0, new(&k), new(&v), &batch);
            past.push([k, v]);
        }

        // One row more than there are sequences.
        let num_rows = contexts.len() + 1;
        let step = DecodeStep::new(num_rows, 200, block_size, &gpu);
        let mut attention = RecordedAttention::new(step.clone(), &cache);
        for i in 0..num_steps {
            let rows: Vec<StepRow<'_>> = contexts
                .iter()
                .zip(&tables)
                .map(|(&context, table)| StepRow {
                    token: DecodeToken::Id(0),
                    adapter_slot: None,
                    position: context + i,
                    block_table: table,
                    choice: [-1; CHOICE_WORDS],
                })
                .collect();
            step.upload(&rows);
            let q = rng.values(num_rows * heads * head_dim);
            let [k, v] = [0, 1].map(|_| rng.values(num_rows * row));
            let angles = rng.values(num_rows * head_dim / 2);
            let [cos, sin] = [f32::cos, f32::sin].map(|f| {
                let values: Vec<f32> = angles.iter().map(|&angle| f(angle)).collect();
                tensor(&values, [num_rows, 1, head_dim / 2], &gpu)
            });
            let on_gpu = |values: &[f32], heads| tensor(values, [num_rows, heads, head_dim], &gpu);
            let [q_gpu, k_gpu, v_gpu] = [(&q, heads), (&k, kv_heads), (&v, kv_heads)]
                .map(|(values, heads)| on_gpu(values, heads));
            let rotary = Rotary { cos, sin };
            let out = attention.attend(0, q_gpu, k_gpu, v_gpu, &rotary, DType::F32);
            let out = values(out);
            for (s, [keys, values]) in past.iter_mut().enumerate() {
                let angles = &angles[s * head_dim / 2..][..head_dim / 2];
                keys.extend(round(rotated(&k[s * row..][..row], angles)));
                values.extend(round(v[s * row..][..row].to_vec()));
                let width = heads * head_dim;
                let q = rotated(&q[s * width..][..width], angles);
                let expected = reference(dims, &q, keys, values);
                let tolerance = if dtype == DType::BF16 { 2e-2 } else { 1e-4 };
                let what = format!("{what}, step {i}, sequence {s}");
                assert_close(&out[s * width..][..width], &expected, tolerance, &what);
            }
        }
    }
    assert_ran(num_checked, &gpu);
}

/// Rows that follow each other in one sequence see the keys that the rows before them write in the same step.
#[test]
fn rows_of_one_sequence_see_each_other() {
    let gpu = gpu();
    let mut num_checked = 0;
    let mut rng = Rng(12);
    for (dims, dtype) in [
        ([12, 2, 128], DType::BF16),
        ([14, 2, 64], DType::F32),
        ([3, 1, 24], DType::F32),
    ] {
        let [heads, kv_heads, head_dim] = dims;
        if !has_dtype(&gpu, dtype) || !DecodeStep::is_supported(&gpu, head_dim) {
            continue;
        }
        num_checked += 1;
        let block_size = 16;
        let shape = KvShape {
            num_layers: 1,
            num_kv_heads: kv_heads,
            head_dim,
            block_size,
            num_blocks: 20,
            dtype,
        };
        let cache = PagedKvCache::new(&shape, &gpu);
        let blocks = rng.shuffled(20);
        // Two sequences that begin in this step, and a row without one.
        let (first, second) = blocks.split_at(10);
        let positions = |len: usize, table| (0..len).map(move |position| (position, table));
        let rows: Vec<(usize, &[u32])> =
            positions(20, first).chain(positions(37, second)).collect();
        let num_rows = rows.len() + 1;
        let step = DecodeStep::new(num_rows, 10, block_size, &gpu);
        let mut attention = RecordedAttention::new(step.clone(), &cache).of_neighbours();
        let uploaded: Vec<StepRow<'_>> = (rows.iter())
            .map(|&(position, block_table)| StepRow {
                token: DecodeToken::Id(0),
                adapter_slot: None,
                position,
                block_table,
                choice: [-1; CHOICE_WORDS],
            })
            .collect();
        step.upload(&uploaded);
        let values_of = |rng: &mut Rng, heads: usize| rng.values(num_rows * heads * head_dim);
        let [q, k, v] = [heads, kv_heads, kv_heads].map(|heads| values_of(&mut rng, heads));
        let on_gpu = |values: &[f32], heads| tensor(values, [num_rows, heads, head_dim], &gpu);
        let rotary = unrotated(num_rows, head_dim, &gpu);
        let new = [
            on_gpu(&q, heads),
            on_gpu(&k, kv_heads),
            on_gpu(&v, kv_heads),
        ];
        let [q_gpu, k_gpu, v_gpu] = new;
        let out = values(attention.attend(0, q_gpu, k_gpu, v_gpu, &rotary, DType::F32));
        let tolerance = if dtype == DType::BF16 { 2e-2 } else { 1e-4 };
        for range in [0..20, 20..57] {
            let part = |values: &[f32], heads: usize| {
                let row = heads * head_dim;
                values[range.start * row..range.end * row].to_vec()
            };
            let expected = reference(
                dims,
                &part(&q, heads),
                &part(&k, kv_heads),
                &part(&v, kv_heads),
            );
            let what = format!("{dims:?} {dtype:?} {range:?}");
            assert_close(&part(&out, heads), &expected, tolerance, &what);
        }
    }
    assert_ran(num_checked, &gpu);
}
