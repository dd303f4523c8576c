//! Attention over block tables on tensor cores, for prompts: a cube serves up to 16 queries of one sequence and one
//! key/value head, with a plane for each query head that shares it.
//!
//! The softmax takes two passes over the keys: the first finds the largest score of each query, so that the second never
//! has to rescale what it has summed up, which lies in fragments of unknown layout.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cmma;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::attend::LOWEST;
use super::{Tiles, elem_type, empty};

/// Queries of a tile, and rows, columns and inner values of a tensor core's instruction.
pub(super) const QUERIES: usize = 16;
/// Keys between two barriers.
const KEYS: usize = 32;
const PLANE: usize = 32;
/// Values of `q` in a load.
const Q_VECTOR: usize = 4;
/// Values of a key in a load.
const K_VECTOR: usize = 8;
/// Values by which rows in shared memory are longer, so that their starts lie in different banks.
const SKEW: usize = 8;
/// Planes of a cube.
const MAX_GROUP: usize = 8;
const MAX_HEAD_DIM: usize = 128;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Heads {
    kv_heads: usize,
    /// Query heads per key/value head.
    group: usize,
    head_dim: usize,
    block_size: usize,
}

/// Whether the device has tensor cores for this cache and these heads.
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
        m: QUERIES as u32,
        n: QUERIES as u32,
        k: QUERIES as u32,
    };
    let hardware = &q.client.properties().hardware;
    let ([_, heads, head_dim], [_, kv_heads, _]) = (q.meta.shape().dims(), k.meta.shape().dims());
    q.client.features().matmul.cmma.contains(&config)
        && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
        && heads / kv_heads <= MAX_GROUP
        && head_dim.is_multiple_of(QUERIES)
        && head_dim <= MAX_HEAD_DIM
}

