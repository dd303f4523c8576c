//! One sequence on its way through the scheduler: its tokens, how many of them are computed, and its blocks.

use std::sync::Arc;

use super::step::{Chunk, Sampled, SequenceId};
use crate::block_pool::{BlockId, BlockPool, CacheKey, PrefixId};
use crate::block_table::BlockTable;

/// A sequence to be scheduled.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// Must differ from the ids of all sequences now in the scheduler.
    pub id: SequenceId,
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Cached blocks are shared only with sequences of an equal key.
    pub cache_key: CacheKey,
    /// The most tokens to generate. A cap, not a reservation: see [`Scheduler::max_len`](crate::Scheduler::max_len).
    /// The step that completes the prompt always samples, so 0 means 1; a caller that wants none drops the token.
    pub max_tokens: usize,
    /// The engine wants the logits of every prompt position: no prefix is taken from the cache, all of it is
    /// computed. After a preemption the chunks start at position 0 again.
    pub skip_reading_prefix_cache: bool,
}

/// What looking up a sequence's prefix gave, in tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PrefixLookup {
    pub(crate) queries: usize,
    pub(crate) hits: usize,
}

/// Invariants between steps: `num_registered * block_size <= num_computed < tokens.len() <= max_len`, and the table
/// has room for at least `num_computed` tokens.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// The prompt and what has been generated. After a preemption all of it is computed again.
    tokens: Vec<u32>,
    /// `tokens` never gets longer than this.
    max_len: usize,
    block_size: usize,
    key: Arc<CacheKey>,
    /// False if its blocks must be neither found by others nor, on readmission, taken from the cache.
    shares_prefixes: bool,
    skip_reading_prefix_cache: bool,

    block_table: BlockTable,
    /// Tokens whose keys and values are in the cache.
    num_computed: usize,
    /// Tokens of the step in flight, which become computed with its commit.
    num_scheduled: usize,
    /// Guessed tokens that the step in flight computes after those.
    draft: Vec<u32>,
    /// Leading blocks that are in the prefix cache, and the prefix the last of them ends.
    num_registered: usize,
    registered: Option<PrefixId>,
    /// Tokens found in the prefix cache when first admitted; `None` before.
    num_cached: Option<usize>,
}

impl Sequence {
    pub(crate) fn new(
        new: NewSequence,
        max_len: usize,
        block_size: usize,
        shares_prefixes: bool,
    ) -> Self {
        Self {
            id: new.id,
            tokens: new.prompt,
            max_len,
            block_size,
            key: Arc::new(new.cache_key),
            shares_prefixes,
            skip_reading_prefix_cache: new.skip_reading_prefix_cache,
            block_table: BlockTable::default(),
            num_computed: 0,
            num_scheduled: 0,
            draft: Vec::new(),
            num_registered: 0,
            registered: None,
            num_cached: None,
        }
    }

