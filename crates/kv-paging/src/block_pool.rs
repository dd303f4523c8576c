//! The pool of KV blocks: reference counts, the free list, and the prefix cache over the blocks.
//!
//! A block is *free* when no sequence holds it. A free block may still hold a cached prefix: it stays in the free list
//! until it is handed out again, so caching costs no memory. The free list is in eviction order: blocks without
//! cached contents first, then the least recently used. Sequences release their blocks last to first, and hold a
//! cached block only together with all blocks before it. Hence a prefix's tail always stands before its head in the
//! list and is evicted first; no cached block outlives its parent.

mod events;
mod ids;
mod prefix;

use std::sync::Arc;

use prefix::PrefixCache;

pub use events::CacheEvent;
pub use ids::{AdapterKey, BlockId, CacheKey, PrefixId};

/// The longest cached prefix of some tokens.
#[derive(Debug, Clone, Default)]
pub struct PrefixMatch {
    /// The blocks that hold it, in order. Nothing holds them on behalf of the finder: retain them before allocating.
    pub blocks: Vec<BlockId>,
    /// The prefix that ends with the last of `blocks`.
    pub tail: Option<PrefixId>,
}

/// Owner of all blocks. It hands out numbers; the memory itself lives in the cache tensors.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    free: FreeList,
    prefixes: PrefixCache,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    pub fn new(num_blocks: u32) -> Self {
        Self {
            ref_counts: vec![0; num_blocks as usize],
            free: FreeList::full(num_blocks),
            prefixes: PrefixCache::new(num_blocks),
        }
    }

    /// All blocks, free or not.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that no sequence holds, including those with cached contents.
    pub fn num_free(&self) -> usize {
        self.free.len
    }

    /// Blocks that the prefix cache can find, free or not.
    #[cfg(test)]
    pub(crate) fn num_cached(&self) -> usize {
        self.prefixes.len()
    }

    /// How many sequences hold `block`.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts[block as usize]
    }

    /// Takes the free block whose contents are worth least, evicting them. `None` if every block is held.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop_front()?;
        self.prefixes.remove(block);
        self.ref_counts[block as usize] = 1;
        Some(block)
    }

    /// Holds a block that another sequence holds or that is free with cached contents.
    pub fn retain(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block as usize];
        if *count == 0 {
            self.free.unlink(block);
        }
        *count += 1;
    }

    /// Gives back one hold. The last one makes the block free; what it holds stays cached until it is allocated.
    pub fn release(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block as usize];
        debug_assert!(*count > 0, "block {block} is released but not held");
        *count -= 1;
        match (*count, self.prefixes.contains(block)) {
            (0, true) => self.free.push_back(block),
            (0, false) => self.free.push_front(block),
            _ => {}
        }
    }

    /// Finds the longest run of cached full blocks with which `tokens` begin.
    pub fn longest_prefix(
        &mut self,
        key: &Arc<CacheKey>,
        tokens: &[u32],
        block_size: usize,
    ) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        for tokens in tokens.chunks_exact(block_size) {
            let Some((block, id)) = self.prefixes.get(found.tail, key, tokens) else {
                break;
            };
            found.blocks.push(block);
            found.tail = Some(id);
        }
        found
    }

    /// Makes `block`, which the caller holds and which now holds the computed `tokens` after `parent`, findable.
    ///
    /// If an equal block is cached already (two sequences computed the same prompt at the same time), the caller's
    /// hold moves to that one and its own copy becomes free. Returns the block to go on with, and its prefix.
    pub fn cache(
        &mut self,
        block: BlockId,
        parent: Option<PrefixId>,
        key: &Arc<CacheKey>,
        tokens: &[u32],
    ) -> (BlockId, PrefixId) {
        if let Some((equal, id)) = self.prefixes.get(parent, key, tokens) {
            if equal != block {
                self.retain(equal);
                self.release(block);
            }
            return (equal, id);
        }
        (block, self.prefixes.insert(block, parent, key, tokens))
    }

    /// Makes every block cached under a key that `matches` accepts unfindable. Holders keep their blocks.
    pub fn forget(&mut self, matches: impl Fn(&CacheKey) -> bool) {
        for block in 0..self.num_blocks() as BlockId {
            if !self.prefixes.key_of(block).is_some_and(&matches) {
                continue;
            }
            self.prefixes.remove(block);
            if self.ref_count(block) == 0 {
                self.free.unlink(block);
                self.free.push_front(block);
            }
        }
    }

    /// [`forget`](Self::forget) for all keys; one event instead of one for each block.
    pub fn clear(&mut self) {
        let before = self.prefixes.take_events();
        self.forget(|_| true);
        self.prefixes.note_cleared(before);
    }

    /// Keeps changes of the prefix cache from now on: they pile up until [`take_events`](Self::take_events).
    pub fn record_events(&mut self) {
        self.prefixes.record_events();
    }

    /// The changes of the prefix cache since the last call, in order.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.prefixes.take_events()
    }

    /// Checks counts, free list and prefix cache against each other, and against `holds`: how many sequences the
    /// caller knows to hold each block. For tests; takes time linear in the pool.
    ///
    /// # Panics
    /// If anything disagrees.
    pub fn check_invariants(&self, holds: &[u32]) {
        assert_eq!(self.ref_counts, holds, "reference counts");
        let mut is_free = vec![false; self.num_blocks()];
        let mut seen_cached = false;
        for block in self.free.iter() {
            assert!(
                !is_free[block as usize],
                "block {block} is twice in the free list"
            );
            is_free[block as usize] = true;
            let cached = self.prefixes.contains(block);
            assert!(
                cached || !seen_cached,
                "cached blocks before the empty block {block}"
            );
            seen_cached = cached;
        }
        for (block, (&count, &free)) in self.ref_counts.iter().zip(&is_free).enumerate() {
            assert_eq!(
                count == 0,
                free,
                "block {block}: {count} holds, in the free list: {free}"
            );
        }
        let num_free = is_free.iter().filter(|&&free| free).count();
        assert_eq!(num_free, self.num_free(), "length of the free list");
        self.prefixes.check_invariants();
    }
}

