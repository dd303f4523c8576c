//! Blocks of keys and values, of which the token's own are not in the cache yet.

use cubecl::prelude::*;

use super::super::blocks::{BlockLoad, Blocks, KEYS, cache_vector, copy_vectors, places};
use super::super::operands::{KeysValues, StepList};
use super::shape::UNITS;

/// The vectors of the token's own key and value that a unit has.
#[derive(CubeType)]
pub(super) struct OwnToken<E: Float> {
    pub(super) key: Vector<E, Const<8>>,
    pub(super) value: Vector<E, Const<8>>,
}

/// Starts to copy a block of keys and values. A position that is not in the cache gets
/// the token's own key and value: only the last block of a context has such a position.
///
/// A unit takes the same vector, `UNIT_POS % chunks`, of each of its keys: `UNITS` is a multiple of a key's vectors.
#[cube]
pub(super) fn load_known<E: Float>(
    cache: &KeysValues<E, Const<8>>,
    step: &StepList,
    memory: &mut [Vector<E, Const<8>>],
    load: &BlockLoad,
    own: &OwnToken<E>,
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
        let position = load.start + first + i * keys;
        if position < load.end {
            entries[i] = step.list[load.table + position / block_size];
        }
    }
    #[unroll]
    for i in 0..comptime!(KEYS / keys) {
        let key = first + i * keys;
        let position = load.start + key;
        if position < load.end {
            let slot = entries[i] as usize * block_size + position % block_size;
            let from = cache_vector(slot, load.kv_head, chunk, blocks);
            copy_vectors(cache, memory, from, places(key, chunk, load.stage, blocks));
        } else {
            let (to, values_to) = places(key, chunk, load.stage, blocks);
            memory[to] = own.key;
            memory[values_to] = own.value;
        }
    }
}
