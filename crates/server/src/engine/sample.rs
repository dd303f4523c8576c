//! From hidden states to tokens.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kv_paging::{Sampled, Step};
use model_qwen::QwenModel;
#[cfg(feature = "gpu")]
use model_qwen::{
    Draw,
    kernels::{device_argmax, device_draw, device_read_ids},
};

#[cfg(feature = "gpu")]
use super::ahead::computed;
use super::worker::Worker;

/// Rows whose logits are in memory at once: `vocab_size` floats each.
pub(super) const MAX_LOGIT_ROWS: usize = 64;

/// A row of the step's hidden states whose logits are needed.
#[derive(Clone, Copy)]
struct LogitRow {
    /// Index of the chunk it belongs to.
    chunk: usize,
    /// Row of the packed step.
    row: usize,
    /// For a prompt's log-probabilities: the position the row predicts. Otherwise the row is sampled.
    predicts: Option<usize>,
}

impl Worker {
    /// Samples every chunk that is due a token, and sends tokens and prompt log-probabilities.
    pub(super) fn sample(&mut self, step: &Step, hidden: Tensor<2>) -> Vec<Sampled> {
        let mut sampled = Vec::with_capacity(step.chunks.len());
        for rows in self.logit_rows(step).chunks(MAX_LOGIT_ROWS) {
            let indices: Vec<i32> = rows.iter().map(|row| row.row as i32).collect();
            let indices = TensorData::new(indices, [rows.len()]);
            let indices = Tensor::<1, Int>::from_data(indices, (&self.device, DType::I32));
            let hidden = hidden.clone().select(0, indices); // [rows, hidden]
            if let Some(all) = self.sample_from_top(step, rows, &hidden) {
                sampled.extend(all);
                continue;
            }
            let logits = self.model.logits(hidden); // [rows, vocab]
            #[cfg(feature = "gpu")]
            if self.chooses_on_device
                && let Some(draws) = self.draws(step, rows)
            {
                sampled.extend(self.draw_on_device(step, rows, logits, &draws));
                continue;
            }
            #[cfg(feature = "gpu")]
            if self.chooses_on_device && rows.iter().all(|row| row.predicts.is_none()) {
                let chunks: Vec<_> = rows.iter().map(|row| &step.chunks[row.chunk]).collect();
                sampled.extend(self.sample_on_device(&chunks, logits));
                continue;
            }
            let mut logits = values(logits);
            for (row, logits) in rows
                .iter()
                .zip(logits.chunks_exact_mut(self.model.config.vocab_size))
            {
                let chunk = &step.chunks[row.chunk];
                let Some(sequence) = self.sequences.get_mut(&chunk.id) else {
                    continue;
                };
                match row.predicts {
                    Some(position) => sequence.score_prompt(position, logits),
                    None => {
                        sampled.push(sequence.sample(chunk, logits));
                        self.generation_tokens += 1;
                    }
                }
            }
        }
        sampled
    }

    /// Samples a token of each row from the largest logits, if the model finds these without the others; where they don't
    /// decide, from all of the row.
    fn sample_from_top(
        &mut self,
        step: &Step,
        rows: &[LogitRow],
        hidden: &Tensor<2>,
    ) -> Option<Vec<Sampled>> {
        let sequences = &mut self.sequences;
        let num = QwenModel::NUM_LARGEST;
        let takes_largest = |row: &LogitRow| {
            let sequence = sequences.get(&step.chunks[row.chunk].id);
            row.predicts.is_none()
                && sequence.is_none_or(|sequence| sequence.sampler.takes_largest(num))
        };
        if !rows.iter().all(takes_largest) {
            return None;
        }
        let tops = self.model.top_logits(hidden)?;
        let mut sampled = Vec::with_capacity(rows.len());
        for (i, (row, top)) in rows.iter().zip(&tops).enumerate() {
            let chunk = &step.chunks[row.chunk];
            let Some(sequence) = sequences.get_mut(&chunk.id) else {
                continue;
            };
            sampled.push(match sequence.sample_top(chunk, top) {
                Some(sampled) => sampled,
                None => {
                    let mut logits = values(self.model.logits(hidden.clone().narrow(0, i, 1)));
                    sequence.sample(chunk, &mut logits)
                }
            });
        }
        self.generation_tokens += sampled.len() as u64;
        Some(sampled)
    }

    /// How the device itself can draw the tokens of all rows.
    #[cfg(feature = "gpu")]
    fn draws(&mut self, step: &Step, rows: &[LogitRow]) -> Option<Vec<Draw>> {
        let mut draw = |row: &LogitRow| match self.sequences.get_mut(&step.chunks[row.chunk].id) {
            _ if row.predicts.is_some() => None,
            Some(sequence) => sequence.draw(0),
            None => Some(Draw::default()),
        };
        rows.iter().map(&mut draw).collect()
    }

    /// Takes the tokens that the device draws, and the others from their logits.
    #[cfg(feature = "gpu")]
    fn draw_on_device(
        &mut self,
        step: &Step,
        rows: &[LogitRow],
        logits: Tensor<2>,
        draws: &[Draw],
    ) -> Vec<Sampled> {
        let tokens = match draws.iter().all(Draw::is_argmax) {
            true => device_read_ids(&device_argmax(logits.clone())),
            false => device_draw(logits.clone(), draws),
        };
        let tokens = computed(tokens.wait());
        let mut sampled = Vec::with_capacity(rows.len());
        for (i, (row, token)) in rows.iter().zip(tokens).enumerate() {
            let chunk = &step.chunks[row.chunk];
            if let Some(sequence) = self.sequences.get_mut(&chunk.id) {
                sampled.push(match sequence.take(chunk, token) {
                    Some(sampled) => sampled,
                    None => sequence.sample(chunk, &mut values(logits.clone().narrow(0, i, 1))),
                });
            }
        }
        self.generation_tokens += sampled.len() as u64;
        sampled
    }

    /// The rows of the step whose logits are needed, in order.
    fn logit_rows(&self, step: &Step) -> Vec<LogitRow> {
        let mut rows = Vec::with_capacity(step.chunks.len());
        let mut start = 0;
        for (index, chunk) in step.chunks.iter().enumerate() {
            let end = start + chunk.tokens.len();
            if let Some(sequence) = self.sequences.get(&chunk.id) {
                let predicted = sequence.unscored_prompt(chunk);
                rows.extend(predicted.map(|position| LogitRow {
                    chunk: index,
                    row: start + position - 1 - chunk.start,
                    predicts: Some(position),
                }));
            }
            if chunk.samples {
                rows.push(LogitRow {
                    chunk: index,
                    row: end - 1,
                    predicts: None,
                });
            }
            start = end;
        }
        rows
    }
}

/// The values of a tensor on the host; without a copy where they are there already.
pub(super) fn values(tensor: Tensor<2>) -> Vec<f32> {
    match tensor.into_data_dtype(DType::F32).try_into_vec() {
        Ok(values) => values,
        Err(error) => unreachable!("f32 values: {error}"),
    }
}