/// `q [tokens, heads, head_dim]`, `k` and `v` `[slots, kv_heads, head_dim]` → `[tokens, heads, head_dim]`.
pub(super) fn attend(
    q: CubeTensor,
    [k, v]: [CubeTensor; 2],
    indices: CubeTensor,
    block_size: usize,
    tiles: Tiles,
) -> CubeTensor {
    let q = burn_cubecl::kernel::into_contiguous(q);
    let ([tokens, heads, head_dim], [_, kv_heads, _]) =
        (q.meta.shape().dims(), k.meta.shape().dims());
    let out = empty(&q, [tokens, heads, head_dim], DType::F32);
    let shape = Heads {
        kv_heads,
        group: heads / kv_heads,
        head_dim,
        block_size,
    };
    let dtype = elem_type(&k);
    // SAFETY: the wrapper has compared the shapes; a batch names only slots that exist, and its tiles only its tokens.
    unsafe {
        attend_tile::launch_unchecked(
            &q.client.clone(),
            CubeCount::Static(tiles.num as u32, kv_heads as u32, 1),
            CubeDim::new_1d((shape.group * PLANE) as u32),
            q.into_buffer_arg(),
            k.into_buffer_arg(),
            v.into_buffer_arg(),
            indices.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            tokens,
            tiles.at,
            1.0 / (head_dim as f32).sqrt(),
            shape,
            dtype,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn attend_tile<E: Float>(
    q: &[Vector<f32, Const<4>>],
    k: &[Vector<E, Const<8>>],
    v: &[Vector<E, Const<8>>],
    indices: &[u32],
    out: &mut [f32],
    num_tokens: usize,
    tiles_at: usize,
    scale: f32,
    #[comptime] heads: Heads,
    #[define(E)] _dtype: ElemType,
) {
    let group = comptime!(heads.group);
    let head_dim = comptime!(heads.head_dim);
    let head_cores = comptime!(heads.head_dim / QUERIES);
    let key_line = comptime!((heads.head_dim + SKEW) / K_VECTOR);
    let key_stride = comptime!((heads.head_dim + SKEW) as u32);
    let score_line = comptime!(KEYS + SKEW);
    let weight_line = comptime!((KEYS + SKEW) / Q_VECTOR);

    let mut key_stage =
        Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(comptime!(KEYS * key_line), 32usize);
    let mut value_stage =
        Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(comptime!(KEYS * key_line), 32usize);
    let mut scores =
        Shared::<[f32]>::new_aligned_slice(comptime!(group * QUERIES * score_line), 32usize);
    let mut weights = Shared::<[Vector<E, Const<4>>]>::new_aligned_slice(
        comptime!(group * QUERIES * weight_line),
        32usize,
    );
    let mut sums = Shared::<[f32]>::new_slice(comptime!(group * QUERIES));

    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let lane = UNIT_POS_PLANE as usize;
    let kv_head = CUBE_POS_Y as usize;
    let tile = tiles_at + 2 * CUBE_POS_X as usize;
    let first_token = indices[tile] as usize;
    let num_queries = indices[tile + 1] as usize;
    let first_context = indices[num_tokens + first_token] as usize;
    let table = indices[2 * num_tokens + first_token] as usize;
    let num_keys = first_context + num_queries - 1;
    let my_scores = plane * comptime!(QUERIES * score_line);
    let my_weights = plane * comptime!(QUERIES * weight_line);

    // The queries of the plane's head, through shared memory into fragments.
    let num_heads = comptime!(heads.kv_heads * heads.group);
    let mut queries = Sequence::<cmma::Matrix<Vector<E, Const<4>>>>::new();
    #[unroll]
    for core in 0..head_cores {
        #[unroll]
        for i in 0..comptime!(QUERIES * QUERIES / Q_VECTOR / PLANE) {
            let at = i * PLANE + lane;
            let (row, column) = (
                at / comptime!(QUERIES / Q_VECTOR),
                at % comptime!(QUERIES / Q_VECTOR),
            );
            let token = first_token + min(row, num_queries - 1);
            let head = token * num_heads + kv_head * group + plane;
            let from = head * comptime!(heads.head_dim / Q_VECTOR)
                + core * comptime!(QUERIES / Q_VECTOR)
                + column;
            weights[my_weights + row * weight_line + column] =
                Vector::cast_from(q[from] * Vector::new(scale));
        }
        sync_cube();
        queries.push(cmma::Matrix::<Vector<E, Const<4>>>::from_slice(
            cmma::MatrixIdent::A,
            QUERIES,
            QUERIES,
            QUERIES,
            cmma::MatrixLayout::RowMajor,
            &weights[my_weights..],
            comptime!((KEYS + SKEW) as u32),
        ));
        sync_cube();
    }

    // Two units share a row of scores.
    let row = lane / 2;
    let first_column = lane % 2 * comptime!(KEYS / 2);
    let visible = min(first_context + row, num_keys);
    let mut highest = f32::new(LOWEST);
    let mut start = 0usize;
    while start < num_keys {
        load_rows::<E>(
            k,
            &mut key_stage,
            indices,
            table,
            start,
            num_keys,
            kv_head,
            heads,
        );
        sync_cube();
        score::<E>(&queries, &key_stage, &mut scores, my_scores, heads);
        sync_cube();
        #[unroll]
        for i in 0..comptime!(KEYS / 2) {
            let column = first_column + i;
            let score = scores[my_scores + row * score_line + column];
            highest = max(highest, select(start + column < visible, score, LOWEST));
        }
        start += KEYS;
    }
    highest = max(highest, plane_shuffle_xor(highest, 1u32));

    let mut output = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..head_cores {
        output.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            QUERIES,
            QUERIES,
            QUERIES,
            cmma::MatrixLayout::Undefined,
            0.0,
        ));
    }
    let mut sum = 0.0f32;
    let mut start = 0usize;
    while start < num_keys {
        // The planes have read the values before.
        sync_cube();
        load_rows::<E>(
            k,
            &mut key_stage,
            indices,
            table,
            start,
            num_keys,
            kv_head,
            heads,
        );
        load_rows::<E>(
            v,
            &mut value_stage,
            indices,
            table,
            start,
            num_keys,
            kv_head,
            heads,
        );
        sync_cube();
        score::<E>(&queries, &key_stage, &mut scores, my_scores, heads);
        sync_cube();
        #[unroll]
        for i in 0..comptime!(KEYS / 2 / Q_VECTOR) {
            let mut four = Vector::<f32, Const<4>>::new(0.0);
            #[unroll]
            for j in 0..Q_VECTOR {
                let column = first_column + i * Q_VECTOR + j;
                let score = scores[my_scores + row * score_line + column];
                let weight = select(start + column < visible, (score - highest).exp(), 0.0f32);
                sum += weight;
                four.insert(j, weight);
            }
            let column = first_column / Q_VECTOR + i;
            weights[my_weights + row * weight_line + column] = Vector::cast_from(four);
        }
        sync_cube();
        #[unroll]
        for core in 0..comptime!(KEYS / QUERIES) {
            let left = cmma::Matrix::<Vector<E, Const<4>>>::from_slice(
                cmma::MatrixIdent::A,
                QUERIES,
                QUERIES,
                QUERIES,
                cmma::MatrixLayout::RowMajor,
                &weights[my_weights + core * comptime!(QUERIES / Q_VECTOR)..],
                comptime!((KEYS + SKEW) as u32),
            );
            #[unroll]
            for column in 0..head_cores {
                let at =
                    core * comptime!(QUERIES * key_line) + column * comptime!(QUERIES / K_VECTOR);
                let right = cmma::Matrix::<Vector<E, Const<8>>>::from_slice(
                    cmma::MatrixIdent::B,
                    QUERIES,
                    QUERIES,
                    QUERIES,
                    cmma::MatrixLayout::RowMajor,
                    &value_stage[at..],
                    key_stride,
                );
                cmma::execute(&left, &right, &output[column], &output[column]);
            }
        }
        start += KEYS;
    }
    sum += plane_shuffle_xor(sum, 1u32);
    if first_column == 0 {
        sums[plane * QUERIES + row] = sum;
    }

    #[unroll]
    for column in 0..head_cores {
        sync_cube();
        cmma::store(
            &mut scores[my_scores..],
            &output[column],
            comptime!((KEYS + SKEW) as u32),
            cmma::MatrixLayout::RowMajor,
        );
        sync_cube();
        #[unroll]
        for i in 0..comptime!(QUERIES * QUERIES / PLANE) {
            let at = i * PLANE + lane;
            let (r, c) = (at / QUERIES, at % QUERIES);
            if r < num_queries {
                let head = (first_token + r) * num_heads + kv_head * group + plane;
                out[head * head_dim + column * QUERIES + c] =
                    scores[my_scores + r * score_line + c] / sums[plane * QUERIES + r];
            }
        }
    }
}

/// Keys or values from `start` on into shared memory; past the last one, the last one again.
#[cube]
fn load_rows<E: Float>(
    from: &[Vector<E, Const<8>>],
    to: &mut Shared<[Vector<E, Const<8>>]>,
    indices: &[u32],
    table: usize,
    start: usize,
    num_keys: usize,
    kv_head: usize,
    #[comptime] heads: Heads,
) {
    let vectors = comptime!(heads.head_dim / K_VECTOR);
    let line = comptime!((heads.head_dim + SKEW) / K_VECTOR);
    let block_size = comptime!(heads.block_size);
    let mut i = UNIT_POS as usize;
    while i < comptime!(KEYS * heads.head_dim / K_VECTOR) {
        let (key, vector) = (i / vectors, i % vectors);
        let position = min(start + key, num_keys - 1);
        let slot =
            indices[table + position / block_size] as usize * block_size + position % block_size;
        to[key * line + vector] =
            from[(slot * comptime!(heads.kv_heads) + kv_head) * vectors + vector];
        i += comptime!(heads.group * PLANE);
    }
}

/// Scores of the plane's queries with the keys in shared memory.
#[cube]
fn score<E: Float>(
    queries: &Sequence<cmma::Matrix<Vector<E, Const<4>>>>,
    keys: &Shared<[Vector<E, Const<8>>]>,
    scores: &mut Shared<[f32]>,
    my_scores: usize,
    #[comptime] heads: Heads,
) {
    let line = comptime!((heads.head_dim + SKEW) / K_VECTOR);
    #[unroll]
    for column in 0..comptime!(KEYS / QUERIES) {
        let sum = cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            QUERIES,
            QUERIES,
            QUERIES,
            cmma::MatrixLayout::Undefined,
            0.0,
        );
        #[unroll]
        for core in 0..comptime!(heads.head_dim / QUERIES) {
            let at = column * comptime!(QUERIES * line) + core * comptime!(QUERIES / K_VECTOR);
            let right = cmma::Matrix::<Vector<E, Const<8>>>::from_slice(
                cmma::MatrixIdent::B,
                QUERIES,
                QUERIES,
                QUERIES,
                cmma::MatrixLayout::ColMajor,
                &keys[at..],
                comptime!((heads.head_dim + SKEW) as u32),
            );
            cmma::execute(&queries[core], &right, &sum, &sum);
        }
        cmma::store(
            &mut scores[my_scores + column * QUERIES..],
            &sum,
            comptime!((KEYS + SKEW) as u32),
            cmma::MatrixLayout::RowMajor,
        );
    }
}
