//! CUDA graphs of decode steps: pad, capture, replay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Int, Tensor};
use kv_paging::{DecodeStep, PagedKvCache, RecordedAttention, SchedulerConfig};
use lora_4bit::{AdapterSelection, StackedRows, Weight};

use super::pending::Unmasked;
use super::{DecodeRow, Pending, bucket};
use crate::choose::MAX_LOGIT_ROWS;
use crate::kernels::choice::{argmax_into, draw_step, mask_logits, read_ids};
use crate::kernels::gpu::device_begin;
use crate::kernels::graph::CapturedStep;
use crate::model::Int8Head;
use crate::model::QwenModel;
use crate::sampling::RowMask;

/// Captured steps. They hold handles of the weights and of the KV cache.
#[derive(Debug)]
pub(super) struct Graphs {
    graphs: BTreeMap<Kind, Captured>,
    /// Blocks of the longest sequence.
    max_blocks: usize,
    /// The tokens of the last step, `[rows]`.
    chosen: Tensor<1, Int>,
}

/// What a graph computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    /// Rows, with the padding.
    num_rows: usize,
    /// Whether rows have [stacked](QwenModel::stack_adapters) adapters.
    has_adapters: bool,
    /// Whether rows follow each other in one sequence.
    has_neighbours: bool,
    /// How the next tokens are chosen.
    how: How,
}

/// How a step chooses the tokens that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// The most likely ones, by the int8 copy of lm_head: no logits are left.
    Int8Argmax,
    /// The most likely ones. The logits are left for sequences that choose others, and for those whose tokens have to be among
    /// some that are known later.
    Argmax,
    /// As [`DecodeRow::draw`] says.
    Draw,
}

#[derive(Debug)]
struct Captured {
    step: DecodeStep,
    graph: CapturedStep<Output>,
}

/// What a graph leaves on the device. The next replay overwrites it.
#[derive(Debug)]
struct Output {
    /// The token of each row, `[rows]`.
    tokens: Tensor<1, Int>,
    /// `[rows, vocab]`; only of [`How::Argmax`].
    logits: Option<Tensor<2>>,
}

impl Graphs {
    /// Nothing captured yet; `None` if the device has no kernels for such steps.
    pub(super) fn new(model: &QwenModel, config: &SchedulerConfig) -> Option<Self> {
        let supported = DecodeStep::is_supported(&model.device(), model.config.head_dim);
        let is_there = model.embed_tokens.device() == model.device();
        (supported && is_there).then(|| Self {
            graphs: BTreeMap::new(),
            max_blocks: config.max_model_len.div_ceil(config.block_size),
            chosen: Tensor::zeros(
                [bucket(config.max_num_seqs.max(MAX_LOGIT_ROWS))],
                (&model.device(), DType::I32),
            ),
        })
    }

    /// Forgets what was captured: tensors of the model or of the cache have been replaced.
    pub(super) fn forget(&mut self) {
        self.graphs.clear();
    }

    /// Forgets the tokens of the last step, too: the device has failed.
    pub(super) fn reset(&mut self) {
        self.forget();
        let chosen = self.chosen.dims();
        self.chosen = Tensor::zeros(chosen, (&self.chosen.device(), DType::I32));
    }

