//! Random traffic through the scheduler, with a model of KV memory that notices every wrong block.
//!
//! The engine below "computes" a token by writing, into the slot its block table names, a digest of the adapter's
//! version, the position, the token, *and the digest it reads at the position before*, as a real model's keys and
//! values depend on everything before them. Each step first writes all chunks and then reads every position of every
//! chunk's sequence back through its block table: each must hold the digest of that very sequence. The sampled token
//! is a function of the last digest, so outputs can be compared with what each sequence would have produced alone.
//!
//! Steps may have drafts, right and wrong ones: their digests are written too, and must never be read as anybody's.

mod traffic;

use std::collections::{BTreeMap, VecDeque};

use kv_paging::{
    AdapterKey, CacheKey, Chunk, NewSequence, Sampled, Scheduler, SchedulerConfig, SequenceId, Step,
};
use proptest::prelude::*;

const NUM_KEYS: usize = 3;
/// Small, so that different prompts and outputs often agree for some blocks.
const VOCAB: u64 = 3;
const EOS: u32 = 0;

fn adapter() -> AdapterKey {
    AdapterKey {
        id: 0,
        name: "a".to_owned(),
    }
}

fn key(index: usize) -> CacheKey {
    match index {
        0 => CacheKey::default(),
        1 => CacheKey {
            adapter: Some(adapter()),
            salt: None,
        },
        _ => CacheKey {
            adapter: Some(adapter()),
            salt: Some("s".to_owned()),
        },
    }
}

/// Finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What the model stores for `token` after `before`; `None` at the first position.
fn digest(root: u64, before: Option<u64>, token: u32) -> u64 {
    mix(before
        .unwrap_or(mix(root))
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        ^ u64::from(token))
}

fn next_token(last: u64) -> u32 {
    // Biased towards going on, so that sequences get long.
    match mix(last) % (4 * VOCAB) {
        0 => EOS,
        value => (value % (VOCAB - 1)) as u32 + 1,
    }
}

/// A sequence as the client sees it.
#[derive(Debug)]
struct Live {
    /// Stands for the adapter's weights: key and how often it had been reloaded when the sequence came.
    root: u64,
    prompt: Vec<u32>,
    output: Vec<u32>,
    max_len: usize,
    num_cached: Option<usize>,
    skip_reading_prefix_cache: bool,
}

impl Live {
    fn token(&self, position: usize) -> Option<u32> {
        self.prompt
            .iter()
            .chain(&self.output)
            .nth(position)
            .copied()
    }

    /// The digests of all its tokens so far.
    fn digests(&self) -> Vec<u64> {
        let mut before = None;
        (self.prompt.iter().chain(&self.output))
            .map(|&token| *before.insert(digest(self.root, before, token)))
            .collect()
    }
}

struct Engine {
    scheduler: Scheduler,
    config: SchedulerConfig,
    /// Memory: one digest per slot.
    slots: Vec<Option<u64>>,
    live: BTreeMap<SequenceId, Live>,
    /// Ids in order of arrival.
    arrivals: VecDeque<SequenceId>,
    versions: [u64; NUM_KEYS],
    next_id: SequenceId,
    num_emitted: usize,
    /// Tokens of drafts that were right.
    num_accepted: usize,
    /// Tokens of a draft at most.
    max_draft: usize,
}

