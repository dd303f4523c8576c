//! Attention over block tables on the tensor cores of NVIDIA's GPUs, for prompts (FlashAttention-2, arXiv:2307.08691).
//!
//! A cube serves up to 16 queries of one sequence and one key/value head, with a plane for each query head that shares it.
//! Keys and values come to shared memory block by block, the next block while one is multiplied. Scores never leave the
//! registers: a fragment of the first product is one of the second.

use burn::backend::Cube;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::super::device_ops::Context;
use super::blocks::{
    BlockLoad, Blocks, KEYS, VECTOR, end_group, load_block, place, wait_for_groups,
};
use super::launch::{elem_type, empty};
use super::operands::{KeysValues, KeysValuesLaunch, StepList, StepListLaunch};
use super::scores::LOWEST;

const PLANE: usize = 32;
/// Planes of a cube.
const MAX_GROUP: usize = 8;
const MAX_HEAD_DIM: usize = 128;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Heads {
    /// Query heads per key/value head.
    group: usize,
    blocks: Blocks,
}

/// Whether the device has what the kernel uses, and the kernel takes this cache and these heads.
pub(super) fn supports(q: &CubeTensor, k: &CubeTensor) -> bool {
    let kind = match k.dtype {
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        _ => return false,
    };
    let config = MmaConfig {
        a_type: ElemType::Float(kind),
        b_type: ElemType::Float(kind),
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    };
    let (hardware, features) = (&q.client.properties().hardware, q.client.features());
    let ([_, heads, head_dim], [_, kv_heads, _]) = (q.meta.shape().dims(), k.meta.shape().dims());
    features.matmul.mma.contains(&config)
        && features.matmul.ldmatrix.contains(&ElemType::Float(kind))
        && features.copy_async
        && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
        && heads / kv_heads <= MAX_GROUP
        && head_dim.is_multiple_of(8 * VECTOR)
        && head_dim <= MAX_HEAD_DIM
}

/// Attention of `q` `[tokens, heads, head_dim]`: `[tokens, heads, head_dim]` of type `dtype`.
pub(super) fn attend(q: CubeTensor, context: Context<Cube>, dtype: DType) -> CubeTensor {
    let q = into_contiguous(q);
    let (k, v, tiles) = (context.keys, context.values, context.tiles);
    let ([tokens, heads, head_dim], [_, kv_heads, _]) =
        (q.meta.shape().dims(), k.meta.shape().dims());
    let out = empty(&q, [tokens, heads, head_dim], dtype);
    let shape = Heads {
        group: heads / kv_heads,
        blocks: Blocks {
            kv_heads,
            head_dim,
            block_size: context.block_size,
            stages: 2,
        },
    };
    let dtypes = [elem_type(&k), elem_type(&out)];
    // SAFETY: the wrapper has compared the shapes; a batch names only slots that exist, and its tiles only its tokens.
    unsafe {
        attend_tile::launch_unchecked(
            &q.client.clone(),
            CubeCount::Static(kv_heads as u32, tiles.num as u32, 1),
            CubeDim::new_1d((shape.group * PLANE) as u32),
            q.into_buffer_arg(),
            KeysValuesLaunch::new(k.into_buffer_arg(), v.into_buffer_arg()),
            StepListLaunch::new(context.indices.into_buffer_arg(), tokens),
            out.clone().into_buffer_arg(),
            TileListLaunch::new(tiles.at, tiles.num),
            1.0 / (head_dim as f32).sqrt(),
            shape,
            dtypes,
        );
    }
    out
}

/// Tiles of queries in a [`StepList`], each with its first token and its number of tokens.
#[derive(CubeType, CubeLaunch)]
struct TileList {
    /// Where they start.
    at: usize,
    num: usize,
}

