//! Steps of one token per sequence on a GPU, one ahead of what the host knows.
//!
//! While the tokens of a step are on their way to the host, the device computes the next step already: with the tokens that
//! it has chosen itself, for all sequences that don't reach their length. A sequence that turns out to have ended with a
//! token computes one for nothing; it writes to blocks of its own, before anybody else who gets these.

use std::collections::HashMap;

use burn::tensor::Tensor;
use kv_paging::{Chunk, DecodeRow, DecodeToken, Sampled, SequenceId, Step};
use model_qwen::kernels::{PendingIds, device_queues_reads, device_read_ids, device_top_logits};
use model_qwen::{Draw, StepChoice};

use super::sample::values;
use super::worker::Worker;

/// A step that was begun before the one before was committed.
#[derive(Debug)]
pub(super) struct StepAhead {
    /// Row of each sequence, and the position of the token that it computes.
    rows: HashMap<SequenceId, (usize, usize)>,
    /// The tokens that follow.
    tokens: PendingIds,
}

impl StepAhead {
    /// The row that computes a chunk.
    fn row_of(&self, chunk: &Chunk) -> Option<usize> {
        let (row, position) = *self.rows.get(&chunk.id)?;
        (chunk.tokens.len() == 1 && chunk.start == position).then_some(row)
    }
}

/// What the device has computed.
///
/// # Panics
/// With what the device said if it failed, as Burn's own reads do: [`catch`](super::recovery::catch) is for both.
pub(super) fn computed<T>(result: Result<T, String>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the device failed to compute a step: {error}"),
    }
}

impl Worker {
    /// Runs a step as a recorded graph, if it has one token of each sequence; or takes what was computed ahead. `None` if
    /// neither applies.
    pub(super) fn decode(&mut self, step: &Step) -> Option<Vec<Sampled>> {
        if let Some(ahead) = self.ahead.take() {
            let rows: Vec<Option<usize>> = (step.chunks.iter())
                .map(|chunk| ahead.row_of(chunk))
                .collect();
            if rows.iter().any(Option::is_some) {
                return Some(self.finish_ahead(step, ahead, &rows));
            }
        }
        self.decode_graphs.as_ref()?;
        let mut draws = Vec::with_capacity(step.chunks.len());
        for chunk in &step.chunks {
            let sequence = self.sequences.get_mut(&chunk.id)?;
            if chunk.tokens.len() != 1 || !chunk.samples {
                return None;
            }
            draws.push(sequence.draw(0));
        }
        let choice = choice(&draws);
        let rows: Vec<DecodeRow<'_>> = (step.chunks.iter().zip(&draws))
            .map(|(chunk, draw)| DecodeRow {
                token: DecodeToken::Id(chunk.tokens[0]),
                position: chunk.start,
                slot: self.slot(chunk),
                block_table: &chunk.block_table,
                choice: draw.unwrap_or_default().words(),
            })
            .collect();
        let graphs = self.decode_graphs.as_mut()?;
        let decoded = graphs.launch(&rows, &self.model, &self.cache, choice);
        let wants_logits = choice == StepChoice::Logits;
        let Some(logits) = decoded.logits.filter(|_| wants_logits) else {
            let tokens = device_read_ids(&decoded.tokens);
            let chunks: Vec<(&Chunk, usize)> = step.chunks.iter().zip(0..).collect();
            self.ahead = self.begin_next(&chunks);
            return Some(self.take_tokens(&chunks, tokens));
        };
        let logits = logits.narrow(0, 0, step.chunks.len()); // [chunks, vocab]
        let chunks: Vec<&Chunk> = step.chunks.iter().collect();
        Some(self.sample_on_device(&chunks, logits))
    }

    /// Samples a token of each chunk: from the largest logits that the device finds; a row of logits is read where these
    /// don't decide.
    pub(super) fn sample_on_device(
        &mut self,
        chunks: &[&Chunk],
        logits: Tensor<2>,
    ) -> Vec<Sampled> {
        let sequences = &mut self.sequences;
        let scale = |chunk: &&Chunk| {
            let sequence = sequences.get(&chunk.id);
            sequence.map_or(1.0, |sequence| sequence.sampler.scale())
        };
        let scales: Vec<f32> = chunks.iter().map(scale).collect();
        let takes_top = |chunk: &&Chunk| {
            let sequence = sequences.get(&chunk.id);
            sequence.is_none_or(|sequence| sequence.sampler.takes_top())
        };
        let tops = match chunks.iter().any(takes_top) {
            true => computed(device_top_logits(logits.clone(), &scales).wait()),
            false => Vec::new(),
        };
        let mut sampled = Vec::with_capacity(chunks.len());
        // One read for all rows, if each needs its own.
        let vocab = self.model.config.vocab_size;
        let mut all = match tops.is_empty() {
            true => values(logits.clone()),
            false => Vec::new(),
        };
        for (row, chunk) in chunks.iter().enumerate() {
            let Some(sequence) = sequences.get_mut(&chunk.id) else {
                continue;
            };
            let top = tops.get(row);
            sampled.push(match top.and_then(|top| sequence.sample_top(chunk, top)) {
                Some(sampled) => sampled,
                None if !all.is_empty() => sequence.sample(chunk, &mut all[row * vocab..][..vocab]),
                None => {
                    let mut logits = values(logits.clone().narrow(0, row, 1));
                    sequence.sample(chunk, &mut logits)
                }
            });
        }
        self.generation_tokens += sampled.len() as u64;
        sampled
    }

