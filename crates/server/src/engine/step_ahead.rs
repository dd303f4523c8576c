//! The step that the device computes before the tokens of the step before are known.

use std::collections::HashMap;

use kv_paging::{Chunk, SequenceId};
use model_qwen::Pending;

use super::launched::{Launched, LaunchedChunk};

/// A step that was launched before the step before was committed.
#[derive(Debug)]
pub(super) struct StepAhead {
    rows: HashMap<SequenceId, AheadRow>,
    pending: Pending,
}

/// A sequence's row in that step.
#[derive(Clone, Copy, Debug)]
struct AheadRow {
    row: usize,
    /// The position of the token that it computes.
    position: usize,
}

impl StepAhead {
    /// A step with one row for each sequence, which computes the token at a position.
    pub(super) fn new(
        positions: impl Iterator<Item = (SequenceId, usize)>,
        pending: Pending,
    ) -> Self {
        let rows = positions.enumerate();
        let rows = rows.map(|(row, (id, position))| (id, AheadRow { row, position }));
        Self {
            rows: rows.collect(),
            pending,
        }
    }

    /// The chunks that this step computes, and the rest. `None` if it computes none of them.
    pub(super) fn take_launched(self, chunks: &[Chunk]) -> Option<(Launched<'_>, Vec<&Chunk>)> {
        let (mut taken, mut rest) = (Vec::with_capacity(chunks.len()), Vec::new());
        for chunk in chunks {
            match self.row_of(chunk) {
                Some(first_row) => taken.push(LaunchedChunk { chunk, first_row }),
                None => rest.push(chunk),
            }
        }
        let launched = Launched {
            chunks: taken,
            pending: self.pending,
        };
        (!launched.chunks.is_empty()).then_some((launched, rest))
    }

    /// The row that computes a chunk.
    fn row_of(&self, chunk: &Chunk) -> Option<usize> {
        let AheadRow { row, position } = *self.rows.get(&chunk.id)?;
        let is_one = chunk.num_tokens() == 1;
        (is_one && chunk.start == position).then_some(row)
    }

    /// Forgets the rows of sequences whose tokens turned out to be others.
    pub(super) fn forget(&mut self, chunks: &[&Chunk]) {
        let keeps = |id: &SequenceId| chunks.iter().all(|chunk| chunk.id != *id);
        self.rows.retain(|id, _| keeps(id));
    }
}
