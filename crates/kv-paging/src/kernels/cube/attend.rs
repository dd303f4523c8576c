//! Attention over block tables, one token at a time, by online softmax (FlashAttention-2, arXiv:2307.08691).
//!
//! A cube serves one token and one key/value head, that is, all query heads that share it: keys and values are read once
//! for the group. A long context is cut into parts, each with a cube of its own, and the parts are merged afterwards.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{elem_type, empty};

/// Units that share the dot product of a query with a key.
pub(super) const LANES: u32 = 8;
/// Units of a cube.
const UNITS: usize = 128;
/// A unit for each element, at most.
pub(super) const MAX_HEAD_DIM: usize = UNITS;
/// Keys between two updates of the running maximum.
const CHUNK: usize = 128;
/// Cubes that keep a large GPU busy.
const WANTED_CUBES: usize = 264;
/// More parts cost more to merge than they save.
const MAX_SPLITS: usize = 16;
/// Keys that a part has at least.
const MIN_PART: usize = 64;
/// Loads of a unit that are in flight together.
const UNROLL: usize = 4;
/// Shared memory for adding up the output of all units; what else a cube needs stays below 16 KiB.
const MAX_PARTS_BYTES: usize = 24 << 10;
/// Lower than any score.
pub(super) const LOWEST: f32 = -3.0e38;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Heads {
    kv_heads: usize,
    /// Query heads per key/value head.
    group: usize,
    /// Vectors of a head.
    vectors: usize,
    /// Bytes of a vector of f32.
    vector_bytes: usize,
    block_size: usize,
    /// Whether the results are parts that will be merged.
    is_split: bool,
}

impl Heads {
    /// Heads whose sums of all units fit into shared memory.
    fn heads_at_once(&self) -> usize {
        (MAX_PARTS_BYTES / (UNITS * self.vector_bytes)).clamp(1, self.group)
    }
}

