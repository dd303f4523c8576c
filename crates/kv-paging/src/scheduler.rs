//! Decides which sequences compute which tokens in the next step.
//!
//! There is no prefill phase and no decode phase, only tokens that are not computed yet (the view of vLLM's v1
//! scheduler). Each step has one token budget. Running sequences get their share first, in order of arrival; the rest of
//! the budget admits waiting sequences, first come first served. So a long prompt is computed in chunks while other
//! sequences decode.
//!
//! When blocks run out, the *last* running sequence is preempted: it loses its blocks, goes to the *front* of the
//! waiting queue and later computes its prompt and its generated tokens again. So `running` followed by `waiting` is
//! always in order of arrival, and the first running sequence can always take the blocks it needs. A sequence that would
//! not fit alone is refused, so the first one finishes after a bounded number of steps: neither deadlock nor starvation.

mod config;
mod sequence;
mod step;

use std::collections::{HashMap, VecDeque};

use crate::block_pool::{AdapterKey, BlockId, BlockPool, CacheEvent, CacheKey};
use crate::stats::SchedulerStats;
use sequence::Sequence;

pub use config::{AddError, ConfigError, SchedulerConfig};
pub use sequence::NewSequence;
pub use step::{Chunk, Sampled, SequenceId, Step};

/// Owner of all sequences and of the block pool. One step is [`schedule`](Self::schedule), the forward pass,
/// [`commit`](Self::commit); sequences may be added and aborted at any time, also in between.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    num_preemptions: u64,
    prefix_queries: u64,
    prefix_hits: u64,
}

