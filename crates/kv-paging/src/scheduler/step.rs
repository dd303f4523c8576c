//! What goes to the engine for one step, and what comes back from it.

use crate::block_pool::BlockId;

/// Names a sequence; chosen by the engine, unique among the sequences a scheduler holds.
pub type SequenceId = u64;

/// One step: everything the model computes in one forward pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// At most one chunk per sequence, prefill and decode mixed, together within the token budget.
    pub chunks: Vec<Chunk>,
    /// Sequences that lost their blocks to make room; they are waiting again and need no action.
    pub preempted: Vec<SequenceId>,
}

impl Step {
    /// Tokens to compute, over all chunks.
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(Chunk::num_tokens).sum()
    }
}

/// Consecutive tokens of one sequence to be computed in this step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The sequence.
    pub id: SequenceId,
    /// Token ids to compute: part of a prompt, one generated token, or both after a preemption.
    pub tokens: Vec<u32>,
    /// Tokens that may come next, to be computed right after `tokens`: see
    /// [`Scheduler::add_draft`](crate::Scheduler::add_draft).
    pub draft: Vec<u32>,
    /// Position of the first of `tokens`; all before it are in the cache already.
    pub start: usize,
    /// Blocks of the sequence in position order, at least up to the last of `tokens` and `draft`.
    pub block_table: Vec<BlockId>,
    /// Whether the logits of the last of `tokens` give the sequence's next token. Each token of `draft` gives one more,
    /// if all before it turn out to be right.
    pub samples: bool,
    /// Whether the last of those next tokens is the last the sequence may have (its `max_tokens`, the model's length, or
    /// the size of the pool is reached). The engine should commit it with `finished`; the scheduler ends the sequence anyway.
    pub reaches_max_len: bool,
    /// How many of the sequence's tokens were found in the prefix cache when it was first admitted. The same in all
    /// of its chunks.
    pub num_cached: usize,
}

impl Chunk {
    /// Tokens to compute, those of the draft included.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + self.draft.len()
    }

    /// Whether it computes one token and samples the next: a decode, or a prompt of which one token is left.
    pub fn decodes(&self) -> bool {
        self.samples && self.tokens.len() == 1
    }
}

/// A token sampled for a sequence whose chunk [`samples`](Chunk::samples). A chunk with a draft gives several, in their
/// order: each but the last equals the token of the draft in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampled {
    /// The sequence.
    pub id: SequenceId,
    /// Its next token.
    pub token: u32,
    /// Whether that was its last one: the scheduler frees its blocks and forgets it.
    pub finished: bool,
}
