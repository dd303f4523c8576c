//! Blocks of keys and values whose last ones are not in the cache yet.

use cubecl::prelude::*;

use super::super::blocks::{Blocks, KEYS, copy_vectors, places};
use super::UNITS;

/// Starts to copy a block of keys and values. From position `known` on it holds `own_key` and `own_value` instead, the vectors
/// of the token itself that each unit has: only the last block of a context has such positions.
///
/// A unit takes the same vector, `UNIT_POS % chunks`, of each of its keys: `UNITS` is a multiple of a key's vectors.
#[cube]
pub(super) fn load_known<E: Float>(
    k: &[Vector<E, Const<8>>],
    v: &[Vector<E, Const<8>>],
    memory: &mut [Vector<E, Const<8>>],
    indices: &[u32],
    table: usize,
    start: usize,
    known: usize,
    own_key: Vector<E, Const<8>>,
    own_value: Vector<E, Const<8>>,
    kv_head: usize,
    stage: usize,
    #[comptime] blocks: Blocks,
) {
    let chunks = comptime!(blocks.chunks());
    let block_size = comptime!(blocks.block_size);
    // Keys that the units take together.
    let keys = comptime!(UNITS / blocks.chunks());
    let (first, chunk) = (UNIT_POS as usize / chunks, UNIT_POS as usize % chunks);
    // All entries of the table before the copies, so that they are waited for together.
    let mut entries = Array::<u32>::new(comptime!(KEYS / keys));
    #[unroll]
    for i in 0..comptime!(KEYS / keys) {
        let position = start + first + i * keys;
        if position < known {
            entries[i] = indices[table + position / block_size];
        }
    }
    #[unroll]
    for i in 0..comptime!(KEYS / keys) {
        let key = first + i * keys;
        let position = start + key;
        if position < known {
            let slot = entries[i] as usize * block_size + position % block_size;
            copy_vectors(k, v, memory, slot, kv_head, key, chunk, stage, blocks);
        } else {
            let (to, values_to) = places(key, chunk, stage, blocks);
            memory[to] = own_key;
            memory[values_to] = own_value;
        }
    }
}
