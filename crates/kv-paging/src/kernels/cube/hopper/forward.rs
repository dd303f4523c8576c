//! Causal attention of many queries on `wgmma` (FlashAttention-3, arXiv:2407.08608): over block tables for prompts, over rows of
//! documents for training.
//!
//! A cube serves the queries of a tile and all query heads that share a key/value head: 128 rows, a row for each query and
//! head. One warpgroup copies tiles of keys and values to shared memory, two have 64 rows each. While the weights of a tile are
//! multiplied with its values, the scores of the next tile become weights.

mod load;
pub(super) mod tile;

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use self::load::{copy, load_queries, query_of};
use self::tile::{
    CUBE_ROWS, Heads, KEYS, KEYS_FREE, KEYS_FULL, Layout, Memory, STAGE_BARRIERS, STAGES, Tile,
    VALUES_FREE, VALUES_FULL,
};
use super::super::scores::{LOG2_E, LOWEST};
use super::wgmma::{self, Panels, ROWS, WARPGROUP};

/// Registers of a unit that copies, and of one that multiplies, out of 65,536 for all.
const COPYING_REGISTERS: u32 = 72;
const MULTIPLYING_REGISTERS: u32 = 216;

#[cube(launch_unchecked)]
pub(super) fn attend<E: Float, Q: Float, O: Float>(
    q: &[Vector<Q, Const<4>>],
    keys: &[Vector<E, Const<8>>],
    values: &[Vector<E, Const<8>>],
    step: &[u32],
    tiles: &[u32],
    out: &mut [Vector<O, Const<2>>],
    lse: &mut [f32],
    layout: &Layout,
    scale: f32,
    #[comptime] heads: Heads,
    #[define(E, Q, O)] _dtypes: [ElemType; 3],
) {
    let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
        comptime!((CUBE_ROWS + 2 * STAGES * KEYS) * heads.chunks()),
        1024usize,
    );
    let mut barriers =
        Shared::<[Vector<u32, Const<2>>]>::new_aligned_slice(comptime!(4 * STAGES), 16usize);
    let queries = wgmma::address(&mut memory);
    let keys_from = queries + comptime!(2 * heads.query_bytes());
    let places = Memory {
        queries,
        keys: keys_from,
        values: keys_from + comptime!(STAGES as u32 * heads.tile_bytes()),
        barriers: wgmma::address(&mut barriers),
    };
    if UNIT_POS == 0 {
        #[unroll]
        for stage in 0..comptime!(STAGES as u32) {
            let barrier = places.barriers + stage * STAGE_BARRIERS;
            wgmma::init_barrier(barrier + KEYS_FULL, comptime!(WARPGROUP as u32));
            wgmma::init_barrier(barrier + KEYS_FREE, 2u32);
            wgmma::init_barrier(barrier + VALUES_FULL, comptime!(WARPGROUP as u32));
            wgmma::init_barrier(barrier + VALUES_FREE, 2u32);
        }
    }
    sync_cube();
    wgmma::declare_sums("score", comptime!(KEYS / 2));
    wgmma::declare_sums("output", comptime!(heads.shape.head_dim / 2));
    wgmma::declare_operands("weight", comptime!(KEYS / 4));

    let kv_head = CUBE_POS_X as usize;
    let tile = Tile::of(tiles, CUBE_POS_Y as usize);
    if UNIT_POS < comptime!(2 * WARPGROUP as u32) {
        wgmma::take_registers(MULTIPLYING_REGISTERS);
        load_queries(q, &mut memory, &tile, layout, kv_head, heads);
        attend_rows(out, lse, &tile, &places, kv_head, scale, heads);
    } else {
        wgmma::give_registers(COPYING_REGISTERS);
        copy(
            keys,
            values,
            step,
            &mut memory,
            &tile,
            &places,
            layout,
            kv_head,
            heads,
        );
    }
}

/// Of a unit's two rows: the highest score, and the sum of the weights relative to it.
#[derive(CubeType)]
struct Stats {
    highest: Array<f32>,
    sums: Array<f32>,
}