/// `q [tokens, heads, head_dim]`, `k` and `v` `[slots, kv_heads, head_dim]` → `[tokens, heads, head_dim]`.
pub(super) fn attend(
    q: CubeTensor,
    [k, v]: [CubeTensor; 2],
    indices: CubeTensor,
    block_size: usize,
    max_context: usize,
) -> CubeTensor {
    let q = burn_cubecl::kernel::into_contiguous(q);
    let ([tokens, heads, head_dim], [_, kv_heads, _]) =
        (q.meta.shape().dims(), k.meta.shape().dims());
    let out = empty(&q, [tokens, heads, head_dim], DType::F32);
    if tokens == 0 {
        return out;
    }
    let client = q.client.clone();
    let vector = client
        .io_optimized_vector_sizes(k.dtype.size())
        .filter(|size| head_dim.is_multiple_of(size * LANES as usize))
        .max()
        .unwrap_or(1);
    let splits = WANTED_CUBES
        .div_ceil(tokens * kv_heads)
        .min(max_context.div_ceil(MIN_PART))
        .min(MAX_SPLITS);
    let shape = Heads {
        kv_heads,
        group: heads / kv_heads,
        vectors: head_dim / vector,
        vector_bytes: vector * size_of::<f32>(),
        block_size,
        is_split: splits > 1,
    };
    let (parts, stats) = match splits {
        1 => (out.clone(), out.clone()),
        _ => (
            empty(&q, [tokens, splits, heads, head_dim], DType::F32),
            empty(&q, [tokens, splits, heads, 2], DType::F32),
        ),
    };
    let dtype = elem_type(&k);
    // SAFETY: the wrapper has compared the shapes; a batch names only slots that exist and the tables of its tokens.
    unsafe {
        attend_token::launch_unchecked(
            &client,
            CubeCount::Static(tokens as u32, kv_heads as u32, splits as u32),
            CubeDim::new_1d(UNITS as u32),
            vector,
            q.into_buffer_arg(),
            k.into_buffer_arg(),
            v.into_buffer_arg(),
            indices.clone().into_buffer_arg(),
            parts.clone().into_buffer_arg(),
            stats.clone().into_buffer_arg(),
            tokens,
            1.0 / (head_dim as f32).sqrt(),
            shape,
            dtype,
        );
        if splits > 1 {
            merge::launch_unchecked(
                &client,
                CubeCount::Static(tokens as u32, heads as u32, 1),
                CubeDim::new_1d(head_dim as u32),
                parts.into_buffer_arg(),
                stats.into_buffer_arg(),
                indices.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                tokens,
                heads,
                head_dim,
                splits,
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn attend_token<E: Float, N: Size>(
    q: &[Vector<f32, N>],
    k: &[Vector<E, N>],
    v: &[Vector<E, N>],
    indices: &[u32],
    out: &mut [Vector<f32, N>],
    stats: &mut [f32],
    num_tokens: usize,
    scale: f32,
    #[comptime] heads: Heads,
    #[define(E)] _dtype: ElemType,
) {
    let token = CUBE_POS_X as usize;
    let kv_head = CUBE_POS_Y as usize;
    let split = CUBE_POS_Z as usize;
    let unit = UNIT_POS as usize;
    let group = comptime!(heads.group);
    let vectors = comptime!(heads.vectors);
    let block_size = comptime!(heads.block_size);
    let kv_heads = comptime!(heads.kv_heads);
    let lanes = comptime!(LANES as usize);

    let context = indices[num_tokens + token] as usize;
    let table = indices[2 * num_tokens + token] as usize;
    let split_len = split_len(context, CUBE_COUNT_Z as usize);
    let mut chunk = split * split_len;
    let end = min(context, chunk + split_len);

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(group * vectors));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(group * CHUNK));
    let mut starts = Shared::<[u32]>::new_slice(CHUNK);
    let mut maxima = Shared::<[f32]>::new_slice(group);
    let mut sums = Shared::<[f32]>::new_slice(group);
    let mut factors = Shared::<[f32]>::new_slice(group);
    let mut parts = Shared::<[Vector<f32, N>]>::new_slice(comptime!(heads.heads_at_once() * UNITS));

    let first_query = (token * kv_heads + kv_head) * group * vectors;
    let mut i = unit;
    while i < group * vectors {
        queries[i] = q[first_query + i] * Vector::new(scale);
        i += UNITS;
    }
    if unit < group {
        maxima[unit] = LOWEST;
        sums[unit] = 0.0;
    }
    sync_cube();

    // For the scores, some units share a key; for the output, some share a vector of all heads.
    let lane = unit % lanes;
    let key_unit = unit / lanes;
    let vector = unit % vectors;
    let value_unit = unit / vectors;
    let value_units = comptime!(UNITS / heads.vectors);
    let mut output = Array::<Vector<f32, N>>::new(group);
    #[unroll]
    for g in 0..group {
        output[g] = Vector::new(0.0);
    }

    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let num_planes = (CUBE_DIM / PLANE_DIM) as usize;
    while chunk < end {
        let len = min(end - chunk, CHUNK);
        // Where the rows of the chunk start; past the last key, that of the last one.
        let mut i = unit;
        while i < CHUNK {
            let position = min(chunk + i, end - 1);
            let row = indices[table + position / block_size] as usize * block_size
                + position % block_size;
            starts[i] = ((row * kv_heads + kv_head) * vectors) as u32;
            i += UNITS;
        }
        sync_cube();
        let keys_at_once = comptime!(UNITS / LANES as usize);
        let steps = len.div_ceil(comptime!(UNROLL * UNITS / LANES as usize));
        for step in 0..steps {
            let first = step * comptime!(UNROLL * UNITS / LANES as usize) + key_unit;
            let parts = comptime!(heads.vectors / LANES as usize);
            let mut keys =
                Array::<Vector<E, N>>::new(comptime!(UNROLL * heads.vectors / LANES as usize));
            #[unroll]
            for load in 0..UNROLL {
                let start = starts[first + load * keys_at_once] as usize;
                #[unroll]
                for part in 0..parts {
                    keys[load * parts + part] = k[start + part * lanes + lane];
                }
            }
            #[unroll]
            for load in 0..UNROLL {
                let mut dots = Array::<Vector<f32, N>>::new(group);
                #[unroll]
                for g in 0..group {
                    dots[g] = Vector::new(0.0);
                }
                #[unroll]
                for part in 0..parts {
                    let key = Vector::<f32, N>::cast_from(keys[load * parts + part]);
                    #[unroll]
                    for g in 0..group {
                        dots[g] += key * queries[g * vectors + part * lanes + lane];
                    }
                }
                #[unroll]
                for g in 0..group {
                    let mut dot = add_up::<N>(dots[g]);
                    dot += plane_shuffle_xor(dot, 1u32);
                    dot += plane_shuffle_xor(dot, 2u32);
                    dot += plane_shuffle_xor(dot, 4u32);
                    if lane == 0 {
                        scores[g * CHUNK + first + load * keys_at_once] = dot;
                    }
                }
            }
        }
        sync_cube();

        // A plane for each head: the new maximum, the weights, their sum.
        let mut base = 0usize;
        while base < group {
            let g = min(base + plane, group - 1);
            let mine = base + plane < group;
            let mut highest = f32::new(LOWEST);
            let mut i = UNIT_POS_PLANE as usize;
            while i < len {
                highest = max(highest, scores[g * CHUNK + i]);
                i += PLANE_DIM as usize;
            }
            let old = maxima[g];
            let new = max(old, plane_max(highest));
            let mut sum = 0.0f32;
            let mut i = UNIT_POS_PLANE as usize;
            while i < len {
                let weight = (scores[g * CHUNK + i] - new).exp();
                sum += weight;
                if mine {
                    scores[g * CHUNK + i] = weight;
                }
                i += PLANE_DIM as usize;
            }
            let sum = plane_sum(sum);
            if mine && UNIT_POS_PLANE == 0 {
                let factor = (old - new).exp();
                factors[g] = factor;
                sums[g] = sums[g] * factor + sum;
                maxima[g] = new;
            }
            base += num_planes;
        }
        sync_cube();

        #[unroll]
        for g in 0..group {
            output[g] *= Vector::new(factors[g]);
        }
        let mut index = value_unit;
        while index < len {
            let mut rows = Array::<Vector<E, N>>::new(UNROLL);
            #[unroll]
            for load in 0..UNROLL {
                let at = min(index + load * value_units, CHUNK - 1);
                rows[load] = v[starts[at] as usize + vector];
            }
            #[unroll]
            for load in 0..UNROLL {
                let at = index + load * value_units;
                let value = Vector::<f32, N>::cast_from(rows[load]);
                #[unroll]
                for g in 0..group {
                    let weight = select(at < len, scores[g * CHUNK + min(at, CHUNK - 1)], 0.0f32);
                    output[g] += value * Vector::new(weight);
                }
            }
            index += UNROLL * value_units;
        }
        sync_cube();
        chunk += CHUNK;
    }

    // Units with the same vector hold sums over different keys. Some heads are added up at a time.
    let num_splits = CUBE_COUNT_Z as usize;
    let first_head = ((token * num_splits + split) * kv_heads + kv_head) * group;
    let at_once = comptime!(heads.heads_at_once());
    #[unroll]
    for first in 0..comptime!(heads.group.div_ceil(heads.heads_at_once())) {
        #[unroll]
        for g in 0..at_once {
            if comptime!(first * heads.heads_at_once() + g < heads.group) {
                parts[g * UNITS + unit] = output[first * at_once + g];
            }
        }
        sync_cube();
        let mut i = unit;
        while i < at_once * vectors {
            let (g, vector) = (i / vectors, i % vectors);
            let head = first * at_once + g;
            if head < group {
                let mut total = parts[g * UNITS + vector];
                for other in 1..value_units {
                    total += parts[g * UNITS + other * vectors + vector];
                }
                let to = first_head + head;
                if comptime!(heads.is_split) {
                    out[to * vectors + vector] = total;
                    if vector == 0 {
                        stats[to * 2] = maxima[head];
                        stats[to * 2 + 1] = sums[head];
                    }
                } else {
                    out[to * vectors + vector] = total / Vector::new(sums[head]);
                }
            }
            i += UNITS;
        }
        sync_cube();
    }
}

/// Keys of a part, of which there are at most `splits`.
#[cube]
fn split_len(context: usize, splits: usize) -> usize {
    let len = context.div_ceil(splits);
    len.div_ceil(MIN_PART) * MIN_PART
}

/// Combines the parts of each head: a unit for each element.
#[cube(launch_unchecked)]
fn merge(
    parts: &[f32],
    stats: &[f32],
    indices: &[u32],
    out: &mut [f32],
    num_tokens: usize,
    heads: usize,
    head_dim: usize,
    #[comptime] splits: usize,
) {
    let token = CUBE_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let context = indices[num_tokens + token] as usize;
    let used = context.div_ceil(max(split_len(context, splits), 1));
    let mut maxima = Array::<f32>::new(splits);
    let mut highest = f32::new(LOWEST);
    #[unroll]
    for split in 0..splits {
        let at = (token * splits + split) * heads + head;
        maxima[split] = select(split < used, stats[at * 2], LOWEST);
        highest = max(highest, maxima[split]);
    }
    let mut sum = 0.0f32;
    let mut total = 0.0f32;
    #[unroll]
    for split in 0..splits {
        let at = (token * splits + split) * heads + head;
        // What unused parts hold counts for nothing, whatever it is.
        let factor = (maxima[split] - highest).exp();
        sum += select(split < used, stats[at * 2 + 1] * factor, 0.0f32);
        let part = parts[at * head_dim + UNIT_POS as usize];
        total += select(split < used, part * factor, 0.0f32);
    }
    out[(token * heads + head) * head_dim + UNIT_POS as usize] = total / sum;
}

/// Sum of the values of a vector.
#[cube]
fn add_up<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..vector.vector_size() {
        sum += vector.extract(i);
    }
    sum
}
