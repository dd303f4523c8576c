//! Overlap scheduling: a step is launched before the tokens of the step before are known.
//!
//! While the tokens of a step are on their way to the host, the device computes the next step already: with the tokens that
//! it has chosen itself, for all sequences that don't reach their length. A sequence that turns out to have ended with a
//! token computes one for nothing; it writes to blocks of its own, before any other sequence gets these.
//!
//! Which tokens a grammar lets through is known when the tokens before are. So the device computes the logits of a constrained
//! sequence ahead, but draws its token when the mask has come: threads compute it while the device computes the logits.
//!
//! For log-probabilities the logits of a row go to the host, too, as they are before a token is drawn from them.
//!
//! If the host chooses a token, the next step waits for it. If the next step may have a draft (speculative decoding), that step
//! waits, too: the draft begins after a token that is not known yet.

use kv_paging::{Chunk, DecodeToken, SequenceId};
use model_qwen::{DecodeRow, Draw};

use super::launched::{Launched, LaunchedChunk};
use super::step_ahead::StepAhead;
use super::worker::Worker;

/// A sequence that goes on.
struct Next<'a> {
    /// What it computes in the step before.
    chunk: &'a Chunk,
    /// The row of that.
    row: usize,
    draw: Draw,
    adapter_slot: Option<usize>,
    is_constrained: bool,
}

impl Worker {
    /// Launches the step after one that the device is working on. `None` if the device can't draw its tokens, if there are too few
    /// blocks for it, or if no such step has been recorded.
    pub(super) fn launch_ahead(&mut self, before: &Launched<'_>) -> Option<StepAhead> {
        // Otherwise blocks would be reserved for nothing.
        if !before.pending.is_drawn() {
            return None;
        }
        let holds_back = |&LaunchedChunk { chunk, .. }: &LaunchedChunk<'_>| {
            let sequence = self.sequences.get(&chunk.id);
            !chunk.draft.is_empty() || sequence.is_some_and(|sequence| sequence.holds_back)
        };
        if before.chunks.iter().any(holds_back) {
            return None;
        }
        let mut next: Vec<Next<'_>> = Vec::new();
        for &LaunchedChunk { chunk, first_row } in &before.chunks {
            let sequence = self.sequences.get_mut(&chunk.id);
            let Some(sequence) = sequence.filter(|_| !chunk.reaches_max_len) else {
                continue;
            };
            if let Some(draw) = sequence.draw_next() {
                next.push(Next {
                    chunk,
                    row: first_row,
                    draw,
                    adapter_slot: sequence.adapter_slot(),
                    is_constrained: sequence.sampler.may_be_constrained(1),
                });
            }
        }
        if next.is_empty() {
            return None;
        }
        let ids: Vec<SequenceId> = next.iter().map(|next| next.chunk.id).collect();
        let tables = self.scheduler.reserve_next(&ids)?;
        let rows: Vec<DecodeRow<'_>> = (next.into_iter().zip(&tables))
            .map(|(next, table)| DecodeRow {
                follows: false,
                token: DecodeToken::ChosenIn(next.row),
                position: next.chunk.start + 1,
                adapter_slot: next.adapter_slot,
                block_table: table,
                draw: Some(next.draw),
                is_constrained: next.is_constrained,
            })
            .collect();
        let (model, cache) = (&self.model, &self.cache);
        let pending = (self.runner).launch_ahead(&before.pending, model, cache, &rows)?;
        let positions = rows.iter().map(|row| row.position);
        self.num_steps_ahead += 1;
        Some(StepAhead::new(ids.into_iter().zip(positions), pending))
    }
}