    /// Whether there is a graph for such a step.
    pub(super) fn has_captured(&self, model: &QwenModel, rows: &[DecodeRow<'_>]) -> bool {
        self.graphs.contains_key(&kind_of(model, rows))
    }

    /// Replays the graph of a step, after it was captured if there was none. Tokens that the device chooses are on their way to
    /// the host at once, so that a further step doesn't delay them.
    pub(super) fn launch(
        &mut self,
        model: &QwenModel,
        cache: &PagedKvCache,
        rows: &[DecodeRow<'_>],
    ) -> Pending {
        let kind = kind_of(model, rows);
        let (max_blocks, chosen) = (self.max_blocks, &self.chosen);
        let captured = self.graphs.entry(kind).or_insert_with(|| {
            let start = Instant::now();
            let (device, block_size) = (model.device(), cache.shape().block_size);
            let step = DecodeStep::new(kind.num_rows, max_blocks, block_size, &device);
            let graph = capture(model, &step, cache, chosen, kind);
            let seconds = start.elapsed().as_secs_f32();
            tracing::info!(?kind, seconds, "captured a decode step");
            Captured { step, graph }
        });
        let uploaded: Vec<kv_paging::StepRow<'_>> = (rows.iter())
            .map(|row| kv_paging::StepRow {
                token: row.token,
                position: row.position,
                slot: row.slot,
                block_table: row.block_table,
                choice: row.draw.unwrap_or_default().words(),
            })
            .collect();
        captured.step.upload(&uploaded);
        let Output { tokens, logits } = captured.graph.replay();
        match logits {
            Some(logits) if rows.iter().any(|row| row.draw.is_none()) => {
                Pending::logits(logits.clone())
            }
            Some(logits) if rows.iter().any(|row| row.is_constrained) => {
                Pending::unmasked(Unmasked {
                    logits: logits.clone(),
                    step: captured.step.clone(),
                    is_argmax: rows.iter().all(is_argmax),
                })
            }
            _ => Pending::drawn(read_ids(tokens)),
        }
    }
}

impl Graphs {
    /// Draws the tokens of the last step that was launched, of each row one that its mask lets through. `None` if the device has no
    /// kernels for it.
    pub(super) fn draw_masked(&self, unmasked: &Unmasked, masks: &[RowMask]) -> Option<Pending> {
        let Unmasked {
            logits,
            step,
            is_argmax,
        } = unmasked;
        if !mask_logits(logits, masks) {
            return None;
        }
        let tokens = match is_argmax {
            true => argmax_into(logits.clone(), &self.chosen),
            false => draw_step(logits.clone(), step, &self.chosen),
        };
        Some(Pending::drawn(read_ids(&tokens)))
    }
}

/// Captures a step. It reads `step` and writes to `cache` when it is replayed, and leaves its tokens in `chosen`, too, at least
/// one value for each row, where the next step finds them.
fn capture(
    model: &QwenModel,
    step: &DecodeStep,
    cache: &PagedKvCache,
    chosen: &Tensor<1, Int>,
    kind: Kind,
) -> CapturedStep<Output> {
    let (model, step, chosen) = (model.clone(), step.clone(), chosen.clone());
    let kv = RecordedAttention::new(step.clone(), cache);
    let mut kv = match kind.has_neighbours {
        true => kv.of_neighbours(),
        false => kv,
    };
    let device = model.device();
    let inv_freq = model.frequencies.inv_freq();
    let inv_freq = Tensor::<1>::from_data(inv_freq, (&device, DType::F32)); // [head_dim / 2]
    CapturedStep::capture(&device, move || {
        let frequencies = (&inv_freq, model.frequencies.scale());
        let embed = &model.embed_tokens;
        let (x, rotary) = device_begin(embed, &step, &chosen, frequencies); // [rows, hidden]
        let adapters = match kind.has_adapters {
            true => AdapterSelection::Stacked(Arc::new(StackedRows {
                slots: step.values().clone(),
                at: step.slots_at(),
            })),
            false => AdapterSelection::Base,
        };
        let x = model.forward_layers(x, &rotary, &adapters, &mut kv);
        if kind.how == How::Int8Argmax
            && let Some(tokens) = int8_argmax(&model, &x, &chosen)
        {
            return Output {
                tokens,
                logits: None,
            };
        }
        let logits = model.logits(model.final_norm(x)); // [rows, vocab]
        match kind.how {
            How::Draw => Output {
                tokens: draw_step(logits, &step, &chosen),
                logits: None,
            },
            How::Int8Argmax | How::Argmax => Output {
                tokens: argmax_into(logits.clone(), &chosen),
                logits: Some(logits),
            },
        }
    })
}

/// The most likely token after each row of `x [rows, hidden]`, which the final norm hasn't seen yet, by the int8 copy of lm_head.
fn int8_argmax(
    model: &QwenModel,
    x: &Tensor<2>,
    chosen: &Tensor<1, Int>,
) -> Option<Tensor<1, Int>> {
    let (Weight::Dense(weight), Some(Int8Head::Gpu(copy))) =
        (&model.lm_head.weight, &model.int8_head)
    else {
        return None;
    };
    let norm = (&model.norm, model.config.rms_norm_eps);
    Some(copy.argmax(x.clone(), norm, weight, chosen))
}

/// Which graph computes these rows.
fn kind_of(model: &QwenModel, rows: &[DecodeRow<'_>]) -> Kind {
    let num_rows = bucket(rows.len());
    let how = if rows
        .iter()
        .any(|row| row.draw.is_none() || row.is_constrained)
    {
        How::Argmax
    } else if !rows.iter().all(is_argmax) {
        How::Draw
    } else if model.int8_lm_head_takes(num_rows) {
        How::Int8Argmax
    } else {
        How::Argmax
    };
    Kind {
        num_rows,
        has_adapters: rows.iter().any(|row| row.slot.is_some()),
        has_neighbours: rows.iter().any(|row| row.follows),
        how,
    }
}

/// Whether a row takes the most likely token.
fn is_argmax(row: &DecodeRow<'_>) -> bool {
    row.draw.is_some_and(|draw| draw.is_argmax())
}
