//! Blocks of keys and values on their way from the cache to shared memory, for the kernels on tensor cores.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use super::operands::{KeysValues, StepList};

/// Keys of a block.
pub(super) const KEYS: usize = 64;
/// Values of a key in a load.
pub(super) const VECTOR: usize = 8;

/// How blocks lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Blocks {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Tokens of a block of the cache.
    pub(super) block_size: usize,
    /// Blocks of keys in shared memory; as many blocks of values follow.
    pub(super) stages: usize,
}

impl Blocks {
    /// Vectors of a head.
    pub(super) const fn chunks(&self) -> usize {
        self.head_dim / VECTOR
    }

    /// Vectors of a block.
    pub(super) const fn len(&self) -> usize {
        KEYS * self.chunks()
    }
}

/// Ends a group of asynchronous copies.
#[cube]
pub(super) fn end_group() {
    gpu_asm!("cp.async.commit_group;", options(explicit_mem));
}

/// Waits until at most `num` of this unit's groups of copies are under way.
#[cube]
pub(super) fn wait_for_groups(#[comptime] num: usize) {
    gpu_asm!("cp.async.wait_group {num};", options(explicit_mem, writes_address_space shared));
}

/// Where a vector of a key lies in a block: eight keys at the same vector lie in different banks.
#[cube]
pub(super) fn place(key: usize, chunk: usize, #[comptime] blocks: Blocks) -> usize {
    key * comptime!(blocks.chunks()) + (chunk ^ (key % 8))
}

/// A block of a context, and where it goes.
#[derive(CubeType)]
pub(super) struct BlockLoad {
    /// Where the context's block table starts in the [`StepList`].
    pub(super) table: usize,
    pub(super) kv_head: usize,
    /// Position of the first key.
    pub(super) start: usize,
    /// Position past the last key that is in the cache.
    pub(super) end: usize,
    /// The block in shared memory.
    pub(super) stage: usize,
}

/// Starts to copy a block of keys and values. Past the last key of the context, the last key is copied again.
#[cube]
pub(super) fn load_block<E: Float>(
    cache: &KeysValues<E, Const<8>>,
    step: &StepList,
    memory: &mut [Vector<E, Const<8>>],
    load: &BlockLoad,
    #[comptime] blocks: Blocks,
) {
    let chunks = comptime!(blocks.chunks());
    let block_size = comptime!(blocks.block_size);
    let mut i = UNIT_POS as usize;
    while i < comptime!(blocks.len()) {
        let (key, chunk) = (i / chunks, i % chunks);
        let position = min(load.start + key, load.end - 1);
        let entry = step.list[load.table + position / block_size];
        let slot = entry as usize * block_size + position % block_size;
        let from = cache_vector(slot, load.kv_head, chunk, blocks);
        copy_vectors(cache, memory, from, places(key, chunk, load.stage, blocks));
        i += CUBE_DIM as usize;
    }
}

/// Where a vector of a head lies in the cache.
#[cube]
pub(super) fn cache_vector(
    slot: usize,
    kv_head: usize,
    chunk: usize,
    #[comptime] blocks: Blocks,
) -> usize {
    (slot * comptime!(blocks.kv_heads) + kv_head) * comptime!(blocks.chunks()) + chunk
}

/// Starts to copy one vector of a key and of its value from the cache to their [`places`] in a block.
#[cube]
pub(super) fn copy_vectors<E: Float>(
    cache: &KeysValues<E, Const<8>>,
    memory: &mut [Vector<E, Const<8>>],
    from: usize,
    places: (usize, usize),
) {
    let (to, values_to) = places;
    copy_async(
        &cache.keys[from..from + 1],
        &mut memory[to..to + 1],
        comptime!(VECTOR as u32),
    );
    copy_async(
        &cache.values[from..from + 1],
        &mut memory[values_to..values_to + 1],
        comptime!(VECTOR as u32),
    );
}

/// Where a vector of a key lies in a block, and where the same vector of its value lies.
#[cube]
pub(super) fn places(
    key: usize,
    chunk: usize,
    stage: usize,
    #[comptime] blocks: Blocks,
) -> (usize, usize) {
    let to = stage * comptime!(blocks.len()) + place(key, chunk, blocks);
    (to, to + comptime!(blocks.stages * blocks.len()))
}
