//! Attention over paged and packed keys against plain loops in f64, the fast paths against their
//! twins, and gradients against burn's autodiff over the twin.

mod causal;
mod contract;
#[cfg(feature = "gpu")]
mod on_a_gpu;
mod paged;
mod training;

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;
use kv_paging::kernels::naive;
use kv_paging::{
    Attention, AttentionBatch, CausalAttention, KvShape, PagedAttention, PagedKvCache, Rotary,
    SequenceChunk,
};

/// SplitMix64: seeded, and the same on every platform.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Uniform in -2..2: scores are spread enough for the softmax to matter.
    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0)
            .collect()
    }

    fn shuffled(&mut self, len: usize) -> Vec<u32> {
        let mut values: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            values.swap(i, self.below(i + 1));
        }
        values
    }
}

/// The plain CPU, and a GPU if a feature for one is on: `--features wgpu` finds Mesa's lavapipe on machines without one.
fn devices() -> impl Iterator<Item = Device> {
    #[cfg(feature = "gpu")]
    let gpu = {
        use burn::tensor::DeviceType;
        let types: &[DeviceType] = &[
            #[cfg(feature = "cuda")]
            DeviceType::Cuda,
            #[cfg(feature = "wgpu")]
            DeviceType::Wgpu,
        ];
        let mut devices = types.iter().cloned().flat_map(Device::enumerate);
        Some(devices.next().expect("a CUDA or WebGPU device"))
    };
    #[cfg(not(feature = "gpu"))]
    let gpu = None;
    std::iter::once(Device::flex()).chain(gpu)
}

fn tensor(values: &[f32], dims: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), (device, DType::F32))
}

fn values(tensor: Tensor<3>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_to_vec().expect("a readable f32 tensor")
}

/// Angles of zero: queries and keys stay as they are, to the bit.
fn unrotated(tokens: usize, head_dim: usize, device: &Device) -> Rotary {
    let angles = |value| {
        let len = tokens * head_dim / 2;
        tensor(&vec![value; len], [tokens, 1, head_dim / 2], device)
    };
    Rotary {
        cos: angles(1.0),
        sin: angles(0.0),
    }
}

/// Turns the pairs of each head of a token by angles: `x [heads, head_dim]`, `angles [head_dim / 2]`.
fn rotated(x: &[f32], angles: &[f32]) -> Vec<f32> {
    let half = angles.len();
    let turn = |head: &[f32]| {
        let pair = |i: usize| (head[i], head[i + half], angles[i].sin_cos());
        let first = (0..half).map(pair).map(|(a, b, (s, c))| a * c - b * s);
        let second = (0..half).map(pair).map(|(a, b, (s, c))| b * c + a * s);
        first.chain(second).collect::<Vec<f32>>()
    };
    x.chunks_exact(2 * half).flat_map(turn).collect()
}

/// `[heads, kv_heads, head_dim]`.
type Dims = [usize; 3];

/// Causal attention of the last `q.len() / (heads * head_dim)` positions of one sequence, in f64.
fn reference([heads, kv_heads, head_dim]: Dims, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let num_keys = k.len() / (kv_heads * head_dim);
    let num_queries = q.len() / (heads * head_dim);
    let mut out = Vec::with_capacity(q.len());
    for (row, q) in q.chunks(head_dim).enumerate() {
        let (t, head) = (row / heads, row % heads);
        let kv_head = head / (heads / kv_heads);
        let visible = num_keys - num_queries + t + 1;
        let at =
            |j: usize| (j * kv_heads + kv_head) * head_dim..(j * kv_heads + kv_head + 1) * head_dim;
        let scores: Vec<f64> = (0..visible)
            .map(|j| {
                let dot: f64 = q
                    .iter()
                    .zip(&k[at(j)])
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                dot / (head_dim as f64).sqrt()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.extend((0..head_dim).map(|d| {
            let total: f64 = (0..visible)
                .map(|j| weights[j] * f64::from(v[at(j)][d]))
                .sum();
            (total / sum) as f32
        }));
    }
    out
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance * (1.0 + expected.abs()),
            "{what}: element {i} is {got}, expected {expected}"
        );
    }
}

