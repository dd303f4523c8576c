//! From a scheduled step to its tokens: what the device is given to do, and what comes back.

use std::collections::HashMap;
use std::time::Instant;

use kv_paging::{Chunk, DecodeToken, Sampled, SequenceId};
use model_qwen::{Ahead, Choice, ChoiceRow, DecodeRow, PackedStep, Pending, RowMask};

use super::active::ActiveSequence;
use super::launched::{Launched, LaunchedChunk};
use super::worker::Worker;

impl Worker {
    /// Starts to compute the chunks of a step.
    pub(super) fn launch<'a>(&mut self, chunks: Vec<&'a Chunk>) -> Launched<'a> {
        let decodes = |chunk: &&Chunk| chunk.decodes() && !self.pools(chunk.id);
        match chunks.iter().all(decodes) {
            true => self.decode(chunks),
            false => self.forward(chunks),
        }
    }

    /// Starts a step of one token per sequence, and the tokens of drafts.
    fn decode<'a>(&mut self, chunks: Vec<&'a Chunk>) -> Launched<'a> {
        let mut rows: Vec<DecodeRow<'_>> = Vec::with_capacity(chunks.len());
        let draws = self.runner.records_steps();
        let mut starts = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            starts.push(rows.len());
            let mut sequence = self.sequences.get_mut(&chunk.id);
            let tokens = chunk.tokens.iter().chain(&chunk.draft);
            rows.extend(tokens.enumerate().map(|(i, &token)| {
                DecodeRow {
                    follows: i > 0,
                    token: DecodeToken::Id(token),
                    position: chunk.start + i,
                    adapter_slot: (sequence.as_ref()).and_then(|sequence| sequence.adapter_slot()),
                    block_table: &chunk.block_table,
                    draw: (sequence.as_mut().filter(|_| draws))
                        .and_then(|sequence| sequence.draw(Ahead::Tokens(&chunk.draft[..i]))),
                    is_constrained: (sequence.as_ref())
                        .is_some_and(|sequence| sequence.sampler.may_be_constrained(i)),
                }
            }));
        }
        let pending = self.runner.launch(&self.model, &mut self.cache, &rows);
        Launched {
            chunks: LaunchedChunk::all(chunks, starts),
            pending,
        }
    }

    /// Computes the hidden states of chunks of any length, packed one after the other. Tokens of a draft are sequences of one query,
    /// so that each has the result that it has in a step of its own.
    pub(super) fn forward<'a>(&mut self, chunks: Vec<&'a Chunk>) -> Launched<'a> {
        let mut packed = PackedStep::default();
        let mut starts = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            starts.push(packed.num_tokens());
            let sequence = self.sequences.get(&chunk.id);
            let slot = sequence.and_then(ActiveSequence::adapter_slot);
            packed.push(&chunk.tokens, chunk.start, slot, &chunk.block_table);
            let end = chunk.start + chunk.tokens.len();
            for (&token, position) in chunk.draft.iter().zip(end..) {
                packed.push(&[token], position, slot, &chunk.block_table);
            }
        }
        let chunks = LaunchedChunk::all(chunks, starts);
        let rows = self.rows_to_compute(&chunks);
        let (model, cache) = (&self.model, &mut self.cache);
        let pending = match rows {
            Some(rows) => {
                let hidden = packed.forward_rows(model, cache, &rows); // [rows, hidden]
                Pending::hidden_rows(hidden, rows)
            }
            None => Pending::hidden(packed.forward(model, cache)), // [tokens, hidden]
        };
        Launched { chunks, pending }
    }

    /// The rows whose hidden states are needed, ascending. `None` if they are more than half of the step, or if a text is pooled.
    fn rows_to_compute(&self, chunks: &[LaunchedChunk<'_>]) -> Option<Vec<usize>> {
        let mut rows = Vec::new();
        for &LaunchedChunk { chunk, first_row } in chunks {
            if let Some(sequence) = self.sequences.get(&chunk.id) {
                rows.extend(sequence.rows_to_compute(chunk)?.map(|row| first_row + row));
            }
        }
        let tokens: usize = chunks
            .iter()
            .map(|launched| launched.chunk.num_tokens())
            .sum();
        if rows.is_empty() {
            rows.push(0);
        }
        (2 * rows.len() <= tokens).then_some(rows)
    }

    /// Lets the device draw the tokens of constrained sequences, too: while it computed the step, threads have computed which ones
    /// may come. A step with drafts is not masked here: the mask of a draft's row depends on the tokens before it.
    pub(super) fn draw_masked<'a>(&mut self, mut launched: Launched<'a>) -> Launched<'a> {
        let mut chunks = launched.chunks.iter();
        let has_draft = chunks.any(|launched| !launched.chunk.draft.is_empty());
        if !launched.pending.awaits_masks() || has_draft {
            return launched;
        }
        let mut masks: Vec<RowMask> = Vec::with_capacity(launched.chunks.len());
        for &LaunchedChunk { chunk, first_row } in &launched.chunks {
            let sequence = self.sequences.get_mut(&chunk.id);
            if let Some(mask) = sequence.and_then(|sequence| sequence.sampler.mask()) {
                masks.push(RowMask {
                    row: first_row,
                    mask,
                });
            }
        }
        launched.pending = self.runner.draw_masked(launched.pending, &masks);
        launched
    }

    /// Waits for the tokens of a step, and sends tokens and log-probabilities of prompts.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute the step.
    pub(super) fn collect(&mut self, launched: Launched<'_>) -> Result<Vec<Sampled>, String> {
        let Launched { chunks, pending } = launched;
        let pooled = self.pool(&chunks, &pending)?;
        let mut sequences = sequences_of(&mut self.sequences, &chunks);
        let (mut rows, mut ends): (Vec<ChoiceRow<'_>>, Vec<usize>) = (Vec::new(), Vec::new());
        let mut none = Vec::new();
        let spare = self.drafts.as_mut();
        let spare = spare.map_or(&mut none, |drafts| &mut drafts.spare);
        for (sequence, launched) in sequences.iter_mut().zip(&chunks) {
            if let Some(sequence) = sequence {
                sequence.add_rows(*launched, spare, &mut rows);
            }
            ends.push(rows.len());
        }
        let choices = pending.tokens(&self.model, &mut rows);
        let mut choices = choices.map_err(|error| error.to_string())?.into_iter();
        drop(rows);
        let (mut sampled, mut undrawn) = (Vec::with_capacity(chunks.len()), Vec::new());
        let mut done = 0;
        let now = Instant::now();
        for ((sequence, launched), end) in sequences.iter_mut().zip(&chunks).zip(ends) {
            let chunk = launched.chunk;
            let own = choices
                .by_ref()
                .take(end - std::mem::replace(&mut done, end));
            let Some(sequence) = sequence else { continue };
            let mut tokens = Vec::new();
            for choice in own {
                match choice {
                    Choice::Score(score) => sequence.take_score(score),
                    token => tokens.push(token),
                }
            }
            match sequence.accept(chunk, tokens, self.drafts.as_mut(), now) {
                Some(accepted) => sampled.extend(accepted),
                None => undrawn.push(chunk),
            }
        }
        self.generation_tokens += sampled.len() as u64;
        sampled.extend(pooled);
        if !undrawn.is_empty() {
            // The step ahead goes on with any token instead.
            if let Some(ahead) = &mut self.ahead {
                ahead.forget(&undrawn);
            }
            sampled.extend(self.compute(undrawn)?);
        }
        Ok(sampled)
    }
}

/// The sequence of each chunk.
fn sequences_of<'a>(
    sequences: &'a mut HashMap<SequenceId, ActiveSequence>,
    chunks: &[LaunchedChunk<'_>],
) -> Vec<Option<&'a mut ActiveSequence>> {
    let ids = chunks.iter().map(|launched| launched.chunk.id);
    let places: HashMap<SequenceId, usize> = ids.zip(0..).collect();
    let mut found: Vec<Option<&mut ActiveSequence>> = chunks.iter().map(|_| None).collect();
    // What still waits for its first step is in no chunk.
    let started = sequences
        .iter_mut()
        .filter(|(_, sequence)| sequence.has_started());
    for (id, sequence) in started {
        if let Some(place) = places.get(id) {
            found[*place] = Some(sequence);
        }
    }
    found
}
