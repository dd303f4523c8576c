//! Decode on a device: steps whose rows are the next token of a sequence, or guessed ones after it.
//!
//! On a GPU with the kernels a step is *recorded*: one closure per bucket of rows, to which the runner pads them. On CUDA the
//! closure is captured as a graph and replayed; elsewhere it runs again. The closure chooses the tokens, too, and leaves them where
//! the next step finds them. So the next step can be launched before the host has read the tokens of this one (overlap scheduling).
//! On a CPU, and with [`GraphRunner::eager`], the same interface computes a step at once, operation by operation.

mod buckets;
mod decode_row;
#[cfg_attr(not(feature = "gpu"), path = "graph_runner/no_graphs.rs")]
mod graphs;
mod pending;

use burn::tensor::Tensor;
use kv_paging::{DecodeToken, PagedKvCache, SchedulerConfig};

use crate::kernels::choice::queues_reads;
use crate::kernels::forget_device_state;
use crate::model::QwenModel;
use crate::packed_step::PackedStep;
use crate::sampling::RowMask;
use buckets::bucket;
pub use decode_row::DecodeRow;
use graphs::Graphs;
pub use pending::Pending;

/// Runs decode steps of one model over one KV cache.
///
/// Call it on one thread: a device orders the work of a thread. The model and the cache must be the same ones at every step; call
/// [`GraphRunner::forget_graphs`] when their tensors have been replaced.
#[derive(Debug)]
pub struct GraphRunner {
    /// `None` where the device cannot record steps, and with [`GraphRunner::eager`].
    graphs: Option<Graphs>,
    /// Whether a device goes on computing while the host reads tokens.
    queues_reads: bool,
}

impl GraphRunner {
    /// A runner for sequences within the limits of a scheduler. It records steps where the model's device has kernels for them.
    pub fn new(model: &QwenModel, config: &SchedulerConfig) -> Self {
        Self {
            graphs: Graphs::new(model, config),
            queues_reads: queues_reads(&model.device()),
        }
    }

    /// A runner that records nothing: every operation is launched by itself.
    pub fn eager() -> Self {
        Self {
            graphs: None,
            queues_reads: false,
        }
    }

    /// The largest number of rows of each bucket, up to `max_rows`: one step of each kind needs a warm-up.
    pub fn row_counts(max_rows: usize) -> Vec<usize> {
        let counts = (1..=max_rows).map(bucket);
        let mut counts: Vec<usize> = counts.map(|count| count.min(max_rows)).collect();
        counts.dedup();
        counts
    }

    /// Whether steps are recorded, so that the device draws tokens as [`DecodeRow::draw`] says.
    pub fn records_steps(&self) -> bool {
        self.graphs.is_some()
    }

    /// Whether steps can be launched ahead, see [`GraphRunner::launch_ahead`].
    pub fn overlaps(&self) -> bool {
        self.records_steps() && self.queues_reads
    }

    /// Starts to compute one token of each row, and to choose the tokens that follow. At most the larger of
    /// `max_num_seqs` and [`MAX_LOGIT_ROWS`](crate::MAX_LOGIT_ROWS) rows.
    ///
    /// # Panics
    /// When a row's token is [`DecodeToken::ChosenIn`] and the runner records no steps.
    pub fn launch(
        &mut self,
        model: &QwenModel,
        cache: &mut PagedKvCache,
        rows: &[DecodeRow<'_>],
    ) -> Pending {
        match &mut self.graphs {
            Some(graphs) => graphs.launch(model, cache, rows),
            None => Pending::hidden(forward(model, cache, rows)),
        }
    }

    /// Launches what a step takes to compute the tokens of `rows` and, where it is recorded, to choose the tokens that follow, and
    /// remembers nothing. For [`compile_kernels_only`](lora_4bit::compile_only::compile_kernels_only), where no launch runs.
    pub fn compile(&mut self, model: &QwenModel, cache: &mut PagedKvCache, rows: &[DecodeRow<'_>]) {
        match &self.graphs {
            Some(graphs) => graphs.compile(model, cache, rows),
            None => drop(forward(model, cache, rows)),
        }
    }

    /// Starts the step after `before`, whose tokens the host doesn't know yet: rows name them by [`DecodeToken::ChosenIn`].
    ///
    /// `None`, and nothing has happened, unless the device has drawn all tokens of `before` and draws all of this step, and has
    /// recorded it before: to record a step runs it, so that the tokens of `before` would be lost.
    pub fn launch_ahead(
        &mut self,
        before: &Pending,
        model: &QwenModel,
        cache: &PagedKvCache,
        rows: &[DecodeRow<'_>],
    ) -> Option<Pending> {
        let graphs = self.graphs.as_mut()?;
        let may_launch = self.queues_reads && before.is_drawn() && graphs.has_captured(model, rows);
        may_launch.then(|| graphs.launch(model, cache, rows))
    }

    /// Lets the device draw the tokens of the last step that was launched, if it awaits masks: of the rows that have one, only
    /// tokens that it lets through. The masks of rows that are not told let everything through.
    #[must_use]
    pub fn draw_masked(&mut self, pending: Pending, masks: &[RowMask]) -> Pending {
        match &mut self.graphs {
            Some(graphs) => pending.draw_unmasked(|unmasked| graphs.draw_masked(unmasked, masks)),
            None => pending,
        }
    }

    /// Forgets the recorded steps: they hold tensors of the model and of the cache that have been replaced. Drop steps that are
    /// still pending first.
    pub fn forget_graphs(&mut self) {
        if let Some(graphs) = &mut self.graphs {
            graphs.forget();
        }
    }

    /// Forgets all that is kept on the device between steps. Call it when the device has failed to compute one.
    pub fn reset(&mut self) {
        if let Some(graphs) = &mut self.graphs {
            graphs.reset();
        }
        forget_device_state();
    }
}

/// Hidden states of a step that is computed at once, `[rows, hidden]`.
fn forward(model: &QwenModel, cache: &mut PagedKvCache, rows: &[DecodeRow<'_>]) -> Tensor<2> {
    let mut step = PackedStep::default();
    for row in rows {
        let id = match row.token {
            DecodeToken::Id(id) => id,
            DecodeToken::ChosenIn(row) => {
                panic!("a step that is not recorded leaves no token in row {row}")
            }
        };
        step.push(&[id], row.position, row.adapter_slot, row.block_table);
    }
    step.forward(model, cache)
}

#[cfg(test)]
mod tests {
    use super::{GraphRunner, bucket};

    #[test]
    fn buckets_hold_the_rows_with_little_waste() {
        for num in 1..600 {
            let rows = bucket(num);
            assert!(rows >= num && rows - num <= num.max(4), "{num}: {rows}");
            assert_eq!(bucket(rows), rows);
        }
    }

    #[test]
    fn every_number_of_rows_has_a_step() {
        assert_eq!(GraphRunner::row_counts(1), [1]);
        assert_eq!(GraphRunner::row_counts(20), [1, 2, 4, 8, 16, 20]);
        let counts = GraphRunner::row_counts(256);
        assert_eq!(counts.len(), 17);
        assert!((1..=256).all(|num| counts.contains(&bucket(num))));
    }
}
