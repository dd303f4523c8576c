//! The forward: a cube for [`QUERIES`] queries of a head, a plane for 32 of them.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::blocks::{end_group, wait_for_groups};
use super::super::scores::{LOG2_E, LOWEST};
use super::tile::{
    ALIGNMENT, PLANES, ROWS, RowLoad, Tiles, add_column_products, add_row_products, fragment,
    lanes_of, load_rows, power_of_two, rounded, zeros,
};
use crate::kernels::training::heads::HeadShape;

/// Fragments of queries that a plane has: each fragment of keys or values that it reads serves all of them.
const PARTS: usize = 2;
/// Queries of a cube.
pub(super) const QUERIES: usize = 16 * PARTS * PLANES;

#[cube(launch_unchecked)]
pub(super) fn attend<E: Float>(
    qkv: &[Vector<E, Const<8>>],
    tiles: &Tiles,
    out: &mut [Vector<E, Const<2>>],
    lse: &mut [f32],
    scale: f32,
    #[comptime] shape: HeadShape,
    #[define(E)] _dtype: ElemType,
) {
    let chunks = comptime!(shape.chunks());
    let vectors = comptime!(shape.row());
    let block = comptime!(ROWS * shape.chunks());
    // The queries, then two tiles of keys, then two of values.
    let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
        comptime!((QUERIES + 4 * ROWS) * shape.chunks()),
        ALIGNMENT,
    );
    let all_keys = comptime!(QUERIES * shape.chunks());
    let all_values = comptime!((QUERIES + 2 * ROWS) * shape.chunks());

    let head = CUBE_POS_X as usize;
    let kv_head = head / comptime!(shape.group());
    let tile = tiles.tile(CUBE_POS_Y as usize);
    let end = min(tile.first + QUERIES, tile.len);
    let last = tile.len - 1;
    let document = tile.document * vectors;
    let keys_at = document + (comptime!(shape.heads) + kv_head) * chunks;
    let values_at = keys_at + comptime!(shape.kv_heads * shape.chunks());

    let queries = RowLoad {
        at: document + head * chunks,
        start: tile.first,
        last,
        to: 0usize.runtime(),
    };
    load_rows::<E>(qkv, &mut memory, &queries, QUERIES, chunks, vectors);
    let keys = RowLoad {
        at: keys_at,
        start: 0usize.runtime(),
        last,
        to: all_keys.runtime(),
    };
    load_rows::<E>(qkv, &mut memory, &keys, ROWS, chunks, vectors);
    let values = RowLoad {
        at: values_at,
        start: 0usize.runtime(),
        last,
        to: all_values.runtime(),
    };
    load_rows::<E>(qkv, &mut memory, &values, ROWS, chunks, vectors);
    end_group();

    let lanes = lanes_of::<E>(&memory, shape);
    let lane = UNIT_POS_PLANE as usize;
    let column = lane % 4 * 2;
    let plane_row = UNIT_POS as usize / 32 * comptime!(16 * PARTS);
    let plane_first = tile.first + plane_row;
    let factor = scale * LOG2_E;
    let queries = lanes.left + plane_row as u32 * comptime!(2 * shape.head_dim as u32);

    let mut output = zeros(comptime!(PARTS * shape.chunks()));
    let mut highest = Array::<f32>::new(comptime!(2 * PARTS));
    let mut sums = Array::<f32>::new(comptime!(2 * PARTS));
    #[unroll]
    for i in 0..comptime!(2 * PARTS) {
        highest[i] = f32::new(LOWEST);
        sums[i] = 0.0f32;
    }

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
                to: all_keys + (1 - stage) * block,
            };
            load_rows::<E>(qkv, &mut memory, &keys, ROWS, chunks, vectors);
            let values = RowLoad {
                at: values_at,
                start: start + ROWS,
                last,
                to: all_values + (1 - stage) * block,
            };
            load_rows::<E>(qkv, &mut memory, &values, ROWS, chunks, vectors);
        }
        end_group();

        // Otherwise all keys lie behind the plane's queries.
        if start < plane_first + comptime!(16 * PARTS) {
            let keys = lanes.right + (all_keys + stage * block) as u32 * 16;
            let mut scores = zeros(comptime!(PARTS * ROWS / 8));
            #[unroll]
            for core in 0..comptime!(shape.chunks() / 2) {
                let mut left = Sequence::<Array<Vector<E, Const<2>>>>::new();
                #[unroll]
                for part in 0..PARTS {
                    let rows = queries + part as u32 * comptime!(shape.core_bytes());
                    left.push(fragment::<E>(rows, core));
                }
                add_row_products::<E>(&left, keys, core, &mut scores, PARTS, shape);
            }
            if start + ROWS > plane_first + 1 {
                hide_later_keys(&mut scores, plane_first + lane / 4, start + column);
            }

            // Weights; what was summed up before is brought to the new maximum.
            #[unroll]
            for i in 0..comptime!(2 * PARTS) {
                let (part, half) = (i / 2, i % 2);
                let mut new = highest[i];
                #[unroll]
                for block in 0..comptime!(ROWS / 8) {
                    let score = scores[part * comptime!(ROWS / 8) + block][half];
                    new = max(new, max(score.extract(0usize), score.extract(1usize)));
                }
                new = max(new, plane_shuffle_xor(new, 1u32));
                new = max(new, plane_shuffle_xor(new, 2u32));
                let rescale = power_of_two((highest[i] - new) * factor);
                highest[i] = new;
                let offset = new * factor;
                let mut sum = 0.0f32;
                #[unroll]
                for block in 0..comptime!(ROWS / 8) {
                    let score = &mut scores[part * comptime!(ROWS / 8) + block];
                    let value = score[half];
                    let first = power_of_two(value.extract(0usize) * factor - offset);
                    let second = power_of_two(value.extract(1usize) * factor - offset);
                    sum += first + second;
                    let mut weights = Vector::<f32, Const<2>>::new(first);
                    weights.insert(1usize, second);
                    score[half] = weights;
                }
                sums[i] = sums[i] * rescale + sum;
                #[unroll]
                for block in 0..chunks {
                    let output = &mut output[part * chunks + block];
                    output[half] *= Vector::new(rescale);
                }
            }

            let values = lanes.left + (all_values + stage * block) as u32 * 16;
            #[unroll]
            for core in 0..comptime!(ROWS / 16) {
                let mut left = Sequence::<Array<Vector<E, Const<2>>>>::new();
                #[unroll]
                for part in 0..PARTS {
                    let at = part * comptime!(ROWS / 8) + core * 2;
                    left.push(rounded::<E>(&scores[at], &scores[at + 1]));
                }
                add_column_products::<E>(&left, values, core, &mut output, PARTS, shape);
            }
        }
        start += ROWS;
        stage = 1 - stage;
    }

    #[unroll]
    for i in 0..comptime!(2 * PARTS) {
        let (part, half) = (i / 2, i % 2);
        let mut sum = sums[i];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        let position = plane_first + part * 16 + half * 8 + lane / 4;
        if position < tile.len {
            let row = (tile.document + position) * comptime!(shape.heads) + head;
            if column == 0 {
                lse[row] = highest[i] * scale + sum.ln();
            }
            let inverse = 1.0 / sum;
            let to = row * comptime!(shape.head_dim / 2) + column / 2;
            #[unroll]
            for block in 0..chunks {
                let output = &output[part * chunks + block];
                out[to + block * 4] = Vector::cast_from(output[half] * Vector::new(inverse));
            }
        }
    }
}

/// Hides the keys, from `key` on, that lie behind the queries, from `query` on: the positions of this unit's first ones.
#[cube]
fn hide_later_keys(scores: &mut Sequence<Array<Vector<f32, Const<2>>>>, query: usize, key: usize) {
    #[unroll]
    for i in 0..comptime!(2 * PARTS) {
        let (part, half) = (i / 2, i % 2);
        let position = query + part * 16 + half * 8;
        #[unroll]
        for block in 0..comptime!(ROWS / 8) {
            let score = &mut scores[part * comptime!(ROWS / 8) + block];
            let value = score[half];
            let key = key + block * 8;
            let first = select(key <= position, value.extract(0usize), LOWEST);
            let second = select(key < position, value.extract(1usize), LOWEST);
            let mut masked = Vector::<f32, Const<2>>::new(first);
            masked.insert(1usize, second);
            score[half] = masked;
        }
    }
}
