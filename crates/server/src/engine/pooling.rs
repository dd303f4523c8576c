//! Sequences that end with their prompt: their hidden states become one vector.

use std::ops::Range;
use std::time::Instant;

use burn::tensor::{DType, Int, Tensor, TensorData};
use kv_paging::{Chunk, Sampled, SequenceId};
use model_qwen::{Pending, PoolingType};

use super::launch::LaunchedChunk;
use super::request::EngineOutput;
use super::worker::Worker;

/// One sequence's vector as it grows.
#[derive(Debug)]
pub(super) struct Pooler {
    kind: PoolingType,
    sum: Vec<f64>,
    /// Tokens that it has seen.
    num: usize,
}

impl Pooler {
    pub(super) fn new(kind: PoolingType) -> Self {
        Self {
            kind,
            sum: Vec::new(),
            num: 0,
        }
    }

    /// Whether it needs more than the last token, so that no part of the prompt may come from the cache.
    pub(super) fn needs_all(kind: PoolingType) -> bool {
        kind != PoolingType::Last
    }

    /// The tokens of a chunk whose hidden states it takes. After a preemption the chunks start over; what was seen stays.
    fn tokens(&self, chunk: &Chunk) -> Range<usize> {
        let len = chunk.tokens.len();
        let unseen = self.num.saturating_sub(chunk.start).min(len);
        match self.kind {
            PoolingType::Last if chunk.samples => len - 1..len,
            PoolingType::Last => 0..0,
            PoolingType::Cls => unseen..usize::from(self.num == 0).max(unseen),
            PoolingType::Mean => unseen..len,
        }
    }

    fn add(&mut self, row: &[f32]) {
        self.sum.resize(row.len(), 0.0);
        let values = self.sum.iter_mut().zip(row);
        values.for_each(|(sum, &value)| *sum += f64::from(value));
        self.num += 1;
    }

    fn mean(&self) -> Vec<f32> {
        let num = self.num.max(1) as f64;
        self.sum.iter().map(|sum| (sum / num) as f32).collect()
    }
}

impl Worker {
    /// Whether a sequence wants a vector, not tokens.
    pub(super) fn pools(&self, id: SequenceId) -> bool {
        let sequence = self.sequences.get(&id);
        sequence.is_some_and(|sequence| sequence.pooler.is_some())
    }

    /// Takes the hidden states of a step that sequences want, and ends the sequences whose prompts are complete.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute the step.
    pub(super) fn pool(
        &mut self,
        chunks: &[LaunchedChunk<'_>],
        pending: &Pending,
    ) -> Result<Vec<Sampled>, String> {
        let Some(hidden) = pending.hidden_states() else {
            return Ok(Vec::new());
        };
        let wanted = chunks.iter().filter_map(|launched| {
            let LaunchedChunk { chunk, first_row } = *launched;
            let pooler = self.sequences.get(&chunk.id)?.pooler.as_ref()?;
            let tokens = pooler.tokens(chunk);
            Some((chunk, first_row + tokens.start..first_row + tokens.end))
        });
        let wanted: Vec<(&Chunk, Range<usize>)> = wanted.collect();
        let rows: Vec<usize> = wanted.iter().flat_map(|(_, rows)| rows.clone()).collect();
        let values = rows_to_host(hidden, &rows)?;
        let mut rows = values.chunks_exact(hidden.dims()[1]);
        let mut ended = Vec::new();
        let now = Instant::now();
        for (chunk, range) in wanted {
            let Some(sequence) = self.sequences.get_mut(&chunk.id) else {
                continue;
            };
            let Some(pooler) = &mut sequence.pooler else {
                continue;
            };
            rows.by_ref()
                .take(range.len())
                .for_each(|row| pooler.add(row));
            if chunk.samples {
                sequence.times.token(now);
                sequence.sink.send(EngineOutput::Pooled {
                    values: pooler.mean(),
                    num_cached_tokens: chunk.num_cached,
                });
                ended.push(Sampled {
                    id: chunk.id,
                    // The scheduler ends a sequence with a token. This one is in no text and in no cached block.
                    token: 0,
                    finished: true,
                });
            }
        }
        Ok(ended)
    }
}

/// Rows of `hidden [tokens, hidden]` on the host, one after the other.
fn rows_to_host(hidden: &Tensor<2>, rows: &[usize]) -> Result<Vec<f32>, String> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let indices = TensorData::new(indices, [rows.len()]);
    let indices = Tensor::<1, Int>::from_data(indices, (&hidden.device(), DType::I32));
    let rows = hidden.clone().select(0, indices); // [rows, hidden]
    let values = rows.into_data_dtype(DType::F32).try_into_vec();
    values.map_err(|error| format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(start: usize, len: usize, samples: bool) -> Chunk {
        Chunk {
            id: 1,
            tokens: vec![0; len],
            draft: Vec::new(),
            start,
            block_table: Vec::new(),
            samples,
            reaches_max_len: false,
            num_cached: 0,
        }
    }

    #[test]
    fn tokens_count_once_whatever_the_chunks() {
        let chunks = [
            chunk(0, 3, false),
            chunk(3, 2, false),
            // A preemption.
            chunk(0, 4, false),
            chunk(4, 3, true),
        ];
        for (kind, expected) in [
            (PoolingType::Mean, vec![0..3, 0..2, 4..4, 1..3]),
            (PoolingType::Last, vec![0..0, 0..0, 0..0, 2..3]),
            (PoolingType::Cls, vec![0..1, 0..0, 1..1, 0..0]),
        ] {
            let mut pooler = Pooler::new(kind);
            for (chunk, expected) in chunks.iter().zip(expected) {
                let tokens = pooler.tokens(chunk);
                assert_eq!(tokens, expected, "{kind:?} at {}", chunk.start);
                tokens.for_each(|i| pooler.add(&[(chunk.start + i) as f32]));
            }
            let expected = match kind {
                PoolingType::Mean => 3.0,
                PoolingType::Last => 6.0,
                PoolingType::Cls => 0.0,
            };
            assert_eq!(pooler.mean(), [expected]);
        }
    }
}
