//! The gradient of queries: a cube for a tile of queries of a head, a plane for 16 of them.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::blocks::{end_group, wait_for_groups};
use super::super::scores::{LOG2_E, LOWEST};
use super::tile::{
    ALIGNMENT, ROWS, RowLoad, Tiles, add_column_products, add_row_products, fragment, lanes_of,
    load_rows, power_of_two, rounded, zeros,
};
use crate::kernels::training::heads::HeadShape;

/// What the backward reads.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Saved<E: Float> {
    /// `[tokens, heads + 2 * kv_heads, head_dim]` in vectors.
    pub(super) qkv: Box<[Vector<E, Const<8>>]>,
    /// `[tokens, heads, head_dim]` in vectors.
    pub(super) d_out: Box<[Vector<E, Const<8>>]>,
    /// `[tokens, heads]`.
    pub(super) lse: Box<[f32]>,
}

/// Also leaves `delta` `[tokens, heads]`, the sums of `out * d_out`, for the gradients of keys and values.
#[cube(launch_unchecked)]
pub(super) fn query_gradients<E: Float>(
    saved: &Saved<E>,
    out: &[Vector<E, Const<2>>],
    tiles: &Tiles,
    delta: &mut [f32],
    d_qkv: &mut [Vector<E, Const<2>>],
    scale: f32,
    #[comptime] shape: HeadShape,
    #[define(E)] _dtype: ElemType,
) {
    let chunks = comptime!(shape.chunks());
    let cores = comptime!(shape.chunks() / 2);
    let vectors = comptime!(shape.row());
    let out_vectors = comptime!(shape.heads * shape.chunks());
    let block = comptime!(ROWS * shape.chunks());
    // Two tiles of keys, then two of values. Queries and gradients pass through the later ones.
    let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
        comptime!(4 * ROWS * shape.chunks()),
        ALIGNMENT,
    );
    let all_values = comptime!(2 * ROWS * shape.chunks());

    let head = CUBE_POS_X as usize;
    let kv_head = head / comptime!(shape.group());
    let tile = tiles.tile(CUBE_POS_Y as usize);
    let end = min(tile.first + ROWS, tile.len);
    let last = tile.len - 1;
    let document = tile.document * vectors;
    let keys_at = document + (comptime!(shape.heads) + kv_head) * chunks;
    let values_at = keys_at + comptime!(shape.kv_heads * shape.chunks());

    let queries = RowLoad {
        at: document + head * chunks,
        start: tile.first,
        last,
        to: block.runtime(),
    };
    load_rows::<E>(&saved.qkv, &mut memory, &queries, ROWS, chunks, vectors);
    let gradients = RowLoad {
        at: tile.document * out_vectors + head * chunks,
        start: tile.first,
        last,
        to: all_values + block,
    };
    load_rows::<E>(
        &saved.d_out,
        &mut memory,
        &gradients,
        ROWS,
        chunks,
        out_vectors,
    );
    let keys = RowLoad {
        at: keys_at,
        start: 0usize.runtime(),
        last,
        to: 0usize.runtime(),
    };
    load_rows::<E>(&saved.qkv, &mut memory, &keys, ROWS, chunks, vectors);
    let values = RowLoad {
        at: values_at,
        start: 0usize.runtime(),
        last,
        to: all_values.runtime(),
    };
    load_rows::<E>(&saved.qkv, &mut memory, &values, ROWS, chunks, vectors);
    end_group();
    wait_for_groups(0usize);
    sync_cube();

    let lanes = lanes_of::<E>(&memory, shape);
    let lane = UNIT_POS_PLANE as usize;
    let column = lane % 4 * 2;
    let plane_row = UNIT_POS as usize / 32 * 16;
    let plane_first = tile.first + plane_row;
    let factor = scale * LOG2_E;
    let from = lanes.left + plane_row as u32 * comptime!(2 * shape.head_dim as u32);
    let mut queries = Sequence::<Sequence<Array<Vector<E, Const<2>>>>>::new();
    let mut gradients = Sequence::<Sequence<Array<Vector<E, Const<2>>>>>::new();
    #[unroll]
    for core in 0..cores {
        let mut query = Sequence::<Array<Vector<E, Const<2>>>>::new();
        query.push(fragment::<E>(from + comptime!(shape.tile_bytes()), core));
        queries.push(query);
        let mut gradient = Sequence::<Array<Vector<E, Const<2>>>>::new();
        gradient.push(fragment::<E>(
            from + comptime!(3 * shape.tile_bytes()),
            core,
        ));
        gradients.push(gradient);
    }

    // Of both rows: the logarithm to base 2 of the sum of exponentials, and the sum of `out * d_out`.
    let mut sums = Array::<f32>::new(2usize);
    let mut deltas = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let position = plane_first + half * 8 + lane / 4;
        let row = (tile.document + min(position, last)) * comptime!(shape.heads) + head;
        let from = row * comptime!(shape.head_dim / 2) + column / 2;
        let mut total = Vector::<f32, Const<2>>::new(0.0);
        #[unroll]
        for core in 0..cores {
            let gradient = &gradients[core][0];
            let low = Vector::<f32, Const<2>>::cast_from(gradient[half]);
            let high = Vector::<f32, Const<2>>::cast_from(gradient[half + 2]);
            total += low * Vector::cast_from(out[from + core * 8]);
            total += high * Vector::cast_from(out[from + core * 8 + 4]);
        }
        let mut sum = total.extract(0usize) + total.extract(1usize);
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        if column == 0 && position < tile.len {
            delta[row] = sum;
        }
        deltas[half] = sum;
        sums[half] = saved.lse[row] * LOG2_E;
    }

    let mut output = zeros(chunks);
    let mut start = 0usize;
    let mut stage = 0usize;
    while start < end {
        wait_for_groups(0usize);
        // The tile has arrived, and no unit reads the one before it any more.
        sync_cube();
        if start + ROWS < end {
            let keys = RowLoad {
                at: keys_at,
                start: start + ROWS,
                last,
                to: (1 - stage) * block,
            };
            load_rows::<E>(&saved.qkv, &mut memory, &keys, ROWS, chunks, vectors);
            let values = RowLoad {
                at: values_at,
                start: start + ROWS,
                last,
                to: all_values + (1 - stage) * block,
            };
            load_rows::<E>(&saved.qkv, &mut memory, &values, ROWS, chunks, vectors);
        }
        end_group();

        let tile = stage as u32 * comptime!(shape.tile_bytes());
        let keys = lanes.right + tile;
        let values = keys + comptime!(2 * shape.tile_bytes());
        let mut scores = zeros(comptime!(ROWS / 8));
        let mut d_weights = zeros(comptime!(ROWS / 8));
        #[unroll]
        for core in 0..cores {
            add_row_products::<E>(&queries[core], keys, core, &mut scores, 1usize, shape);
            add_row_products::<E>(
                &gradients[core],
                values,
                core,
                &mut d_weights,
                1usize,
                shape,
            );
        }
        if start + ROWS > plane_first + 1 {
            hide_later_keys(&mut scores, plane_first + lane / 4, start + column);
        }
        // The scores become their gradients.
        #[unroll]
        for block in 0..comptime!(ROWS / 8) {
            let score = &mut scores[block];
            let d_weight = &d_weights[block];
            #[unroll]
            for half in 0..2usize {
                let value = score[half];
                let first = power_of_two(value.extract(0usize) * factor - sums[half]);
                let second = power_of_two(value.extract(1usize) * factor - sums[half]);
                let mut weights = Vector::<f32, Const<2>>::new(first);
                weights.insert(1usize, second);
                score[half] = weights * (d_weight[half] - Vector::new(deltas[half]));
            }
        }
        #[unroll]
        for core in 0..comptime!(ROWS / 16) {
            let mut left = Sequence::<Array<Vector<E, Const<2>>>>::new();
            left.push(rounded::<E>(&scores[core * 2], &scores[core * 2 + 1]));
            add_column_products::<E>(&left, lanes.left + tile, core, &mut output, 1usize, shape);
        }
        start += ROWS;
        stage = 1 - stage;
    }

    #[unroll]
    for half in 0..2usize {
        let position = plane_first + half * 8 + lane / 4;
        if position < tile.len {
            let row = (tile.document + position) * comptime!(shape.heads + 2 * shape.kv_heads);
            let to = (row + head) * comptime!(shape.head_dim / 2) + column / 2;
            #[unroll]
            for block in 0..chunks {
                let output = &output[block];
                d_qkv[to + block * 4] = Vector::cast_from(output[half] * Vector::new(scale));
            }
        }
    }
}

/// Hides the keys, from `key` on, that lie behind the queries, from `query` on: the positions of this unit's first ones.
#[cube]
fn hide_later_keys(scores: &mut Sequence<Array<Vector<f32, Const<2>>>>, query: usize, key: usize) {
    #[unroll]
    for block in 0..comptime!(ROWS / 8) {
        let score = &mut scores[block];
        #[unroll]
        for half in 0..2usize {
            let (position, key) = (query + half * 8, key + block * 8);
            let value = score[half];
            let first = select(key <= position, value.extract(0usize), LOWEST);
            let second = select(key < position, value.extract(1usize), LOWEST);
            let mut masked = Vector::<f32, Const<2>>::new(first);
            masked.insert(1usize, second);
            score[half] = masked;
        }
    }
}
