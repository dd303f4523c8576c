//! A row of a step.

use kv_paging::DecodeToken;

use crate::sampling::Draw;

/// One token of a step: the next one of a sequence, or a guessed one after it.
#[derive(Clone, Debug)]
pub struct DecodeRow<'a> {
    /// Whether it is a guessed token: it follows the token of the row before, in the same sequence.
    pub follows: bool,
    /// The token to compute.
    pub token: DecodeToken,
    /// Its position: the number of tokens before it.
    pub position: usize,
    /// The slot of the sequence's adapter.
    pub adapter_slot: Option<usize>,
    /// Block of every `block_size` tokens up to this one.
    pub block_table: &'a [u32],
    /// How a device draws the token that follows, see [`Sampler::draw`](crate::Sampler::draw). `None` if the host has to choose
    /// it.
    pub draw: Option<Draw>,
    /// Whether only some tokens may follow, see [`Sampler::may_be_constrained`](crate::Sampler::may_be_constrained): a device draws
    /// one of them when [`GraphRunner::draw_masked`](crate::GraphRunner::draw_masked) has told it which.
    pub is_constrained: bool,
}