    /// Ends a step that was begun before; `rows` says which of its rows computes which chunk. Other chunks are computed now.
    fn finish_ahead(
        &mut self,
        step: &Step,
        ahead: StepAhead,
        rows: &[Option<usize>],
    ) -> Vec<Sampled> {
        let (mut done, mut rest) = (Vec::new(), Vec::new());
        for (chunk, row) in step.chunks.iter().zip(rows) {
            match row {
                Some(row) => done.push((chunk, *row)),
                None => rest.push(chunk.clone()),
            }
        }
        if rest.is_empty() {
            self.ahead = self.begin_next(&done);
        }
        let mut sampled = self.take_tokens(&done, ahead.tokens);
        if !rest.is_empty() {
            let rest = Step {
                chunks: rest,
                preempted: Vec::new(),
            };
            sampled.extend(self.compute(&rest));
        }
        sampled
    }

    /// Begins the step after one that the device is working on: `chunks`, with their rows in it.
    fn begin_next(&mut self, chunks: &[(&Chunk, usize)]) -> Option<StepAhead> {
        // Otherwise the tokens of this step would wait for the next one.
        if !device_queues_reads(&self.device) {
            return None;
        }
        let mut draws = Vec::with_capacity(chunks.len());
        let mut draw_next = |chunk: &Chunk| {
            let sequence = self.sequences.get_mut(&chunk.id)?;
            let draw = sequence.draw_next().filter(|_| !chunk.reaches_max_len)?;
            draws.push(Some(draw));
            Some(())
        };
        let chunks = (chunks.iter()).filter(|(chunk, _)| draw_next(chunk).is_some());
        let chunks: Vec<&(&Chunk, usize)> = chunks.collect();
        if chunks.is_empty() {
            return None;
        }
        let choice = choice(&draws);
        let ids: Vec<SequenceId> = chunks.iter().map(|(chunk, _)| chunk.id).collect();
        let tables = self.scheduler.reserve_next(&ids)?;
        let rows: Vec<DecodeRow<'_>> = (chunks.iter().zip(&tables).zip(&draws))
            .map(|(((chunk, row), table), draw)| DecodeRow {
                token: DecodeToken::ChosenIn(*row),
                position: chunk.start + 1,
                slot: self.slot(chunk),
                block_table: table,
                choice: draw.unwrap_or_default().words(),
            })
            .collect();
        let graphs = self.decode_graphs.as_mut()?;
        if !graphs.has_recorded(&rows, &self.model, choice) {
            return None;
        }
        let decoded = graphs.launch(&rows, &self.model, &self.cache, choice);
        let positions = rows.iter().map(|row| row.position);
        Some(StepAhead {
            rows: ids.into_iter().zip((0..).zip(positions)).collect(),
            tokens: device_read_ids(&decoded.tokens),
        })
    }

    /// The slot of the adapter of a chunk's sequence.
    fn slot(&self, chunk: &Chunk) -> Option<usize> {
        self.sequences.get(&chunk.id)?.slot
    }

    /// Takes the tokens that the device has chosen for `chunks`, with their rows. Those that it couldn't draw are computed again,
    /// from all logits.
    fn take_tokens(&mut self, chunks: &[(&Chunk, usize)], tokens: PendingIds) -> Vec<Sampled> {
        let tokens = computed(tokens.wait());
        let (mut sampled, mut undrawn) = (Vec::with_capacity(chunks.len()), Vec::new());
        for (chunk, row) in chunks {
            let Some(sequence) = self.sequences.get_mut(&chunk.id) else {
                continue;
            };
            match sequence.take(chunk, tokens[*row]) {
                Some(token) => sampled.push(token),
                None => undrawn.push((*chunk).clone()),
            }
        }
        self.generation_tokens += sampled.len() as u64;
        if !undrawn.is_empty() {
            // The step ahead goes on with any token instead.
            for rows in self.ahead.iter_mut().map(|ahead| &mut ahead.rows) {
                rows.retain(|id, _| undrawn.iter().all(|chunk| chunk.id != *id));
            }
            let undrawn = Step {
                chunks: undrawn,
                preempted: Vec::new(),
            };
            sampled.extend(self.compute(&undrawn));
        }
        sampled
    }
}

/// How a step chooses its tokens, of which the device can draw these.
fn choice(draws: &[Option<Draw>]) -> StepChoice {
    if draws.iter().any(Option::is_none) {
        StepChoice::Logits
    } else if draws.iter().flatten().all(Draw::is_argmax) {
        StepChoice::Argmax
    } else {
        StepChoice::Draw
    }
}