#[cube]
fn attend_rows<O: Float>(
    out: &mut [Vector<O, Const<2>>],
    lse: &mut [f32],
    tile: &Tile,
    places: &Memory,
    kv_head: usize,
    scale: f32,
    #[comptime] heads: Heads,
) {
    let warpgroup = UNIT_POS / comptime!(WARPGROUP as u32);
    let queries = places.queries + warpgroup * comptime!(heads.query_bytes());
    let lane = (UNIT_POS % 32) as usize;
    let first_row = UNIT_POS as usize / 32 * 16 + lane / 4;
    let column = lane % 4 * 2;
    let num_tiles = tile.num_keys().div_ceil(KEYS);
    let factor = scale * LOG2_E;
    let mut stats = Stats {
        highest: Array::<f32>::new(2usize),
        sums: Array::<f32>::new(2usize),
    };
    // Keys that the two rows see.
    let mut visible = Array::<usize>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        stats.highest[half] = f32::new(LOWEST);
        stats.sums[half] = 0.0f32;
        let (query, _head) = query_of(tile, first_row + half * 8, heads);
        visible[half] = tile.context + query;
    }
    let panels = comptime!(Panels {
        rows: ROWS,
        is_outer: false
    });

    let barriers = places.barriers;
    wgmma::wait_for_phase(barriers + KEYS_FULL, 0u32);
    wgmma::multiply(queries, places.keys, comptime!(heads.scores()), panels);
    wgmma::wait(0usize);
    free(barriers + KEYS_FREE);
    if tile.context < KEYS {
        hide_later_keys(&visible, column);
    }
    let _first = weigh(&mut stats, factor);
    round_weights();

    // While one warpgroup weighs its scores, the other one's products run.
    if warpgroup == 1 && num_tiles > 1 {
        wgmma::give_way();
    }
    for i in 1..num_tiles {
        let (stage, before) = ((i % STAGES) as u32, ((i - 1) % STAGES) as u32);
        let barrier = barriers + stage * STAGE_BARRIERS;
        let before_barrier = barriers + before * STAGE_BARRIERS;
        wgmma::wait_for_phase(barrier + KEYS_FULL, (i / STAGES % 2) as u32);
        let keys = places.keys + stage * comptime!(heads.tile_bytes());
        wgmma::wait_for_turn();
        wgmma::multiply(queries, keys, comptime!(heads.scores()), panels);
        wgmma::wait_for_phase(before_barrier + VALUES_FULL, ((i - 1) / STAGES % 2) as u32);
        let values = places.values + before * comptime!(heads.tile_bytes());
        wgmma::multiply_registers("weight", values, comptime!(heads.output()));
        if warpgroup == 0 || i + 1 < num_tiles {
            wgmma::give_way();
        }
        wgmma::wait(1usize);
        if (i + 1) * KEYS > tile.context {
            hide_later_keys(&visible, i * KEYS + column);
        }
        let rescale = weigh(&mut stats, factor);
        // A sum has no sign: this keeps the compiler from waiting for the output before it weighs the scores.
        let sign = u32::reinterpret(min(stats.sums[0], stats.sums[1])) >> 31;
        free(barrier + KEYS_FREE + sign);
        wgmma::wait(0usize);
        free(before_barrier + VALUES_FREE);
        #[unroll]
        for j in 0..comptime!(heads.shape.head_dim / 2) {
            wgmma::scale_sum("output", j, rescale[j / 2 % 2]);
        }
        round_weights();
    }
    let last = ((num_tiles - 1) % STAGES) as u32;
    let barrier = barriers + last * STAGE_BARRIERS;
    wgmma::wait_for_phase(barrier + VALUES_FULL, ((num_tiles - 1) / STAGES % 2) as u32);
    let values = places.values + last * comptime!(heads.tile_bytes());
    wgmma::multiply_registers("weight", values, comptime!(heads.output()));
    wgmma::wait(0usize);

    #[unroll]
    for half in 0..2usize {
        let row = first_row + half * 8;
        let (query, head) = query_of(tile, row, heads);
        let mut sum = stats.sums[half];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        if row < tile.num_queries * comptime!(heads.shape.group()) {
            let head = kv_head * comptime!(heads.shape.group()) + head;
            let row = (tile.row + query) * comptime!(heads.shape.heads) + head;
            if comptime!(heads.has_lse) {
                if column == 0 {
                    lse[row] = stats.highest[half] * scale + sum.ln();
                }
            }
            let inverse = 1.0 / sum;
            let to = row * comptime!(heads.shape.head_dim / 2) + column / 2;
            #[unroll]
            for block in 0..comptime!(heads.shape.head_dim / 8) {
                let at = comptime!(block * 4 + half * 2);
                let mut pair = Vector::<f32, Const<2>>::new(0.0);
                pair.insert(0usize, wgmma::sum("output", at) * inverse);
                pair.insert(1usize, wgmma::sum("output", comptime!(at + 1)) * inverse);
                out[to + block * 4] = Vector::cast_from(pair);
            }
        }
    }
}

/// A tile may be overwritten: one unit says so for the warpgroup.
#[cube]
fn free(barrier: u32) {
    if UNIT_POS % comptime!(WARPGROUP as u32) == 0 {
        wgmma::arrive(barrier);
    }
}

/// Hides the keys, from `key` on, that a row doesn't see.
#[cube]
fn hide_later_keys(visible: &Array<usize>, key: usize) {
    #[unroll]
    for i in 0..comptime!(KEYS / 2) {
        let key = (key + comptime!(i / 4 * 8 + i % 2)) as u32;
        let visible = visible[comptime!(i / 2 % 2)] as u32;
        wgmma::hide_sum("score", i, key, visible, comptime!(LOWEST.to_bits()));
    }
}

/// Scores become weights relative to the highest score so far. Returns what older weights are to be multiplied with.
#[cube]
fn weigh(stats: &mut Stats, factor: f32) -> Array<f32> {
    let mut rescale = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let mut highest = stats.highest[half];
        #[unroll]
        for i in 0..comptime!(KEYS / 4) {
            let at = comptime!(i / 2 * 4 + half * 2 + i % 2);
            highest = max(highest, wgmma::sum("score", at));
        }
        highest = max(highest, plane_shuffle_xor(highest, 1u32));
        highest = max(highest, plane_shuffle_xor(highest, 2u32));
        rescale[half] = wgmma::power_of_two((stats.highest[half] - highest) * factor);
        stats.highest[half] = highest;
        let offset = -(highest * factor);
        let mut sum = stats.sums[half] * rescale[half];
        #[unroll]
        for i in 0..comptime!(KEYS / 4) {
            let at = comptime!(i / 2 * 4 + half * 2 + i % 2);
            sum += wgmma::weigh_sum("score", at, factor, offset);
        }
        stats.sums[half] = sum;
    }
    rescale
}

/// Weights become an operand in registers.
#[cube]
fn round_weights() {
    #[unroll]
    for i in 0..comptime!(KEYS / 4) {
        wgmma::round_sums("score", "weight", i);
    }
}
