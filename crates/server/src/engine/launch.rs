//! From a scheduled step to its tokens: what the device is given to do, and what comes back.

use std::collections::HashMap;

use kv_paging::{
    AttentionBatch, Chunk, DecodeToken, PagedAttention, Sampled, SequenceChunk, SequenceId,
};
use lora_4bit::AdapterSelection;
use model_qwen::{Choice, ChoiceRow, DecodeRow, Pending};

use super::active::ActiveSequence;
use super::worker::Worker;

/// A step, or a part of one, that the device computes.
pub(super) struct Launched<'a> {
    /// Its chunks, each with the row of its first token.
    pub(super) chunks: Vec<(&'a Chunk, usize)>,
    pub(super) pending: Pending,
}

impl Worker {
    /// Starts to compute the chunks of a step.
    pub(super) fn launch<'a>(&mut self, chunks: Vec<&'a Chunk>) -> Launched<'a> {
        let decodes =
            |chunk: &&Chunk| chunk.samples && chunk.tokens.len() == 1 && !self.pools(chunk.id);
        match chunks.iter().all(decodes) {
            true => self.decode(chunks),
            false => self.forward(chunks),
        }
    }

    /// Starts a step of one token per sequence.
    fn decode<'a>(&mut self, chunks: Vec<&'a Chunk>) -> Launched<'a> {
        let rows = chunks.iter().map(|chunk| {
            let sequence = self.sequences.get_mut(&chunk.id);
            DecodeRow {
                token: DecodeToken::Id(chunk.tokens[0]),
                position: chunk.start,
                slot: sequence.as_ref().and_then(|sequence| sequence.slot()),
                block_table: &chunk.block_table,
                draw: sequence.and_then(|sequence| sequence.draw(0)),
            }
        });
        let rows: Vec<DecodeRow<'_>> = rows.collect();
        let pending = self.runner.launch(&self.model, &mut self.cache, &rows);
        Launched {
            chunks: chunks.into_iter().zip(0..).collect(),
            pending,
        }
    }

    /// Computes the hidden states of chunks of any length, packed one after the other.
    pub(super) fn forward<'a>(&mut self, chunks: Vec<&'a Chunk>) -> Launched<'a> {
        let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let mut starts = Vec::with_capacity(chunks.len());
        let mut packed = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            let end = chunk.start + chunk.tokens.len();
            starts.push(tokens.len());
            tokens.extend_from_slice(&chunk.tokens);
            positions.extend(chunk.start as u32..end as u32);
            let sequence = self.sequences.get(&chunk.id);
            slots.resize(tokens.len(), sequence.and_then(ActiveSequence::slot));
            packed.push(SequenceChunk {
                query_len: chunk.tokens.len(),
                context_len: end,
                block_table: &chunk.block_table,
            });
        }
        let batch = AttentionBatch::new(&packed, self.cache.shape().block_size);
        let adapters = AdapterSelection::per_row(&slots, &self.device);
        let mut kv = PagedAttention::new(&mut self.cache, &batch);
        let hidden = (self.model).forward(&tokens, &positions, &adapters, &mut kv); // [tokens, hidden]
        Launched {
            chunks: chunks.into_iter().zip(starts).collect(),
            pending: Pending::hidden(hidden),
        }
    }

    /// Waits for the tokens of a step, and sends tokens and log-probabilities of prompts.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute the step.
    pub(super) fn collect(&mut self, launched: Launched<'_>) -> Result<Vec<Sampled>, String> {
        let Launched { chunks, pending } = launched;
        let pooled = self.pool(&chunks, &pending)?;
        let mut sequences = sequences_of(&mut self.sequences, &chunks);
        let (mut rows, mut owners): (Vec<ChoiceRow<'_>>, Vec<usize>) = (Vec::new(), Vec::new());
        for (owner, sequence) in sequences.iter_mut().enumerate() {
            let (chunk, first_row) = chunks[owner];
            if let Some(sequence) = sequence {
                sequence.add_rows(chunk, first_row, &mut rows);
                owners.resize(rows.len(), owner);
            }
        }
        let choices = pending.tokens(&self.model, &mut rows);
        let choices = choices.map_err(|error| error.to_string())?;
        drop(rows);
        let (mut sampled, mut undrawn) = (Vec::with_capacity(chunks.len()), Vec::new());
        for (owner, choice) in owners.into_iter().zip(choices) {
            let (chunk, _) = chunks[owner];
            let Some(sequence) = &mut sequences[owner] else {
                continue;
            };
            match choice {
                Choice::Token(token) => sampled.push(sequence.send(chunk, token)),
                Choice::Score(score) => sequence.take_score(score),
                Choice::Undrawn => undrawn.push(chunk),
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
    chunks: &[(&Chunk, usize)],
) -> Vec<Option<&'a mut ActiveSequence>> {
    let ids = chunks.iter().map(|(chunk, _)| chunk.id);
    let places: HashMap<SequenceId, usize> = ids.zip(0..).collect();
    let mut found: Vec<Option<&mut ActiveSequence>> = chunks.iter().map(|_| None).collect();
    // What still waits for its first step is in no chunk.
    let started = sequences
        .iter_mut()
        .filter(|(_, sequence)| sequence.permit.is_none());
    for (id, sequence) in started {
        if let Some(place) = places.get(id) {
            found[*place] = Some(sequence);
        }
    }
    found
}
