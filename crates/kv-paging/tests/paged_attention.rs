//! Attention over paged and packed keys against plain loops in f64, the fast paths against their
//! twins, and gradients against burn's autodiff over the twin.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;
use kv_paging::kernels::naive;
use kv_paging::{
    AttentionBatch, CausalAttention, KvCache, KvShape, PagedAttention, PagedKvCache, SequenceChunk,
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

fn tensor(values: &[f32], dims: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), (device, DType::F32))
}

fn values(tensor: Tensor<3>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_to_vec().expect("a readable f32 tensor")
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

    /// Fills the cache in two steps and checks the second step's attention, fast and naive.
    fn check(&self, what: &str) {
        let [heads, kv_heads, head_dim] = self.dims;
        let device = Device::flex();
        let shape = KvShape {
            num_layers: 2,
            num_kv_heads: kv_heads,
            head_dim,
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            dtype: self.dtype,
        };
        let mut cache = PagedKvCache::new(&shape, &device);
        let before = |s: &Sequence| s.context - s.queries;
        let history = self.batch(self.sequences.iter().map(|s| (before(s), before(s))));
        if history.num_tokens() > 0 {
            let k = self.packed(|s| &s.k, |s| 0..before(s), &device);
            let v = self.packed(|s| &s.v, |s| 0..before(s), &device);
            cache.write(1, k, v, &history);
        }
        let batch = self.batch(self.sequences.iter().map(|s| (s.queries, s.context)));
        let q: Vec<f32> = self.sequences.iter().flat_map(|s| s.q.clone()).collect();
        let q = tensor(&q, [batch.num_tokens(), heads, head_dim], &device);
        let k = self.packed(|s| &s.k, |s| before(s)..s.context, &device);
        let v = self.packed(|s| &s.v, |s| before(s)..s.context, &device);
        let fast = PagedAttention::new(&mut cache, &batch).attend(1, q.clone(), k, v);
        let (k, v) = cache.layer(1);
        let naive = naive::paged_attention(q, k, v, &batch);
        let expected: Vec<f32> = (self.sequences.iter())
            .flat_map(|s| reference(self.dims, &s.q, &s.k, &s.v))
            .collect();
        assert_close(
            &values(fast),
            &expected,
            1e-4,
            &format!("fast path, {what}"),
        );
        assert_close(&values(naive), &expected, 1e-4, &format!("twin, {what}"));
        let (untouched, _) = cache.layer(0);
        assert!(
            values(untouched).iter().all(|value| *value == 0.0),
            "layer 0, {what}"
        );
    }
}

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
            let step = attention.attend(0, part(&q, heads), part(&k, kv_heads), part(&v, kv_heads));
            out.extend(values(step));
        }
        assert_close(&out, &expected, 1e-4, &format!("chunks of {chunk}"));
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
                PagedAttention::new(&mut cache, &batch).attend(layer, q, k.clone(), k);
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
        let twin = naive::causal_attention(q.clone(), k.clone(), v.clone(), &attention);
        assert_close(
            &values(twin),
            &expected,
            1e-4,
            &format!("twin {dims:?} {lengths:?}"),
        );
        let fast = attention.attend(0, q, k, v);
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
            let gradients = |fast: bool| -> [Vec<f32>; 4] {
                let [q, k, v]: [Tensor<3>; 3] =
                    std::array::from_fn(|i| tensor(&inputs[i], shapes[i], &device).require_grad());
                let (a, b, c) = (q.clone(), k.clone(), v.clone());
                let out = match fast {
                    true => attention.forward(a, b, c),
                    false => naive::causal_attention(a, b, c, &attention),
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
    let gradient = |fast: bool| {
        let [q, k, v]: [Tensor<3>; 3] =
            std::array::from_fn(|i| tensor(&inputs[i], shapes[i], &device));
        let q = q.autodiff().require_grad();
        let out = match fast {
            true => attention.forward(q.clone(), k, v),
            false => naive::causal_attention(q.clone(), k, v, &attention),
        };
        let grads = (out.clone() * out).sum().backward();
        values(q.grad(&grads).unwrap())
    };
    assert_close(&gradient(true), &gradient(false), 2e-4, "dq");
}

/// `cargo test --release -p kv-paging -- --ignored --nocapture times`
#[test]
#[ignore = "prints times"]
fn times_of_a_small_model() {
    let (heads, kv_heads, head_dim, context) = (14, 2, 64, 2048);
    let device = Device::flex();
    let mut rng = Rng(8);
    let best = |what: &str, runs: usize, f: &mut dyn FnMut()| {
        let times = (0..runs).map(|_| {
            let start = std::time::Instant::now();
            f();
            start.elapsed()
        });
        println!("{what}: {:?}", times.min().unwrap());
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
        let table = rng.shuffled(130);
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
            let runs = 4000 / query_len + 3;
            best(
                &format!("{dtype:?} cache, {query_len} queries over {context}"),
                runs,
                &mut || {
                    let mut attention = PagedAttention::new(&mut cache, &batch);
                    attention.attend(0, q.clone(), k.clone(), k.clone());
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
                naive::paged_attention(q.clone(), k.clone(), v.clone(), &batch);
            },
        );
    }
    for lengths in [&[1024][..], &[512, 512]] {
        let attention = CausalAttention::new(lengths);
        let inputs = documents(&mut rng, [heads, kv_heads, head_dim], lengths);
        let device = Device::flex().autodiff();
        let shapes = shapes([heads, kv_heads, head_dim], lengths);
        for fast in [true, false] {
            best(
                &format!("{lengths:?} forward and backward, fast path: {fast}"),
                4,
                &mut || {
                    let [q, k, v]: [Tensor<3>; 3] = std::array::from_fn(|i| {
                        tensor(&inputs[i], shapes[i], &device).require_grad()
                    });
                    let out = match fast {
                        true => attention.forward(q, k, v),
                        false => naive::causal_attention(q, k, v, &attention),
                    };
                    out.sum().backward();
                },
            );
        }
    }
}
