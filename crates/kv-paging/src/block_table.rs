//! A sequence's map from token positions to blocks.

use crate::block_pool::{BlockId, BlockPool};

/// The blocks a sequence holds, in position order: token `p` lies in block `table[p / block_size]` at offset
/// `p % block_size`.
///
/// Every entry is one reference count in the pool; [`BlockTable::release`] gives them back.
#[derive(Debug, Clone, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// The block numbers, in position order.
    pub fn as_slice(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Holds cached blocks, found with [`BlockPool::longest_prefix`], as the table's next entries.
    pub fn adopt(&mut self, blocks: &[BlockId], pool: &mut BlockPool) {
        for &block in blocks {
            pool.retain(block);
        }
        self.blocks.extend_from_slice(blocks);
    }

    /// Allocates until there is room for `num_tokens` tokens. Either all blocks that are missing or none:
    /// returns false, and changes nothing, if the pool has too few free ones.
    #[must_use]
    pub fn grow(&mut self, num_tokens: usize, block_size: usize, pool: &mut BlockPool) -> bool {
        let num_missing = (num_tokens.div_ceil(block_size)).saturating_sub(self.blocks.len());
        if num_missing > pool.num_free() {
            return false;
        }
        self.blocks
            .extend((0..num_missing).map_while(|_| pool.allocate()));
        true
    }

    /// Puts `block` in the place of entry `index`. The caller has moved the hold.
    pub(crate) fn replace(&mut self, index: usize, block: BlockId) {
        self.blocks[index] = block;
    }

    /// Releases all blocks, last to first, so that a cached prefix is evicted from its tail.
    pub fn release(&mut self, pool: &mut BlockPool) {
        while let Some(block) = self.blocks.pop() {
            pool.release(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_whole_blocks_and_only_if_all_fit() {
        let mut pool = BlockPool::new(3);
        let mut table = BlockTable::default();
        assert!(table.grow(0, 4, &mut pool));
        assert_eq!(table.as_slice(), [] as [u32; 0]);
        assert!(table.grow(5, 4, &mut pool));
        assert_eq!(table.as_slice(), [0, 1]);
        assert!(table.grow(8, 4, &mut pool));
        assert_eq!(table.as_slice().len(), 2);
        assert!(!table.grow(13, 4, &mut pool));
        assert_eq!(pool.num_free(), 1);
        assert!(table.grow(12, 4, &mut pool));
        table.release(&mut pool);
        pool.check_invariants(&[0; 3]);
    }

    #[test]
    fn adopted_blocks_are_shared() {
        let mut pool = BlockPool::new(2);
        let mut tables = [BlockTable::default(), BlockTable::default()];
        assert!(tables[0].grow(1, 1, &mut pool));
        let blocks = tables[0].as_slice().to_vec();
        tables[1].adopt(&blocks, &mut pool);
        pool.check_invariants(&[2, 0]);
        tables[0].release(&mut pool);
        pool.check_invariants(&[1, 0]);
    }
}