#[cube(launch_unchecked)]
fn attend_tile<E: Float, O: Float>(
    q: &[Vector<f32, Const<2>>],
    cache: &KeysValues<E, Const<8>>,
    step: &StepList,
    out: &mut [Vector<O, Const<2>>],
    tiles: &TileList,
    scale: f32,
    #[comptime] heads: Heads,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    let group = comptime!(heads.group);
    let head_pairs = comptime!(heads.blocks.head_dim / 2);
    let head_cores = comptime!(heads.blocks.head_dim / 16);
    let blocks = comptime!(heads.blocks);
    let stage_len = comptime!(heads.blocks.len());
    // Two blocks of keys, then two of values.
    let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
        comptime!(2 * heads.blocks.stages * heads.blocks.len()),
        128usize,
    );
    let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);

    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let lane = UNIT_POS_PLANE as usize;
    let kv_head = CUBE_POS_X as usize;
    // Late tiles of a prompt see the most keys: they come first.
    let tile = tiles.at + 2 * (tiles.num - 1 - CUBE_POS_Y as usize);
    let first_token = step.list[tile] as usize;
    let num_queries = step.list[tile + 1] as usize;
    let first_context = step.context(first_token);
    let table = step.table(first_token);
    let num_keys = first_context + num_queries - 1;

    let first = BlockLoad {
        table,
        kv_head,
        start: 0usize.runtime(),
        end: num_keys,
        stage: 0usize.runtime(),
    };
    load_block::<E>(cache, step, &mut memory, &first, blocks);
    end_group();

    // In a fragment, a unit has two rows and pairs of columns: row and row + 8; column and column + 8 of each core.
    let row = lane / 4;
    let column = lane % 4;
    let num_heads = comptime!(heads.blocks.kv_heads * heads.group);
    let head = kv_head * group + plane;
    let tokens = (
        first_token + min(row, num_queries - 1),
        first_token + min(row + 8, num_queries - 1),
    );
    let starts = (
        (tokens.0 * num_heads + head) * head_pairs + column,
        (tokens.1 * num_heads + head) * head_pairs + column,
    );
    let factor = Vector::<f32, Const<2>>::new(scale);
    let mut queries = Sequence::<Array<Vector<E, Const<2>>>>::new();
    #[unroll]
    for core in 0..head_cores {
        let mut fragment = Array::<Vector<E, Const<2>>>::new(4usize);
        fragment[0] = Vector::cast_from(q[starts.0 + core * 8] * factor);
        fragment[1] = Vector::cast_from(q[starts.1 + core * 8] * factor);
        fragment[2] = Vector::cast_from(q[starts.0 + core * 8 + 4] * factor);
        fragment[3] = Vector::cast_from(q[starts.1 + core * 8 + 4] * factor);
        queries.push(fragment);
    }

    let mut output = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..comptime!(heads.blocks.head_dim / 8) {
        let mut part = Array::<Vector<f32, Const<2>>>::new(2usize);
        part[0] = Vector::new(0.0);
        part[1] = Vector::new(0.0);
        output.push(part);
    }
    let mut highest = Array::<f32>::new(2usize);
    let mut sums = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        highest[half] = f32::new(LOWEST);
        sums[half] = 0.0f32;
    }

    let mut start = 0usize;
    let mut stage = 0usize;
    while start < num_keys {
        wait_for_groups(0usize);
        // The block has arrived, and no unit reads the block before it any more.
        sync_cube();
        if start + KEYS < num_keys {
            let next = BlockLoad {
                table,
                kv_head,
                start: start + KEYS,
                end: num_keys,
                stage: 1 - stage,
            };
            load_block::<E>(cache, step, &mut memory, &next, blocks);
        }
        end_group();

        // Scores: 16 queries, 64 keys.
        let keys_at = stage * stage_len;
        let mut scores = Sequence::<Array<Vector<f32, Const<2>>>>::new();
        #[unroll]
        for pair in 0..comptime!(KEYS / 16) {
            let mut first = Array::<Vector<f32, Const<2>>>::new(2usize);
            let mut second = Array::<Vector<f32, Const<2>>>::new(2usize);
            #[unroll]
            for half in 0..2usize {
                first[half] = Vector::new(0.0);
                second[half] = Vector::new(0.0);
            }
            let key = pair * 16 + lane / 16 * 8 + lane % 8;
            #[unroll]
            for core in 0..head_cores {
                let at = keys_at + place(key, core * 2 + lane / 8 % 2, blocks);
                let loaded = instruction.load_matrix::<Vector<E, Const<8>>, Const<2>>(
                    &memory[at..at + 1],
                    MatrixIdent::B,
                    4usize,
                    false,
                );
                let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
                right[0] = loaded[0];
                right[1] = loaded[1];
                instruction.execute_inplace(&queries[core], &right, &mut first);
                let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
                right[0] = loaded[2];
                right[1] = loaded[3];
                instruction.execute_inplace(&queries[core], &right, &mut second);
            }
            scores.push(first);
            scores.push(second);
        }
        // Keys after a query's own, in the last blocks only.
        if start + KEYS > first_context {
            #[unroll]
            for block in 0..comptime!(KEYS / 8) {
                let part = &mut scores[block];
                #[unroll]
                for half in 0..2usize {
                    let visible = min(first_context + row + half * 8, num_keys);
                    let key = start + block * 8 + column * 2;
                    let score = part[half];
                    let first = select(key < visible, score.extract(0usize), LOWEST);
                    let second = select(key + 1 < visible, score.extract(1usize), LOWEST);
                    let mut masked = Vector::<f32, Const<2>>::new(first);
                    masked.insert(1usize, second);
                    part[half] = masked;
                }
            }
        }

        // Weights, in the type of the values; what was summed up before is brought to the new maximum.
        #[unroll]
        for half in 0..2usize {
            let mut new = highest[half];
            #[unroll]
            for block in 0..comptime!(KEYS / 8) {
                let part = &scores[block];
                let score = part[half];
                new = max(new, max(score.extract(0usize), score.extract(1usize)));
            }
            new = max(new, plane_shuffle_xor(new, 1u32));
            new = max(new, plane_shuffle_xor(new, 2u32));
            let rescale = (highest[half] - new).exp();
            highest[half] = new;
            let mut sum = 0.0f32;
            #[unroll]
            for block in 0..comptime!(KEYS / 8) {
                let part = &mut scores[block];
                let weights = (part[half] - Vector::new(new)).exp();
                sum += weights.extract(0usize) + weights.extract(1usize);
                part[half] = weights;
            }
            sums[half] = sums[half] * rescale + sum;
            #[unroll]
            for block in 0..comptime!(heads.blocks.head_dim / 8) {
                let part = &mut output[block];
                part[half] *= Vector::new(rescale);
            }
        }

        let values_at = (2 + stage) * stage_len;
        #[unroll]
        for core in 0..comptime!(KEYS / 16) {
            let (low, high) = (&scores[core * 2], &scores[core * 2 + 1]);
            let mut left = Array::<Vector<E, Const<2>>>::new(4usize);
            left[0] = Vector::cast_from(low[0]);
            left[1] = Vector::cast_from(low[1]);
            left[2] = Vector::cast_from(high[0]);
            left[3] = Vector::cast_from(high[1]);
            #[unroll]
            for pair in 0..head_cores {
                let at = values_at + place(core * 16 + lane % 16, pair * 2 + lane / 16, blocks);
                let loaded = instruction.load_matrix::<Vector<E, Const<8>>, Const<2>>(
                    &memory[at..at + 1],
                    MatrixIdent::B,
                    4usize,
                    true,
                );
                let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
                right[0] = loaded[0];
                right[1] = loaded[1];
                instruction.execute_inplace(&left, &right, &mut output[pair * 2]);
                let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
                right[0] = loaded[2];
                right[1] = loaded[3];
                instruction.execute_inplace(&left, &right, &mut output[pair * 2 + 1]);
            }
        }
        start += KEYS;
        stage = 1 - stage;
    }

    #[unroll]
    for half in 0..2usize {
        let mut sum = sums[half];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        if row + half * 8 < num_queries {
            let to = ((first_token + row + half * 8) * num_heads + head) * head_pairs + column;
            #[unroll]
            for block in 0..comptime!(heads.blocks.head_dim / 8) {
                let part = &output[block];
                out[to + block * 4] = Vector::cast_from(part[half] / Vector::new(sum));
            }
        }
    }
}
