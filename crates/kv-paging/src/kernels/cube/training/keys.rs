//! The gradients of keys and values: a cube for a tile of keys of a head, a plane for 16 of them. The cube goes through the
//! queries that see the tile, of one query head after the other. Scores are transposed: a row for a key.

use cubecl::frontend::barrier::copy_async;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::blocks::{end_group, wait_for_groups};
use super::super::scores::{LOG2_E, LOWEST};
use super::queries::Saved;
use super::tile::{
    ALIGNMENT, ROWS, RowLoad, Tiles, UNITS, add_column_products, add_row_products, fragment,
    lanes_of, load_rows, power_of_two, rounded, zeros,
};
use crate::kernels::training::heads::HeadShape;

/// Where gradients go, in pairs of elements.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Rows {
    /// From one token to the next.
    row: usize,
    /// Where the keys' first head starts in a row; the values follow the keys.
    first: usize,
    /// From one part of the query heads to the next.
    part: usize,
    /// Query heads of a part.
    heads: usize,
}

#[cube(launch_unchecked)]
pub(super) fn key_gradients<E: Float, O: Float>(
    saved: &Saved<E>,
    delta: &[f32],
    tiles: &Tiles,
    d_keys: &mut [Vector<O, Const<2>>],
    rows: &Rows,
    scale: f32,
    #[comptime] shape: HeadShape,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    let chunks = comptime!(shape.chunks());
    let vectors = comptime!(shape.row());
    let block = comptime!(ROWS * shape.chunks());
    // Keys and values, then two tiles of queries and two of gradients.
    let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
        comptime!(6 * ROWS * shape.chunks()),
        ALIGNMENT,
    );
    // For each of two tiles of queries, their log-sum-exp and then their delta.
    let mut stats = Shared::<[f32]>::new_slice(comptime!(4 * ROWS));

    let kv_head = CUBE_POS_X as usize % comptime!(shape.kv_heads);
    let part = CUBE_POS_X as usize / comptime!(shape.kv_heads);
    let tile = tiles.tile(CUBE_POS_Y as usize);
    let last = tile.len - 1;
    let document = tile.document * vectors;
    let keys_at = document + (comptime!(shape.heads) + kv_head) * chunks;

    let keys = RowLoad {
        at: keys_at,
        start: tile.first,
        last,
        to: 0usize.runtime(),
    };
    load_rows::<E>(&saved.qkv, &mut memory, &keys, ROWS, chunks, vectors);
    let values = RowLoad {
        at: keys_at + comptime!(shape.kv_heads * shape.chunks()),
        start: tile.first,
        last,
        to: block.runtime(),
    };
    load_rows::<E>(&saved.qkv, &mut memory, &values, ROWS, chunks, vectors);

    let first_head = kv_head * comptime!(shape.group()) + part * rows.heads;
    let head_tiles = (tile.len - tile.first).div_ceil(ROWS);
    let num = rows.heads * head_tiles;
    let first = QueryLoad {
        document: tile.document,
        head: first_head,
        start: tile.first,
        last,
        stage: 0usize.runtime(),
    };
    load_queries::<E>(saved, delta, &mut memory, &mut stats, &first, shape);
    end_group();

    let lanes = lanes_of::<E>(&memory, shape);
    let lane = UNIT_POS_PLANE as usize;
    let column = lane % 4 * 2;
    let plane_row = UNIT_POS as usize / 32 * 16;
    let plane_first = tile.first + plane_row;
    let factor = scale * LOG2_E;
    let from = lanes.left + plane_row as u32 * comptime!(2 * shape.head_dim as u32);
    let mut d_key = zeros(chunks);
    let mut d_value = zeros(chunks);

    let mut item = 0usize;
    let mut stage = 0usize;
    while item < num {
        wait_for_groups(0usize);
        // The tile has arrived, and no unit reads the one before it any more.
        sync_cube();
        if item + 1 < num {
            let next = QueryLoad {
                document: tile.document,
                head: first_head + (item + 1) / head_tiles,
                start: tile.first + (item + 1) % head_tiles * ROWS,
                last,
                stage: 1 - stage,
            };
            load_queries::<E>(saved, delta, &mut memory, &mut stats, &next, shape);
        }
        end_group();

        let start = tile.first + item % head_tiles * ROWS;
        let queries = (stage as u32 + 2) * comptime!(shape.tile_bytes());
        let gradients = queries + comptime!(2 * shape.tile_bytes());
        let mut scores = zeros(comptime!(ROWS / 8));
        let mut d_weights = zeros(comptime!(ROWS / 8));
        #[unroll]
        for core in 0..comptime!(shape.chunks() / 2) {
            let mut keys = Sequence::<Array<Vector<E, Const<2>>>>::new();
            keys.push(fragment::<E>(from, core));
            add_row_products::<E>(
                &keys,
                lanes.right + queries,
                core,
                &mut scores,
                1usize,
                shape,
            );
            let mut values = Sequence::<Array<Vector<E, Const<2>>>>::new();
            values.push(fragment::<E>(from + comptime!(shape.tile_bytes()), core));
            add_row_products::<E>(
                &values,
                lanes.right + gradients,
                core,
                &mut d_weights,
                1usize,
                shape,
            );
        }
        if start < tile.first + ROWS || start + ROWS > tile.len {
            hide_queries(
                &mut scores,
                plane_first + lane / 4,
                start + column,
                tile.len,
            );
        }
        // The scores become weights, and the gradients of weights those of scores.
        let stats_at = stage * comptime!(2 * ROWS) + column;
        #[unroll]
        for block in 0..comptime!(ROWS / 8) {
            let at = stats_at + block * 8;
            let sums = (stats[at] * LOG2_E, stats[at + 1] * LOG2_E);
            let mut deltas = Vector::<f32, Const<2>>::new(stats[at + ROWS]);
            deltas.insert(1usize, stats[at + ROWS + 1]);
            let score = &mut scores[block];
            let d_weight = &mut d_weights[block];
            #[unroll]
            for half in 0..2usize {
                let value = score[half];
                let first = power_of_two(value.extract(0usize) * factor - sums.0);
                let second = power_of_two(value.extract(1usize) * factor - sums.1);
                let mut weights = Vector::<f32, Const<2>>::new(first);
                weights.insert(1usize, second);
                score[half] = weights;
                d_weight[half] = weights * (d_weight[half] - deltas);
            }
        }
        #[unroll]
        for core in 0..comptime!(ROWS / 16) {
            let mut left = Sequence::<Array<Vector<E, Const<2>>>>::new();
            left.push(rounded::<E>(&scores[core * 2], &scores[core * 2 + 1]));
            add_column_products::<E>(
                &left,
                lanes.left + gradients,
                core,
                &mut d_value,
                1usize,
                shape,
            );
            let mut left = Sequence::<Array<Vector<E, Const<2>>>>::new();
            left.push(rounded::<E>(&d_weights[core * 2], &d_weights[core * 2 + 1]));
            add_column_products::<E>(&left, lanes.left + queries, core, &mut d_key, 1usize, shape);
        }
        item += 1;
        stage = 1 - stage;
    }

    #[unroll]
    for half in 0..2usize {
        let position = plane_first + half * 8 + lane / 4;
        if position < tile.len {
            let row = part * rows.part + (tile.document + position) * rows.row;
            let to = row + rows.first + kv_head * comptime!(shape.head_dim / 2) + column / 2;
            let to_values = to + comptime!(shape.kv_heads * shape.head_dim / 2);
            #[unroll]
            for block in 0..chunks {
                let (key, value) = (&d_key[block], &d_value[block]);
                d_keys[to + block * 4] = Vector::cast_from(key[half] * Vector::new(scale));
                d_keys[to_values + block * 4] = Vector::cast_from(value[half]);
            }
        }
    }
}