impl Scheduler {
    /// A scheduler over `config.num_blocks` free blocks.
    ///
    /// # Errors
    /// If a limit is zero, or there are more than `u32::MAX` blocks.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        let num_blocks = config.validate()?;
        Ok(Self {
            config,
            pool: BlockPool::new(num_blocks),
            running: Vec::new(),
            waiting: VecDeque::new(),
            num_preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
        })
    }

    /// The limits it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The most tokens a sequence may reach; see [`SchedulerConfig::max_len`].
    pub fn max_len(&self, prompt_len: usize, max_tokens: usize) -> usize {
        self.config.max_len(prompt_len, max_tokens)
    }

    /// Appends a sequence to the waiting queue.
    ///
    /// # Errors
    /// If its prompt is empty, or its id in use, or its prompt and one more token never fit into `max_model_len`, or
    /// its prompt never into the pool. A larger `max_tokens` than fits is no error: the sequence ends earlier.
    pub fn add(&mut self, new: NewSequence) -> Result<(), AddError> {
        self.config.check(new.id, new.prompt.len())?;
        if (self.running.iter().chain(&self.waiting)).any(|sequence| sequence.id == new.id) {
            return Err(AddError::DuplicateId { id: new.id });
        }
        let max_len = self.max_len(new.prompt.len(), new.max_tokens);
        let SchedulerConfig {
            block_size,
            enable_prefix_caching,
            ..
        } = self.config;
        self.waiting.push_back(Sequence::new(
            new,
            max_len,
            block_size,
            enable_prefix_caching,
        ));
        Ok(())
    }

    /// Chooses the tokens of the next step. Never empty while [`has_work`](Self::has_work).
    ///
    /// If the last step has not been committed, it counts as never computed and is scheduled again.
    pub fn schedule(&mut self) -> Step {
        self.running.iter_mut().for_each(Sequence::unschedule);
        let mut budget = self.config.max_num_batched_tokens;
        let mut preempted = Vec::new();
        let mut chunks = Vec::with_capacity(self.running.len());

        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let num_tokens = self.running[index].num_uncomputed().min(budget);
            if !self.make_room(index, num_tokens, &mut preempted) {
                break;
            }
            chunks.push(self.running[index].schedule(num_tokens));
            budget -= num_tokens;
            index += 1;
        }

        // What has just been preempted must not come back within the same step.
        while preempted.is_empty() && budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(sequence) = self.waiting.front_mut() else {
                break;
            };
            let Some(lookup) = sequence.admit(&mut self.pool) else {
                break;
            };
            self.prefix_queries += lookup.queries as u64;
            self.prefix_hits += lookup.hits as u64;
            let num_tokens = sequence.num_uncomputed().min(budget);
            let has_room = sequence.grow(num_tokens, &mut self.pool);
            debug_assert!(has_room, "admitted without room");
            chunks.push(sequence.schedule(num_tokens));
            budget -= num_tokens;
            self.running.extend(self.waiting.pop_front());
        }
        Step { chunks, preempted }
    }

    /// Adds a draft to a chunk of the step that was just scheduled: tokens that may come next. The engine computes them in
    /// the same step and commits as many as it samples itself; what turns out to be wrong is computed again.
    ///
    /// Nothing is taken from other sequences for it: the draft is cut to what is left of the step's token budget, to free
    /// blocks, and to the tokens that the sequence may still have. Returns how many of its tokens are computed: 0 if the
    /// chunk has more than one token or samples nothing.
    ///
    /// # Panics
    /// If `step` has no chunk `index`.
    pub fn add_draft(&mut self, step: &mut Step, index: usize, draft: &[u32]) -> usize {
        let left = self
            .config
            .max_num_batched_tokens
            .saturating_sub(step.num_tokens());
        let chunk = &mut step.chunks[index];
        // The chunks are those of the first running sequences.
        let sequence = self.running.get_mut(index);
        let Some(sequence) = sequence.filter(|sequence| sequence.id == chunk.id && chunk.decodes())
        else {
            return 0;
        };
        let draft = &draft[..draft.len().min(left)];
        sequence.add_draft(chunk, draft, &mut self.pool)
    }

    /// Gives `running[index]` room for its next `num_tokens` tokens, preempting from the back of `running` where
    /// needed. Returns false if that went as far as `running[index]` itself.
    fn make_room(
        &mut self,
        index: usize,
        num_tokens: usize,
        preempted: &mut Vec<SequenceId>,
    ) -> bool {
        while !self.running[index].grow(num_tokens, &mut self.pool) {
            let Some(mut victim) = self.running.pop() else {
                return false;
            };
            victim.release(&mut self.pool);
            preempted.push(victim.id);
            self.num_preemptions += 1;
            self.waiting.push_front(victim);
            if self.running.len() == index {
                return false;
            }
        }
        true
    }

    /// Makes room for one more token of running sequences than the scheduled step computes; their block tables then. `None`
    /// if there are too few free blocks: nothing is taken from other sequences for it.
    ///
    /// For an engine that computes their next tokens before it has committed the step. `ids` are in the order of the
    /// step's chunks.
    pub fn reserve_next(&mut self, ids: &[SequenceId]) -> Option<Vec<Vec<BlockId>>> {
        let mut running = self.running.iter_mut();
        let pool = &mut self.pool;
        let tables = ids.iter().map(|id| {
            let sequence = running.find(|sequence| sequence.id == *id)?;
            sequence.reserve_next(pool)
        });
        tables.collect()
    }

    /// Takes note that the scheduled step has been computed, and of the tokens sampled from it.
    ///
    /// Full blocks become findable for other sequences now, and sequences that are finished, or reach their
    /// [`max_len`](Self::max_len), leave the scheduler; their full blocks stay cached. Tokens for sequences that were
    /// aborted meanwhile, or were not due one, are ignored, and so are tokens after one that differs from its draft. A
    /// sequence that was due a token and got none computes its last token again in the next step.
    pub fn commit(&mut self, sampled: &[Sampled]) {
        let mut of: HashMap<SequenceId, Vec<&Sampled>> = HashMap::with_capacity(sampled.len());
        for sampled in sampled {
            of.entry(sampled.id).or_default().push(sampled);
        }
        let pool = &mut self.pool;
        self.running.retain_mut(|sequence| {
            let sampled = of.get(&sequence.id).map_or(&[][..], Vec::as_slice);
            let finished = sequence.commit(sampled, pool);
            if finished {
                sequence.release(pool);
            }
            !finished
        });
    }

    /// Removes a sequence in whatever state and frees its blocks at once. False if there is none with this id.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            self.running.remove(index).release(&mut self.pool);
            return true;
        }
        let index = self.waiting.iter().position(|sequence| sequence.id == id);
        index.and_then(|index| self.waiting.remove(index)).is_some()
    }

    /// Whether a sequence is running or waiting.
    pub fn has_work(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// State and counters.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.running.len(),
            num_waiting: self.waiting.len(),
            num_free_blocks: self.pool.num_free(),
            num_blocks: self.pool.num_blocks(),
            num_preemptions: self.num_preemptions,
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
        }
    }

    /// Forgets all prefixes of an adapter that is unloaded or replaced, under all salts. Nothing added from now on shares a block
    /// with anything added before.
    pub fn forget_adapter(&mut self, adapter: &AdapterKey) {
        let matches = |cached: &CacheKey| cached.adapter.as_ref() == Some(adapter);
        self.pool.forget(matches);
        self.stop_sharing(matches);
    }

    /// The same of all prefixes.
    pub fn reset_prefix_cache(&mut self) {
        self.pool.clear();
        self.stop_sharing(|_| true);
    }

    /// Keeps changes of the prefix cache from now on. Take them after every step: they pile up.
    pub fn record_cache_events(&mut self) {
        self.pool.record_events();
    }

    /// The changes of the prefix cache since the last call, in order.
    pub fn take_cache_events(&mut self) -> Vec<CacheEvent> {
        self.pool.take_events()
    }

    /// Live sequences stop sharing too: what they still compute belongs to the old contents of the key.
    fn stop_sharing(&mut self, matches: impl Fn(&CacheKey) -> bool) {
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            sequence.stop_sharing(&matches);
        }
    }

    /// Checks every reference count against the block tables, the free list and the prefix cache. For tests; takes
    /// time linear in pool and sequences.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn check_invariants(&self) {
        let mut holds = vec![0; self.pool.num_blocks()];
        for sequence in &self.running {
            sequence.check_invariants(true, &mut holds);
        }
        for sequence in &self.waiting {
            sequence.check_invariants(false, &mut holds);
        }
        assert!(self.running.len() <= self.config.max_num_seqs);
        self.pool.check_invariants(&holds);
    }
}

#[cfg(test)]
mod tests;
