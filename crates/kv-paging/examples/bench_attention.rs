//! Times of attention in the shapes of a 0.5B Qwen2.5, beside the twins in plain tensor operations.
//!
//! ```sh
//! cargo run --release -p server -p kv-paging --example bench_attention
//! ```

#![allow(clippy::print_stdout)]

use burn::tensor::{DType, Device, Tensor, TensorData};
use kv_paging::kernels::naive;
use kv_paging::{
    Attention, AttentionBatch, CausalAttention, KvShape, PagedAttention, PagedKvCache, Rotary,
    SequenceChunk,
};

fn main() {
    let (heads, kv_heads, head_dim, context) = (14, 2, 64, 2048);
    let device = Device::flex();
    let mut rng = Random(8);
    let best = |what: &str, runs: usize, f: &mut dyn FnMut()| {
        let times = (0..runs).map(|_| {
            let start = std::time::Instant::now();
            f();
            start.elapsed()
        });
        println!("{what}: {:?}", times.min().unwrap_or_default());
    };
    for dtype in [DType::F32, DType::BF16] {
        let shape = KvShape {
            num_layers: 1,
            num_kv_heads: kv_heads,
            head_dim,
            block_size: 16,
            num_blocks: 130,
            dtype,
        };
        let mut cache = PagedKvCache::new(&shape, &device);
        let table = (0..130).rev().collect::<Vec<u32>>();
        for query_len in [context, 256, 1] {
            let chunk = SequenceChunk {
                query_len,
                context_len: context,
                block_table: &table,
            };
            let q = tensor(
                &rng.values(query_len * heads * head_dim),
                [query_len, heads, head_dim],
                &device,
            );
            let k = tensor(
                &rng.values(query_len * kv_heads * head_dim),
                [query_len, kv_heads, head_dim],
                &device,
            );
            let batch = AttentionBatch::new(&[chunk], 16);
            let rotary = rotary(query_len, head_dim, &device);
            let runs = 4000 / query_len + 3;
            best(
                &format!("{dtype:?} cache, {query_len} queries over {context}"),
                runs,
                &mut || {
                    let mut attention = PagedAttention::new(&mut cache, &batch);
                    attention.attend(0, q.clone(), k.clone(), k.clone(), &rotary, DType::F32);
                },
            );
        }
        let chunk = SequenceChunk {
            query_len: 1,
            context_len: context,
            block_table: &table,
        };
        let batch = AttentionBatch::new(&[chunk], 16);
        let q = tensor(&rng.values(heads * head_dim), [1, heads, head_dim], &device);
        let (k, v) = cache.layer(0);
        best(
            &format!("{dtype:?} cache, twin, 1 query over {context}"),
            20,
            &mut || {
                naive::paged_attention(q.clone(), k.clone(), v.clone(), batch.plan());
            },
        );
    }
    for lengths in [&[1024][..], &[512, 512]] {
        let mut attention = CausalAttention::new(lengths);
        let device = Device::flex().autodiff();
        let tokens: usize = lengths.iter().sum();
        let shapes = [heads, kv_heads, kv_heads].map(|heads| [tokens, heads, head_dim]);
        let inputs = shapes.map(|shape| rng.values(shape.iter().product()));
        let rotary = rotary(tokens, head_dim, &Device::flex());
        for fast in [true, false] {
            best(
                &format!("{lengths:?} forward and backward, fast path: {fast}"),
                4,
                &mut || {
                    let [q, k, v]: [Tensor<3>; 3] = std::array::from_fn(|i| {
                        tensor(&inputs[i], shapes[i], &device).require_grad()
                    });
                    let out = match fast {
                        true => attention.attend(0, q, k, v, &rotary, DType::F32),
                        false => naive::causal_attention(q, k, v, attention.plan()),
                    };
                    out.sum().backward();
                },
            );
        }
    }
}

fn tensor(values: &[f32], dims: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

/// Angles of zero for all tokens.
fn rotary(tokens: usize, head_dim: usize, device: &Device) -> Rotary {
    let angles = |value| {
        tensor(
            &vec![value; tokens * head_dim / 2],
            [tokens, 1, head_dim / 2],
            device,
        )
    };
    Rotary {
        cos: angles(1.0),
        sin: angles(0.0),
    }
}

/// A linear congruential generator.
struct Random(u64);

impl Random {
    /// Values between -1 and 1.
    fn values(&mut self, len: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }
}
