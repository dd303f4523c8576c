//! Queries, keys and values on their way to shared memory.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use super::super::super::blocks::end_group;
use super::super::rows::{VECTOR, announce, place};
use super::super::wgmma::{self, ROWS, WARPGROUP};
use super::tile::{
    CUBE_ROWS, Heads, KEYS, KEYS_FREE, KEYS_FULL, Layout, Memory, STAGE_BARRIERS, STAGES, Tile,
    VALUES_FREE, VALUES_FULL,
};

/// Query and head of a row; past the last query, that one again.
#[cube]
pub(super) fn query_of(tile: &Tile, row: usize, #[comptime] heads: Heads) -> (usize, usize) {
    (
        min(row / comptime!(heads.shape.group()), tile.num_queries - 1),
        row % comptime!(heads.shape.group()),
    )
}

/// Copies keys and values, tile by tile, each as soon as its place is free: a tile of values after the next tile of keys,
/// since that is the order in which they are multiplied.
#[cube]
pub(super) fn copy<E: Float>(
    keys: &[Vector<E, Const<8>>],
    values: &[Vector<E, Const<8>>],
    step: &[u32],
    memory: &mut [Vector<E, Const<8>>],
    tile: &Tile,
    places: &Memory,
    layout: &Layout,
    kv_head: usize,
    #[comptime] heads: Heads,
) {
    let num_tiles = tile.num_keys().div_ceil(KEYS);
    let head = kv_head * comptime!(heads.chunks());
    let all_keys = comptime!(CUBE_ROWS * heads.chunks());
    let all_values = comptime!((CUBE_ROWS + STAGES * KEYS) * heads.chunks());
    let stage_len = comptime!(KEYS * heads.chunks());
    // What was asked for before is announced when the next tile is on its way.
    let mut before = 0u32;
    for i in 0..num_tiles + 1 {
        if i < num_tiles {
            let stage = i % STAGES;
            let barrier = places.barriers + stage as u32 * STAGE_BARRIERS;
            wgmma::wait_for_phase(barrier + KEYS_FREE, (i / STAGES % 2) as u32 ^ 1);
            let load = TileLoad {
                start: i * KEYS,
                at: layout.keys_at + head,
                to: all_keys + stage * stage_len,
            };
            load_tile::<E>(keys, step, memory, tile, &load, layout, heads);
            end_group();
            announce(before, 1usize);
            before = barrier + KEYS_FULL;
        }
        if i > 0 {
            let stage = (i - 1) % STAGES;
            let barrier = places.barriers + stage as u32 * STAGE_BARRIERS;
            wgmma::wait_for_phase(barrier + VALUES_FREE, ((i - 1) / STAGES % 2) as u32 ^ 1);
            let load = TileLoad {
                start: (i - 1) * KEYS,
                at: layout.values_at + head,
                to: all_values + stage * stage_len,
            };
            load_tile::<E>(values, step, memory, tile, &load, layout, heads);
            end_group();
            announce(before, 1usize);
            before = barrier + VALUES_FULL;
        }
    }
    announce(before, 0usize);
}

/// A tile on its way to shared memory.
#[derive(CubeType)]
struct TileLoad {
    /// Position of its first key.
    start: usize,
    /// Where the head starts in a row, and where the tile goes, in vectors.
    at: usize,
    to: usize,
}

/// Starts to copy a tile of keys or values. Past the last key, that key is copied again.
#[cube]
fn load_tile<E: Float>(
    from: &[Vector<E, Const<8>>],
    step: &[u32],
    memory: &mut [Vector<E, Const<8>>],
    tile: &Tile,
    load: &TileLoad,
    layout: &Layout,
    #[comptime] heads: Heads,
) {
    let chunks = comptime!(heads.chunks());
    let unit = UNIT_POS as usize % WARPGROUP;
    let (first, chunk) = (unit / chunks, unit % chunks);
    let rows_at_once = comptime!(WARPGROUP / heads.chunks());
    let last = tile.num_keys() - 1;
    #[unroll]
    for i in 0..comptime!(KEYS * heads.chunks() / WARPGROUP) {
        let key = first + i * rows_at_once;
        let position = min(load.start + key, last);
        let row = if comptime!(heads.block_size > 0) {
            let block = step[tile.table + position / comptime!(heads.block_size)];
            block as usize * comptime!(heads.block_size) + position % comptime!(heads.block_size)
        } else {
            tile.table + position
        };
        let source = row * layout.key_row + load.at + chunk;
        let place = load.to + place(key, chunk, KEYS);
        copy_async(
            &from[source..source + 1],
            &mut memory[place..place + 1],
            comptime!(VECTOR as u32),
        );
    }
}

/// Brings the queries of a warpgroup to shared memory, in the type of the keys.
#[cube]
pub(super) fn load_queries<E: Float, Q: Float>(
    q: &[Vector<Q, Const<4>>],
    memory: &mut [Vector<E, Const<8>>],
    tile: &Tile,
    layout: &Layout,
    kv_head: usize,
    #[comptime] heads: Heads,
) {
    let chunks = comptime!(heads.chunks());
    let unit = UNIT_POS as usize % WARPGROUP;
    let warpgroup = UNIT_POS as usize / WARPGROUP;
    let (first, chunk) = (unit / chunks, unit % chunks);
    let rows_at_once = comptime!(WARPGROUP / heads.chunks());
    let first_head = kv_head * comptime!(heads.shape.group());
    #[unroll]
    for i in 0..comptime!(ROWS * heads.chunks() / WARPGROUP) {
        let row = first + i * rows_at_once;
        let (query, head) = query_of(tile, warpgroup * ROWS + row, heads);
        let at = (tile.row + query) * layout.query_row + (first_head + head) * chunks + chunk;
        let (low, high) = (q[at * 2], q[at * 2 + 1]);
        let mut vector = Vector::<E, Const<8>>::new(E::new(0.0));
        #[unroll]
        for j in 0..4usize {
            vector.insert(j, E::cast_from(low.extract(j)));
            vector.insert(j + 4, E::cast_from(high.extract(j)));
        }
        memory[warpgroup * ROWS * chunks + place(row, chunk, ROWS)] = vector;
    }
    wgmma::publish();
    wgmma::sync_warpgroup();
}