impl Engine {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone()).expect("a valid config"),
            slots: vec![None; config.num_blocks * config.block_size],
            config,
            live: BTreeMap::new(),
            arrivals: VecDeque::new(),
            versions: [0; NUM_KEYS],
            next_id: 0,
            num_emitted: 0,
            num_accepted: 0,
            max_draft: 0,
        }
    }

    fn add(
        &mut self,
        prompt: Vec<u32>,
        key_index: usize,
        max_tokens: usize,
        skip_reading_prefix_cache: bool,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let prompt_len = prompt.len();
        let added = self.scheduler.add(NewSequence {
            id,
            prompt: prompt.clone(),
            cache_key: key(key_index),
            max_tokens,
            skip_reading_prefix_cache,
        });
        let fits = prompt_len < self.config.max_model_len && prompt_len <= self.slots.len();
        assert_eq!(added.is_ok(), fits, "{added:?}");
        if added.is_ok() {
            let max_len = (prompt_len + max_tokens.max(1))
                .min(self.config.max_model_len)
                .min(self.slots.len() + 1);
            let root = self.versions[key_index] * NUM_KEYS as u64 + key_index as u64;
            let live = Live {
                root,
                prompt,
                output: vec![],
                max_len,
                num_cached: None,
                skip_reading_prefix_cache,
            };
            self.live.insert(id, live);
            self.arrivals.push_back(id);
        }
    }

    fn remove(&mut self, id: SequenceId) {
        self.live.remove(&id);
        self.arrivals.retain(|&other| other != id);
    }

    fn abort_nth(&mut self, n: usize) {
        if !self.live.is_empty() {
            let id = self.arrivals[n % self.arrivals.len()];
            assert!(self.scheduler.abort(id));
            assert!(!self.scheduler.abort(id));
            self.remove(id);
            self.scheduler.check_invariants();
        }
    }

    fn forget(&mut self, key_index: usize) {
        if key_index == 0 {
            self.scheduler.reset_prefix_cache();
            self.versions = self.versions.map(|version| version + 1);
        } else {
            self.scheduler.forget_adapter(&adapter());
            self.versions[1] += 1;
            self.versions[2] += 1;
        }
        self.scheduler.check_invariants();
    }

    /// The tokens that come next, and from some place on others.
    fn draft(&self, chunk: &Chunk) -> Vec<u32> {
        let Some(live) = self.live.get(&chunk.id) else {
            return Vec::new();
        };
        let mut last = *live.digests().last().expect("a prompt");
        let random = mix(last ^ 0x5eed) as usize;
        let (len, num_right) = (random % (self.max_draft + 1), random / 64 % 8);
        let tokens = (0..len).map(|i| {
            let next = next_token(last);
            let token = if i < num_right { next } else { next + 1 };
            last = digest(live.root, Some(last), token);
            token
        });
        tokens.collect()
    }

    fn schedule(&mut self) -> Step {
        let had_work = self.scheduler.has_work();
        let mut step = self.scheduler.schedule();
        let free = self.scheduler.stats().num_free_blocks;
        for index in 0..step.chunks.len() {
            let draft = self.draft(&step.chunks[index]);
            let num = self.scheduler.add_draft(&mut step, index, &draft);
            let chunk = &step.chunks[index];
            assert_eq!(chunk.draft, draft[..num], "the beginning of the draft");
            assert!(num == 0 || chunk.decodes());
        }
        assert!(self.max_draft > 0 || self.scheduler.stats().num_free_blocks == free);
        self.scheduler.check_invariants();
        assert_eq!(
            had_work,
            !step.chunks.is_empty(),
            "work and an empty step, or the reverse"
        );
        assert!(
            step.num_tokens() <= self.config.max_num_batched_tokens,
            "budget"
        );
        assert!(step.chunks.len() <= self.config.max_num_seqs, "sequences");
        // No overtaking: the chunks are those of the earliest sequences, each at most once, in order of arrival.
        let ids: Vec<_> = step.chunks.iter().map(|chunk| chunk.id).collect();
        let earliest: Vec<_> = self.arrivals.iter().copied().take(ids.len()).collect();
        assert_eq!(ids, earliest, "order of arrival");
        for id in &step.preempted {
            assert!(
                self.live.contains_key(id) && !ids.contains(id),
                "preempted {id}"
            );
        }
        step
    }

    fn slot(&self, chunk: &Chunk, position: usize) -> usize {
        let size = self.config.block_size;
        chunk.block_table[position / size] as usize * size + position % size
    }

    /// The forward pass: writes every chunk, then reads every sequence back. `step` may hold sequences that were
    /// aborted after it was scheduled; the real engine computes those too.
    fn compute(&mut self, step: &Step, roots: &BTreeMap<SequenceId, u64>) {
        for chunk in &step.chunks {
            assert!(!chunk.tokens.is_empty());
            let mut before = chunk.start.checked_sub(1).map(|position| {
                self.slots[self.slot(chunk, position)].expect("reads a slot nobody has written")
            });
            let tokens = chunk.tokens.iter().chain(&chunk.draft);
            for (position, &token) in (chunk.start..).zip(tokens) {
                let slot = self.slot(chunk, position);
                self.slots[slot] = Some(*before.insert(digest(roots[&chunk.id], before, token)));
            }
        }
        for chunk in &step.chunks {
            let Some(live) = self.live.get_mut(&chunk.id) else {
                continue;
            };
            let cached = *live.num_cached.get_or_insert(chunk.num_cached);
            assert_eq!(cached, chunk.num_cached, "num_cached changed");
            assert!(
                cached < live.prompt.len(),
                "the last prompt token must be computed"
            );
            assert!(
                cached == 0
                    || (self.config.enable_prefix_caching && !live.skip_reading_prefix_cache)
            );
            let live = &self.live[&chunk.id];
            let digests = live.digests();
            let end = chunk.start + chunk.tokens.len();
            for (position, &expected) in digests[..end].iter().enumerate() {
                let found = self.slots[self.slot(chunk, position)];
                assert_eq!(
                    found,
                    Some(expected),
                    "{}: position {position} of {chunk:?}",
                    chunk.id
                );
            }
            for (position, &token) in (chunk.start..).zip(&chunk.tokens) {
                assert_eq!(live.token(position), Some(token));
            }
            assert_eq!(chunk.samples, end == digests.len());
            let last = end + chunk.draft.len() + 1;
            assert!(last <= live.max_len);
            assert_eq!(chunk.reaches_max_len, chunk.samples && last == live.max_len);
        }
    }

    /// Samples from what is in memory, and commits.
    fn commit(&mut self, step: &Step) {
        let mut sampled = Vec::new();
        for chunk in step.chunks.iter().filter(|chunk| chunk.samples) {
            let first = chunk.start + chunk.tokens.len() - 1;
            for i in 0..=chunk.draft.len() {
                let last = self.slots[self.slot(chunk, first + i)].expect("computed");
                let token = next_token(last);
                let is_last = chunk.reaches_max_len && i == chunk.draft.len();
                let finished = token == EOS || is_last;
                let id = chunk.id;
                sampled.push(Sampled {
                    id,
                    token,
                    finished,
                });
                if finished || chunk.draft.get(i) != Some(&token) {
                    break;
                }
                self.num_accepted += 1;
            }
        }
        self.scheduler.commit(&sampled);
        self.scheduler.check_invariants();
        for Sampled {
            id,
            token,
            finished,
        } in sampled
        {
            let Some(live) = self.live.get_mut(&id) else {
                continue;
            };
            live.output.push(token);
            self.num_emitted += 1;
            if finished {
                Self::check_output(live);
                self.remove(id);
            }
        }
    }

    /// The output must be what the sequence gives when it is alone and nothing is ever shared or preempted.
    fn check_output(live: &Live) {
        let mut tokens = live.prompt.clone();
        loop {
            let last = tokens.iter().fold(None, |before, &token| {
                Some(digest(live.root, before, token))
            });
            let token = next_token(last.expect("a prompt"));
            tokens.push(token);
            if token == EOS || tokens.len() == live.max_len {
                break;
            }
        }
        assert_eq!(live.output, tokens[live.prompt.len()..]);
    }

    fn step(&mut self, abort_before_compute: Option<usize>, abort_before_commit: Option<usize>) {
        let step = self.schedule();
        let roots = self
            .live
            .iter()
            .map(|(&id, live)| (id, live.root))
            .collect();
        if let Some(n) = abort_before_compute {
            self.abort_nth(n);
        }
        self.compute(&step, &roots);
        if let Some(n) = abort_before_commit {
            self.abort_nth(n);
        }
        self.commit(&step);
    }

    /// Runs until everything is finished. The earliest sequence computes at least one token in every step, each of
    /// its tokens once, so that the sum of lengths bounds the number of steps.
    fn drain(&mut self) {
        let bound: usize = self.live.values().map(|live| live.max_len).sum();
        for _ in 0..bound {
            if !self.scheduler.has_work() {
                break;
            }
            self.step(None, None);
        }
        assert!(
            self.live.is_empty() && !self.scheduler.has_work(),
            "not finished: {:?}",
            self.live
        );
        let stats = self.scheduler.stats();
        assert_eq!((stats.num_running, stats.num_waiting), (0, 0));
        assert_eq!(stats.num_free_blocks, stats.num_blocks, "leaked blocks");
        assert!(stats.prefix_hits <= stats.prefix_queries);
    }
}