/// A tile of queries on its way to shared memory.
#[derive(CubeType)]
struct QueryLoad {
    document: usize,
    head: usize,
    /// Position of the first query.
    start: usize,
    /// Last position of the document.
    last: usize,
    /// Which of the two tiles.
    stage: usize,
}

/// Starts to copy queries, the gradients of their outputs and their statistics.
#[cube]
fn load_queries<E: Float>(
    saved: &Saved<E>,
    delta: &[f32],
    memory: &mut [Vector<E, Const<8>>],
    stats: &mut [f32],
    load: &QueryLoad,
    #[comptime] shape: HeadShape,
) {
    let chunks = comptime!(shape.chunks());
    let vectors = comptime!(shape.row());
    let out_vectors = comptime!(shape.heads * shape.chunks());
    let block = comptime!(ROWS * shape.chunks());
    let queries = RowLoad {
        at: load.document * vectors + load.head * chunks,
        start: load.start,
        last: load.last,
        to: (load.stage + 2) * block,
    };
    load_rows::<E>(&saved.qkv, memory, &queries, ROWS, chunks, vectors);
    let gradients = RowLoad {
        at: load.document * out_vectors + load.head * chunks,
        start: load.start,
        last: load.last,
        to: (load.stage + 4) * block,
    };
    load_rows::<E>(&saved.d_out, memory, &gradients, ROWS, chunks, out_vectors);
    // Half of the units for each of the two statistics.
    let unit = UNIT_POS as usize;
    let position = min(load.start + unit % comptime!(UNITS / 2), load.last);
    let from = (load.document + position) * comptime!(shape.heads) + load.head;
    let to = load.stage * comptime!(2 * ROWS) + unit;
    if unit < comptime!(UNITS / 2) {
        copy_async(&saved.lse[from..from + 1], &mut stats[to..to + 1], 1u32);
    } else {
        copy_async(&delta[from..from + 1], &mut stats[to..to + 1], 1u32);
    }
}

/// Hides the queries, from `query` on, that come before the keys, from `key` on, or lie behind the document of `len` tokens.
#[cube]
fn hide_queries(
    scores: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    key: usize,
    query: usize,
    len: usize,
) {
    #[unroll]
    for block in 0..comptime!(ROWS / 8) {
        let score = &mut scores[block];
        #[unroll]
        for half in 0..2usize {
            let (key, query) = (key + half * 8, query + block * 8);
            let value = score[half];
            let is_first = key <= query && query < len;
            let is_second = key < query + 2 && query + 1 < len;
            let first = select(is_first, value.extract(0usize), LOWEST);
            let second = select(is_second, value.extract(1usize), LOWEST);
            let mut masked = Vector::<f32, Const<2>>::new(first);
            masked.insert(1usize, second);
            score[half] = masked;
        }
    }
}
