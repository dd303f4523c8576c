//! Sequences that end with their prompt: their hidden states become one vector.

use std::ops::Range;
use std::time::Instant;

use burn::tensor::{DType, Int, Tensor, TensorData};
use kv_paging::{Chunk, Sampled, SequenceId};
use model_qwen::Pending;

use super::launched::LaunchedChunk;
use super::request::EngineOutput;
use super::worker::Worker;

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