/// A doubly linked list of block numbers; the links lie in one vector, so every operation is O(1) and allocates
/// nothing. The last link is a sentinel: its `next` is the front of the list, its `prev` the back.
#[derive(Debug)]
struct FreeList {
    links: Vec<Link>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

impl FreeList {
    fn full(num_blocks: u32) -> Self {
        let mut list = Self {
            links: vec![
                Link {
                    prev: num_blocks,
                    next: num_blocks
                };
                num_blocks as usize + 1
            ],
            len: 0,
        };
        for block in 0..num_blocks {
            list.push_back(block);
        }
        list
    }

    fn sentinel(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    fn pop_front(&mut self) -> Option<BlockId> {
        let front = self.links[self.sentinel() as usize].next;
        if front == self.sentinel() {
            return None;
        }
        self.unlink(front);
        Some(front)
    }

    fn push_front(&mut self, block: BlockId) {
        self.link_after(self.sentinel(), block);
    }

    fn push_back(&mut self, block: BlockId) {
        let back = self.links[self.sentinel() as usize].prev;
        self.link_after(back, block);
    }

    fn link_after(&mut self, prev: u32, block: BlockId) {
        let next = self.links[prev as usize].next;
        self.links[block as usize] = Link { prev, next };
        self.links[prev as usize].next = block;
        self.links[next as usize].prev = block;
        self.len += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Link { prev, next } = self.links[block as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.len -= 1;
    }

    fn iter(&self) -> impl Iterator<Item = BlockId> {
        let next = |block: u32| self.links[block as usize].next;
        let sentinel = self.sentinel();
        std::iter::successors(Some(next(sentinel)), move |&block| Some(next(block)))
            .take_while(move |&block| block != sentinel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Arc<CacheKey> {
        Arc::new(CacheKey::default())
    }

    fn free_order(pool: &BlockPool) -> Vec<BlockId> {
        pool.free.iter().collect()
    }

    #[test]
    fn every_block_is_handed_out_once() {
        let mut pool = BlockPool::new(3);
        let blocks: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(blocks, [0, 1, 2]);
        assert_eq!(pool.num_free(), 0);
        pool.check_invariants(&[1, 1, 1]);
        pool.release(1);
        assert_eq!(pool.allocate(), Some(1));
        assert_eq!(BlockPool::new(0).allocate(), None);
    }

    #[test]
    fn the_tail_of_a_prefix_is_evicted_first_and_empty_blocks_before_it() {
        let (mut pool, key) = (BlockPool::new(4), key());
        let blocks: Vec<_> = (0..3).filter_map(|_| pool.allocate()).collect();
        let (_, root) = pool.cache(blocks[0], None, &key, &[1]);
        pool.cache(blocks[1], Some(root), &key, &[2]);
        for &block in blocks.iter().rev() {
            pool.release(block);
        }
        assert_eq!(free_order(&pool), [2, 3, 1, 0]);
        pool.check_invariants(&[0; 4]);

        assert_eq!(pool.longest_prefix(&key, &[1, 2, 9], 1).blocks, [0, 1]);
        for expected in [2, 3, 1] {
            assert_eq!(pool.allocate(), Some(expected));
        }
        assert_eq!(pool.longest_prefix(&key, &[1, 2, 9], 1).blocks, [0]);
    }

    #[test]
    fn a_hit_takes_a_block_out_of_the_middle_of_the_free_list() {
        let (mut pool, key) = (BlockPool::new(3), key());
        let block = pool.allocate().unwrap();
        pool.cache(block, None, &key, &[1]);
        pool.release(block);
        assert_eq!(free_order(&pool), [1, 2, 0]);
        pool.retain(block);
        pool.retain(block);
        pool.check_invariants(&[2, 0, 0]);
        assert_eq!(free_order(&pool), [1, 2]);
        pool.release(block);
        pool.release(block);
        assert_eq!(pool.num_free(), 3);
    }

    #[test]
    fn an_equal_block_replaces_the_copy() {
        let (mut pool, key) = (BlockPool::new(3), key());
        let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        let (kept, id) = pool.cache(first, None, &key, &[1, 2]);
        assert_eq!(pool.cache(second, None, &key, &[1, 2]), (kept, id));
        pool.check_invariants(&[2, 0, 0]);
    }

    #[test]
    fn forgotten_blocks_are_not_found_but_stay_held() {
        let mut pool = BlockPool::new(3);
        let keys = [0, 1].map(|id| {
            let name = "a".to_owned();
            Arc::new(CacheKey {
                adapter: Some(AdapterKey { id, name }),
                salt: None,
            })
        });
        let blocks = keys.each_ref().map(|key| {
            let block = pool.allocate().unwrap();
            pool.cache(block, None, key, &[1]);
            block
        });
        pool.release(blocks[1]);
        pool.forget(|key| key.adapter.as_ref().is_some_and(|adapter| adapter.id == 0));
        assert!(pool.longest_prefix(&keys[0], &[1], 1).blocks.is_empty());
        assert_eq!(pool.longest_prefix(&keys[1], &[1], 1).blocks, [blocks[1]]);
        pool.check_invariants(&[1, 0, 0]);
        pool.forget(|_| true);
        assert_eq!(pool.num_cached(), 0);
        pool.check_invariants(&[1, 0, 0]);
    }
}
