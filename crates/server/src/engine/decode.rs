//! Steps in which every sequence computes one token, as recorded graphs.

use std::collections::BTreeMap;

use burn::tensor::{DType, Int, Tensor};
use kv_paging::{DecodeRow, DecodeStep, PagedKvCache, SchedulerConfig};
use model_qwen::{CapturedStep, DecodeKind, QwenModel, StepChoice};

/// Recorded steps by their number of rows and what they compute. They hold handles of the weights and of the KV cache.
#[derive(Debug)]
pub(super) struct DecodeGraphs {
    graphs: BTreeMap<(usize, DecodeKind), DecodeGraph>,
    /// Blocks of the longest sequence.
    max_blocks: usize,
    /// The tokens of the last step, `[rows]`.
    chosen: Tensor<1, Int>,
}

#[derive(Debug)]
struct DecodeGraph {
    step: DecodeStep,
    captured: CapturedStep<(Tensor<1, Int>, Option<Tensor<2>>)>,
}

/// What a step leaves on the device: as good as what is given the device to do before the next one.
pub(super) struct Decoded {
    /// The token of each row, `[rows]`.
    pub(super) tokens: Tensor<1, Int>,
    /// `[rows, vocab]`, if the step was launched for them.
    pub(super) logits: Option<Tensor<2>>,
}

impl DecodeGraphs {
    /// Nothing recorded yet; `None` if the device has no kernels for such steps.
    pub(super) fn new(model: &QwenModel, config: &SchedulerConfig) -> Option<Self> {
        let supported = DecodeStep::is_supported(&model.device(), model.config.head_dim);
        supported.then(|| Self {
            graphs: BTreeMap::new(),
            max_blocks: config.max_model_len.div_ceil(config.block_size),
            chosen: Tensor::zeros([bucket(config.max_num_seqs)], (&model.device(), DType::I32)),
        })
    }

    /// Forgets what was recorded: the weights have changed.
    pub(super) fn clear(&mut self) {
        self.graphs.clear();
    }

    /// Forgets the tokens of the last step, too: the device has failed.
    pub(super) fn reset(&mut self) {
        self.clear();
        let chosen = self.chosen.dims();
        self.chosen = Tensor::zeros(chosen, (&self.chosen.device(), DType::I32));
    }

    /// Whether such a step is recorded. Recording runs it, so that the tokens of the last step are lost.
    pub(super) fn has_recorded(
        &self,
        rows: &[DecodeRow<'_>],
        model: &QwenModel,
        choice: StepChoice,
    ) -> bool {
        self.graphs.contains_key(&key(rows, model, choice))
    }

    /// Starts to compute one token of each sequence, or the logits.
    pub(super) fn launch(
        &mut self,
        rows: &[DecodeRow<'_>],
        model: &QwenModel,
        cache: &PagedKvCache,
        choice: StepChoice,
    ) -> Decoded {
        let (num_rows, kind) = key(rows, model, choice);
        let (max_blocks, chosen) = (self.max_blocks, &self.chosen);
        let graph = self.graphs.entry((num_rows, kind)).or_insert_with(|| {
            let start = std::time::Instant::now();
            let (device, block_size) = (model.device(), cache.shape().block_size);
            let step = DecodeStep::new(num_rows, max_blocks, block_size, &device);
            let captured = model.capture_decode(&step, cache, chosen, kind);
            let seconds = start.elapsed().as_secs_f32();
            tracing::info!(num_rows, ?kind, seconds, "recorded a decode step");
            DecodeGraph { step, captured }
        });
        graph.step.upload(rows);
        let (tokens, logits) = graph.captured.replay();
        Decoded {
            tokens: tokens.clone(),
            logits: logits.clone(),
        }
    }
}

/// Which recorded step computes these rows.
fn key(rows: &[DecodeRow<'_>], model: &QwenModel, choice: StepChoice) -> (usize, DecodeKind) {
    let num_rows = bucket(rows.len());
    let kind = DecodeKind {
        has_adapters: rows.iter().any(|row| row.slot.is_some()),
        choice: match choice {
            // One recording for both.
            StepChoice::Argmax if !model.chooses_from_bounds(num_rows) => StepChoice::Logits,
            choice => choice,
        },
    };
    (num_rows, kind)
}

/// Rows that are computed for a number of sequences: few graphs, little waste.
fn bucket(num_sequences: usize) -> usize {
    match num_sequences {
        0..=4 => num_sequences.next_power_of_two(),
        5..=32 => num_sequences.next_multiple_of(8),
        33..=128 => num_sequences.next_multiple_of(16),
        _ => num_sequences.next_multiple_of(32),
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_hold_the_sequences_with_little_waste() {
        for num in 1..600 {
            let rows = bucket(num);
            assert!(rows >= num && rows - num <= num.max(4), "{num}: {rows}");
            assert_eq!(bucket(rows), rows);
        }
    }
}
