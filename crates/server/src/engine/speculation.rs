//! Speculative decoding by prompt lookup: which sequences compute a draft in a step, and how long it is.
//!
//! Each token is sampled from the logits of its own row, as without a draft; the tokens of the draft only decide how many rows of a
//! step count. On a CPU these logits have the bits that they have without a draft, so that no token changes. On a GPU the last bits
//! depend on the number of rows, so that a token may change where two logits are close. The engine may leave a draft out at any
//! time. It does so where a draft doesn't pay: if the guesses of a sequence are often wrong, if further rows cost much, or if many
//! sequences run.

mod cost;
pub(super) mod drafter;
pub(super) mod drafts;

use std::time::Duration;

use kv_paging::Step;

use super::worker::Worker;
use drafter::Drafter;

impl Worker {
    /// Gives the sequences of a step the drafts that are worth it. Steps with parts of prompts get none: they are long anyway.
    pub(super) fn add_drafts(&mut self, step: &mut Step) {
        let Some(drafts) = &self.drafts else { return };
        if !step.chunks.iter().all(|chunk| chunk.decodes()) {
            return;
        }
        let mut chances = Vec::with_capacity(step.chunks.len());
        for chunk in &step.chunks {
            let sequence = self.sequences.get_mut(&chunk.id);
            let drafter = sequence.and_then(|sequence| sequence.drafter.as_mut());
            chances.push(drafter.map_or_else(Vec::new, Drafter::guess));
        }
        let lengths = drafts.lengths(step.chunks.len(), &chances);
        let is_ahead = self.ahead.is_some();
        for (index, len) in lengths.into_iter().enumerate() {
            let Some(sequence) = self.sequences.get_mut(&step.chunks[index].id) else {
                continue;
            };
            // What was launched ahead computes one token of each sequence.
            sequence.holds_back = len > 0;
            if let Some(drafter) = sequence.drafter.as_ref().filter(|_| len > 0 && !is_ahead) {
                self.scheduler
                    .add_draft(step, index, &drafter.draft()[..len]);
            }
        }
    }

    /// Takes note of how long a step took.
    pub(super) fn measure(&mut self, step: &Step, time: Duration) {
        if let Some(drafts) = &mut self.drafts
            && step.chunks.iter().all(|chunk| chunk.decodes())
        {
            drafts.cost.observe(step.num_tokens(), time.as_secs_f64());
        }
    }
}