/// A sequence whose first `context - queries` tokens are already in the cache.
struct Sequence {
    queries: usize,
    context: usize,
    table: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

struct Case {
    dims: Dims,
    block_size: usize,
    dtype: DType,
    sequences: Vec<Sequence>,
    num_blocks: usize,
}

impl Case {
    fn new(
        rng: &mut Rng,
        dims: Dims,
        block_size: usize,
        dtype: DType,
        lens: &[(usize, usize)],
    ) -> Self {
        let [heads, kv_heads, head_dim] = dims;
        let blocks = |context: usize| context.div_ceil(block_size);
        // More blocks than needed, handed out in random order.
        let num_blocks = lens
            .iter()
            .map(|&(_, context)| blocks(context))
            .sum::<usize>()
            + 3;
        let mut free = rng.shuffled(num_blocks);
        let mut sequences = Vec::new();
        for &(queries, context) in lens {
            let row = kv_heads * head_dim;
            let (mut k, mut v) = (rng.values(context * row), rng.values(context * row));
            if dtype == DType::BF16 {
                // The reference sees what the cache stores.
                for value in k.iter_mut().chain(&mut v) {
                    *value = bf16::from_f32(*value).to_f32();
                }
            }
            sequences.push(Sequence {
                queries,
                context,
                table: free.split_off(free.len() - blocks(context)),
                q: rng.values(queries * heads * head_dim),
                k,
                v,
            });
        }
        Self {
            dims,
            block_size,
            dtype,
            sequences,
            num_blocks,
        }
    }

    fn batch(&self, chunks: impl Iterator<Item = (usize, usize)>) -> AttentionBatch {
        let chunks: Vec<SequenceChunk<'_>> = chunks
            .zip(&self.sequences)
            .filter(|((query_len, _), _)| *query_len > 0)
            .map(|((query_len, context_len), sequence)| SequenceChunk {
                query_len,
                context_len,
                block_table: &sequence.table,
            })
            .collect();
        AttentionBatch::new(&chunks, self.block_size)
    }

    /// Rows of `of` at the positions `range` gives, for all sequences.
    fn packed(
        &self,
        of: impl Fn(&Sequence) -> &[f32],
        range: impl Fn(&Sequence) -> std::ops::Range<usize>,
        device: &Device,
    ) -> Tensor<3> {
        let [_, kv_heads, head_dim] = self.dims;
        let row = kv_heads * head_dim;
        let mut values = Vec::new();
        for sequence in &self.sequences {
            let range = range(sequence);
            values.extend_from_slice(&of(sequence)[range.start * row..range.end * row]);
        }
        let tokens = values.len() / row;
        tensor(&values, [tokens, kv_heads, head_dim], device)
    }

    /// Fills the cache in two steps and checks the second step's attention, fast and naive, on every device.
    fn check(&self, what: &str) {
        for device in devices().filter(|device| device.supports_dtype(self.dtype)) {
            self.check_on(&device, &format!("{device:?}, {what}"));
        }
    }

    fn check_on(&self, device: &Device, what: &str) {
        let [heads, kv_heads, head_dim] = self.dims;
        let shape = KvShape {
            num_layers: 2,
            num_kv_heads: kv_heads,
            head_dim,
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            dtype: self.dtype,
        };
        let mut cache = PagedKvCache::new(&shape, device);
        let before = |s: &Sequence| s.context - s.queries;
        let history = self.batch(self.sequences.iter().map(|s| (before(s), before(s))));
        if history.num_tokens() > 0 {
            let k = self.packed(|s| &s.k, |s| 0..before(s), device);
            let v = self.packed(|s| &s.v, |s| 0..before(s), device);
            cache.write(1, k, v, &history);
        }
        let batch = self.batch(self.sequences.iter().map(|s| (s.queries, s.context)));
        let q: Vec<f32> = self.sequences.iter().flat_map(|s| s.q.clone()).collect();
        let q = tensor(&q, [batch.num_tokens(), heads, head_dim], device);
        let k = self.packed(|s| &s.k, |s| before(s)..s.context, device);
        let v = self.packed(|s| &s.v, |s| before(s)..s.context, device);
        let rotary = unrotated(batch.num_tokens(), head_dim, device);
        let mut attention = PagedAttention::new(&mut cache, &batch);
        let fast = attention.attend(1, q.clone(), k, v, &rotary, DType::F32);
        let (k, v) = cache.layer(1);
        let naive = naive::paged_attention(q, k, v, batch.plan());
        let expected: Vec<f32> = (self.sequences.iter())
            .flat_map(|s| reference(self.dims, &s.q, &s.k, &s.v))
            .collect();
        // Tensor cores round queries and weights to the cache's type.
        let is_gpu = *device != Device::flex();
        let tolerance = match self.dtype {
            DType::BF16 if is_gpu => 3e-2,
            // The twin runs instead.
            _ if is_gpu && !head_dim.is_multiple_of(8) => 3e-3,
            _ => 1e-4,
        };
        let what_fast = format!("fast path, {what}");
        assert_close(&values(fast), &expected, tolerance, &what_fast);
        // Burn multiplies f32 on tensor cores with 10 bits.
        let tolerance = if *device == Device::flex() {
            1e-4
        } else {
            3e-3
        };
        let naive = values(naive);
        assert_close(&naive, &expected, tolerance, &format!("twin, {what}"));
        let (untouched, _) = cache.layer(0);
        assert!(
            values(untouched).iter().all(|value| *value == 0.0),
            "layer 0, {what}"
        );
    }
}