    /// Tokens still to be computed; at least one.
    pub(crate) fn num_uncomputed(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// Takes the longest cached prefix, if then all tokens of the sequence fit into the free blocks. Otherwise
    /// changes nothing and returns `None`.
    ///
    /// Room is asked for all tokens, though blocks are allocated chunk by chunk: a prompt that starts without it
    /// would soon preempt itself.
    pub(crate) fn admit(&mut self, pool: &mut BlockPool) -> Option<PrefixLookup> {
        let takes_prefixes = self.shares_prefixes && !self.skip_reading_prefix_cache;
        // The last token is always computed: its logits are what the next token is sampled from.
        let num_findable = if takes_prefixes {
            self.tokens.len() - 1
        } else {
            0
        };
        let found = pool.longest_prefix(&self.key, &self.tokens[..num_findable], self.block_size);

        // Found blocks that are free count as free, and taking them uses them up.
        let num_found_free = (found.blocks.iter())
            .filter(|&&block| pool.ref_count(block) == 0)
            .count();
        let num_new = self.tokens.len().div_ceil(self.block_size) - found.blocks.len();
        if num_new + num_found_free > pool.num_free() {
            return None;
        }

        self.block_table.adopt(&found.blocks, pool);
        self.num_registered = found.blocks.len();
        self.registered = found.tail;
        self.num_computed = found.blocks.len() * self.block_size;
        let is_first_query = takes_prefixes && self.num_cached.is_none();
        self.num_cached.get_or_insert(self.num_computed);
        Some(if is_first_query {
            PrefixLookup {
                queries: self.tokens.len(),
                hits: self.num_computed,
            }
        } else {
            PrefixLookup::default()
        })
    }

    /// Makes room for the next `num_tokens` tokens; false, and nothing changes, if the pool has too few free blocks.
    pub(crate) fn grow(&mut self, num_tokens: usize, pool: &mut BlockPool) -> bool {
        let num_tokens = self.num_computed + num_tokens;
        self.block_table.grow(num_tokens, self.block_size, pool)
    }

    /// Makes the next `num_tokens` tokens part of the step being built. There must be room for them.
    pub(crate) fn schedule(&mut self, num_tokens: usize) -> Chunk {
        let (start, end) = (self.num_computed, self.num_computed + num_tokens);
        debug_assert!(start < end && end <= self.block_table.as_slice().len() * self.block_size);
        self.num_scheduled = num_tokens;
        let samples = end == self.tokens.len();
        Chunk {
            id: self.id,
            tokens: self.tokens[start..end].to_vec(),
            draft: Vec::new(),
            start,
            block_table: self.block_table.as_slice().to_vec(),
            samples,
            reaches_max_len: samples && end + 1 >= self.max_len,
            num_cached: self.num_cached.unwrap_or(0),
        }
    }

    /// Adds a draft to its chunk of the step, as far as there is room for it; how many tokens that are.
    pub(crate) fn add_draft(
        &mut self,
        chunk: &mut Chunk,
        draft: &[u32],
        pool: &mut BlockPool,
    ) -> usize {
        // Each token of the draft gives a further one.
        let mut len = draft.len().min(self.max_len - self.tokens.len() - 1);
        if !self.grow(self.num_scheduled + len, pool) {
            let room = self.block_table.as_slice().len() * self.block_size;
            len = room - self.num_computed - self.num_scheduled;
        }
        self.draft = draft[..len].to_vec();
        chunk.draft.clone_from(&self.draft);
        chunk.block_table = self.block_table.as_slice().to_vec();
        chunk.reaches_max_len = self.tokens.len() + len + 1 >= self.max_len;
        len
    }

    /// Makes room for one more token than is scheduled; all blocks then.
    pub(crate) fn reserve_next(&mut self, pool: &mut BlockPool) -> Option<Vec<BlockId>> {
        let has_room = self.grow(self.num_scheduled + 1, pool);
        has_room.then(|| self.block_table.as_slice().to_vec())
    }

    /// Forgets a step that was scheduled but never committed.
    pub(crate) fn unschedule(&mut self) {
        self.num_scheduled = 0;
        self.draft.clear();
    }

    /// Takes note that the step in flight has been computed, and of the tokens sampled from it. Returns whether the
    /// sequence is finished.
    pub(crate) fn commit(&mut self, sampled: &[&Sampled], pool: &mut BlockPool) -> bool {
        self.num_computed += std::mem::take(&mut self.num_scheduled);
        let draft = std::mem::take(&mut self.draft);
        let mut finished = false;
        if self.num_computed == self.tokens.len() {
            // Until a token is sampled, the last one counts as not computed.
            self.num_computed -= 1;
            let before = std::iter::once(None).chain(draft.into_iter().map(Some));
            for (sampled, guessed) in sampled.iter().zip(before) {
                if finished || guessed.is_some_and(|guessed| self.tokens.last() != Some(&guessed)) {
                    break;
                }
                self.num_computed += 1;
                self.tokens.push(sampled.token);
                finished = sampled.finished || self.tokens.len() >= self.max_len;
            }
        }
        self.register_full_blocks(pool);
        finished
    }

    /// Puts full blocks whose tokens are all computed into the prefix cache.
    fn register_full_blocks(&mut self, pool: &mut BlockPool) {
        if !self.shares_prefixes {
            return;
        }
        while (self.num_registered + 1) * self.block_size <= self.num_computed {
            let index = self.num_registered;
            let tokens = &self.tokens[index * self.block_size..][..self.block_size];
            let block = self.block_table.as_slice()[index];
            let (block, prefix) = pool.cache(block, self.registered, &self.key, tokens);
            self.block_table.replace(index, block);
            self.num_registered += 1;
            self.registered = Some(prefix);
        }
    }

    /// Gives up all blocks; every token must be computed again. Full blocks stay in the prefix cache.
    pub(crate) fn release(&mut self, pool: &mut BlockPool) {
        self.block_table.release(pool);
        self.num_computed = 0;
        self.unschedule();
        self.num_registered = 0;
        self.registered = None;
    }

    /// From now on neither finds nor leaves anything in the prefix cache, if `matches` accepts its key.
    pub(crate) fn stop_sharing(&mut self, matches: impl Fn(&CacheKey) -> bool) {
        self.shares_prefixes &= !matches(&self.key);
    }

    /// Counts its holds into `holds`, and checks itself.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub(crate) fn check_invariants(&self, is_running: bool, holds: &mut [u32]) {
        let id = self.id;
        let blocks = self.block_table.as_slice();
        for &block in blocks {
            holds[block as usize] += 1;
        }
        assert_eq!(
            is_running,
            !blocks.is_empty(),
            "sequence {id}: running and holding blocks"
        );
        let num_scheduled = self.num_computed + self.num_scheduled;
        let num_after_step = num_scheduled + self.draft.len();
        assert!(
            self.num_computed < self.tokens.len()
                && num_scheduled <= self.tokens.len()
                && num_after_step < self.max_len,
            "{self:?}"
        );
        assert!(
            self.tokens.len() < self.max_len,
            "sequence {id} is too long and not finished"
        );
        assert!(
            num_after_step <= blocks.len() * self.block_size,
            "sequence {id} has too few blocks"
        );
        assert!(
            self.num_registered * self.block_size <= self.num_computed,
            "{self:?}"
        );
        assert_eq!(
            self.registered.is_some(),
            self.num_registered > 0,
            "{self:?}"
        );
    }
}
