//! From the rows of a chunk to the tokens that a sequence gets.
//!
//! Row `i` of a draft gives the token that comes if the first `i` tokens of the draft are right. It is sampled as if they were: with
//! a copy of the sequence's sampler that has counted them. The tokens count up to the first one that differs from the draft; so
//! they are the tokens that come without a draft, random numbers and penalties included.

use std::time::Instant;

use kv_paging::{Chunk, Sampled};
use model_qwen::{Choice, ChoiceRow, Sampler, Want};

use super::active::{ActiveSequence, banned};
use super::launched::LaunchedChunk;
use super::speculation::drafts::Drafts;

impl ActiveSequence {
    /// Adds the rows that give the next token, and those that come after it if the draft is right. Samplers that are `spare` take the
    /// place of copies.
    pub(super) fn add_token_rows<'a>(
        &'a mut self,
        LaunchedChunk { chunk, first_row }: LaunchedChunk<'_>,
        spare: &mut Vec<Sampler>,
        rows: &mut Vec<ChoiceRow<'a>>,
    ) {
        self.samplers.clear();
        for &token in &chunk.draft {
            let before = self.samplers.last().unwrap_or(&self.sampler);
            let sampler = before.after(token, spare.pop());
            self.samplers.push(sampler);
        }
        let Self {
            request,
            sampler,
            samplers,
            num_generated,
            ..
        } = self;
        let samplers = std::iter::once(sampler).chain(samplers);
        let first_row = first_row + chunk.tokens.len() - 1;
        rows.extend(samplers.enumerate().map(|(i, sampler)| ChoiceRow {
            row: first_row + i,
            want: Want::Token {
                sampler,
                banned: banned(request, *num_generated + i),
            },
        }));
    }

    /// Sends the tokens that count of those that the rows have given. `None` if the device couldn't draw the first one.
    pub(super) fn accept(
        &mut self,
        chunk: &Chunk,
        choices: Vec<Choice>,
        drafts: Option<&mut Drafts>,
        now: Instant,
    ) -> Option<Vec<Sampled>> {
        let is_due = !choices.is_empty();
        let mut sampled: Vec<Sampled> = Vec::with_capacity(choices.len());
        for (i, choice) in choices.into_iter().enumerate() {
            // The draft was right so far.
            if let Some(sampler) = i.checked_sub(1).and_then(|i| self.samplers.get_mut(i)) {
                std::mem::swap(&mut self.sampler, sampler);
            }
            // After a token that the device couldn't draw, the next step begins at it.
            let Choice::Token(token) = choice else { break };
            let id = token.id;
            let is_last = chunk.reaches_max_len && i == chunk.draft.len();
            sampled.push(self.send(chunk, token, is_last, now));
            let goes_on = !sampled.last().is_some_and(|sampled| sampled.finished);
            if !goes_on || chunk.draft.get(i) != Some(&id) {
                break;
            }
        }
        if let (Some(drafts), Some((first, right))) = (drafts, sampled.split_first()) {
            drafts.keep_spare(&mut self.samplers);
            if !chunk.draft.is_empty() {
                drafts.count(chunk.draft.len(), right.len());
            }
            // What only waits needs no index, and a grammar would have to follow each draft.
            if self.drafter.is_none() && self.sampler.constraint().is_none() {
                let mut drafter = drafts.drafter(&self.request.prompt);
                drafter.observe(first.token);
                self.drafter = Some(drafter);
            }
        }
        self.samplers.clear();
        (!is_due || !sampled.is_empty()).then_some(sampled)
    }
}
