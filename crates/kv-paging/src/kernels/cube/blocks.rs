//! Blocks of keys and values on their way from the cache to shared memory, for the kernels on tensor cores.

use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

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
    /// Blocks in shared memory: those of the keys, then as many of the values.
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

/// Starts to copy a block of keys and values; past the last one, the last one again.
#[cube]
pub(super) fn load_block<E: Float>(
    k: &[Vector<E, Const<8>>],
    v: &[Vector<E, Const<8>>],
    memory: &mut [Vector<E, Const<8>>],
    indices: &[u32],
    table: usize,
    start: usize,
    end: usize,
    kv_head: usize,
    stage: usize,
    #[comptime] blocks: Blocks,
) {
    let chunks = comptime!(blocks.chunks());
    let block_size = comptime!(blocks.block_size);
    let mut i = UNIT_POS as usize;
    while i < comptime!(blocks.len()) {
        let (key, chunk) = (i / chunks, i % chunks);
        let position = min(start + key, end - 1);
        let slot =
            indices[table + position / block_size] as usize * block_size + position % block_size;
        copy_vectors(k, v, memory, slot, kv_head, key, chunk, stage, blocks);
        i += CUBE_DIM as usize;
    }
}

/// Starts to copy one vector of a slot's key and of its value to where a key of a block lies.
#[cube]
pub(super) fn copy_vectors<E: Float>(
    k: &[Vector<E, Const<8>>],
    v: &[Vector<E, Const<8>>],
    memory: &mut [Vector<E, Const<8>>],
    slot: usize,
    kv_head: usize,
    key: usize,
    chunk: usize,
    stage: usize,
    #[comptime] blocks: Blocks,
) {
    let from = (slot * comptime!(blocks.kv_heads) + kv_head) * comptime!(blocks.chunks()) + chunk;
    let (to, values_to) = places(key, chunk, stage, blocks);
    copy_async(
        &k[from..from + 1],
        &mut memory[to..to + 1],
        comptime!(VECTOR as u32),
    );
    copy_async(
        &v[from..from + 1],
        &mut memory[values_to..values_to + 1],
        comptime!(VECTOR as u32),
    );
}

/// Where a vector of a key of a block lies, and that of its value.
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
