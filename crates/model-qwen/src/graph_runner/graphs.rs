//! Recorded decode steps, on CUDA as graphs: pad, record, replay.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Device, Int, Tensor};
use kv_paging::kernels::overwrite;
use kv_paging::{DecodeStep, PagedKvCache, RecordedAttention, SchedulerConfig};
use lora_4bit::{AdapterSelection, StackedRows, Weight};

use super::buckets::bucket;
use super::decode_row::DecodeRow;
use super::pending::Pending;
use super::pending::Unmasked;
use crate::choose::MAX_LOGIT_ROWS;
use crate::kernels::choice::{
    MaskTable, argmax_into, change_logits, changes_of, draw_step, read_ids, read_logits,
};
use crate::kernels::gpu::device_begin;
use crate::kernels::graph::CapturedStep;
use crate::kernels::select_rows;
use crate::model::Int8LmHead;
use crate::model::QwenModel;
use crate::sampling::{Draw, LogitChanges, RowMask};

/// Recorded steps. They hold handles of the weights and of the KV cache.
#[derive(Debug)]
pub(super) struct Graphs {
    graphs: BTreeMap<GraphKey, Captured>,
    /// Blocks of the longest sequence.
    max_blocks: usize,
    buffers: DeviceBuffers,
    /// Whether any row of the last step had changes of its logits.
    has_changes: bool,
    /// The masks of the last steps; nothing until the first one comes.
    masks: Option<MaskTable>,
}

/// What all recorded steps share. It stays at its place.
#[derive(Clone, Debug)]
struct DeviceBuffers {
    /// The tokens that the last step chose, `[rows]`.
    chosen: Tensor<1, Int>,
    /// The tokens that it computed, `[rows]`.
    inputs: Tensor<1, Int>,
    /// What changes of its logits before tokens are drawn: the words of [`LogitChanges`], `[rows * (1 + CHANGE_WORDS)]`.
    changes: Tensor<1, Int>,
}

/// Integers that describe the changes of a row, on average over the largest step. What is more is left to the host.
const CHANGE_WORDS: usize = 8192;

impl DeviceBuffers {
    fn new(num_rows: usize, device: &Device) -> Self {
        let zeros = |len: usize| Tensor::zeros([len], (device, DType::I32));
        Self {
            chosen: zeros(num_rows),
            inputs: zeros(num_rows),
            changes: zeros(num_rows * (1 + CHANGE_WORDS)),
        }
    }

    /// Rows of the largest step.
    fn num_rows(&self) -> usize {
        self.chosen.dims()[0]
    }
}

/// What a recorded step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GraphKey {
    /// Rows, with the padding.
    num_rows: usize,
    /// Whether rows have [stacked](QwenModel::stack_adapters) adapters.
    has_adapters: bool,
    /// Whether rows follow each other in one sequence.
    has_neighbours: bool,
    /// How the next tokens are chosen.
    choice: TokenChoice,
}

/// How a step chooses the tokens that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TokenChoice {
    /// The most likely ones, by the int8 copy of lm_head: no logits are left.
    Int8Argmax,
    /// The most likely ones. The logits are left for sequences that choose others, for those whose tokens have to be among some that
    /// are known later, and for the host.
    Argmax,
    /// As [`DecodeRow::draw`] says, after the changes that it asks for.
    Draw,
}

#[derive(Debug)]
struct Captured {
    step: DecodeStep,
    graph: CapturedStep<Output>,
}

/// What a recorded step leaves on the device. The next replay overwrites it.
#[derive(Debug)]
struct Output {
    /// The token of each row, `[rows]`.
    tokens: Tensor<1, Int>,
    /// `[rows, vocab]`; only of [`TokenChoice::Argmax`].
    logits: Option<Tensor<2>>,
}

impl Graphs {
    /// Nothing recorded yet; `None` if the device has no kernels for such steps.
    pub(super) fn new(model: &QwenModel, config: &SchedulerConfig) -> Option<Self> {
        let supported = DecodeStep::is_supported(&model.device(), model.config.head_dim);
        let is_there = model.embed_tokens.device() == model.device();
        (supported && is_there).then(|| Self {
            graphs: BTreeMap::new(),
            max_blocks: config.max_model_len.div_ceil(config.block_size),
            buffers: DeviceBuffers::new(
                bucket(config.max_num_seqs.max(MAX_LOGIT_ROWS)),
                &model.device(),
            ),
            has_changes: false,
            masks: None,
        })
    }

    /// Forgets what was recorded: tensors of the model or of the cache have been replaced.
    pub(super) fn forget(&mut self) {
        self.graphs.clear();
    }

    /// Forgets the tokens of the last step, too: the device has failed.
    pub(super) fn reset(&mut self) {
        self.forget();
        self.buffers = DeviceBuffers::new(self.buffers.num_rows(), &self.buffers.chosen.device());
        self.has_changes = false;
        self.masks = None;
    }

    /// Whether such a step has been recorded, and draws the tokens of all rows.
    pub(super) fn has_captured(&self, model: &QwenModel, rows: &[DecodeRow<'_>]) -> bool {
        let rows = self.that_fit(rows);
        rows.iter().all(|row| row.draw.is_some()) && self.graphs.contains_key(&key_of(model, &rows))
    }

    /// The same rows, of which the host chooses the tokens where there is no room for the changes of their logits.
    fn that_fit<'r, 'a>(&self, rows: &'r [DecodeRow<'a>]) -> Cow<'r, [DecodeRow<'a>]> {
        let mut room = self.buffers.num_rows() * CHANGE_WORDS;
        let fits = |row: &DecodeRow<'_>| {
            let left = room.checked_sub(changes(row).map_or(0, LogitChanges::num_words));
            room = left.unwrap_or(room);
            left.is_some()
        };
        let fit: Vec<bool> = rows.iter().map(fits).collect();
        if fit.iter().all(|fits| *fits) {
            return Cow::Borrowed(rows);
        }
        let drawn = |(row, fits): (&DecodeRow<'a>, bool)| DecodeRow {
            draw: row.draw.clone().filter(|_| fits),
            ..*row
        };
        Cow::Owned(rows.iter().zip(fit).map(drawn).collect())
    }

    /// Writes the changes of the rows of the next step.
    fn upload_changes(&mut self, rows: &[DecodeRow<'_>]) {
        let has_changes = rows.iter().any(|row| changes(row).is_some());
        // Those of the step before must not stay.
        if has_changes || self.has_changes {
            let (all, num_rows) = (&self.buffers.changes, self.buffers.num_rows());
            let words = changes_of(rows.iter().map(changes), num_rows, &all.device());
            overwrite(all, words);
        }
        self.has_changes = has_changes;
    }

    /// Launches what a recorded step has, and records nothing.
    pub(super) fn compile(&self, model: &QwenModel, cache: &PagedKvCache, rows: &[DecodeRow<'_>]) {
        let key = key_of(model, &self.that_fit(rows));
        let (device, block_size) = (model.device(), cache.shape().block_size);
        let step = DecodeStep::new(key.num_rows, self.max_blocks, block_size, &device);
        recorded(model, &step, cache, &self.buffers, key)();
    }

    /// Replays a step, after it was recorded if it is the first of its kind. Tokens that the device chooses are on their way to
    /// the host at once, so that a further step doesn't delay them.
    pub(super) fn launch(
        &mut self,
        model: &QwenModel,
        cache: &PagedKvCache,
        rows: &[DecodeRow<'_>],
    ) -> Pending {
        let rows = &*self.that_fit(rows);
        self.upload_changes(rows);
        let key = key_of(model, rows);
        let (max_blocks, buffers) = (self.max_blocks, &self.buffers);
        let captured = self.graphs.entry(key).or_insert_with(|| {
            let start = Instant::now();
            let (device, block_size) = (model.device(), cache.shape().block_size);
            let step = DecodeStep::new(key.num_rows, max_blocks, block_size, &device);
            let run = recorded(model, &step, cache, buffers, key);
            let graph = CapturedStep::capture(&device, run);
            let seconds = start.elapsed().as_secs_f32();
            match graph.is_captured() {
                true => tracing::info!(?key, seconds, "captured a decode step"),
                false => tracing::info!(?key, seconds, "recorded a decode step, without a graph"),
            }
            Captured { step, graph }
        });
        let uploaded: Vec<kv_paging::StepRow<'_>> = (rows.iter())
            .map(|row| kv_paging::StepRow {
                token: row.token,
                position: row.position,
                adapter_slot: row.adapter_slot,
                block_table: row.block_table,
                choice: row.draw.as_ref().map_or([0; Draw::WORDS], Draw::words),
            })
            .collect();
        captured.step.upload(&uploaded);
        let Output { tokens, logits } = captured.graph.replay();
        match logits {
            Some(logits) if rows.iter().any(|row| row.draw.is_none()) => {
                Pending::logits(logits.clone())
            }
            Some(logits) if rows.iter().any(leaves_logits) => {
                let read = (0..rows.len()).filter(|row| reads_logits(&rows[*row]));
                let read: Vec<usize> = read.collect();
                // A copy, since what is drawn from changes.
                let copy = (!read.is_empty()).then(|| select_rows(logits, &read));
                let unmasked = Unmasked {
                    logits: logits.clone(),
                    step: captured.step.clone(),
                    is_argmax: rows.iter().all(is_argmax),
                    has_changes: self.has_changes,
                    read: copy.map(|copy| read_logits(copy, read)),
                };
                match rows.iter().any(|row| row.is_constrained) {
                    true => Pending::unmasked(unmasked),
                    false => self.draw_masked(unmasked, &[]),
                }
            }
            _ => Pending::drawn(read_ids(tokens), None),
        }
    }
}

impl Graphs {
    /// Draws the tokens of the last step that was launched, of each row one that its mask lets through. The step goes on waiting if
    /// the device has no kernels for it.
    pub(super) fn draw_masked(&mut self, unmasked: Unmasked, masks: &[RowMask]) -> Pending {
        if !self.mask_logits(&unmasked.logits, masks) {
            return Pending::unmasked(unmasked);
        }
        let Unmasked {
            logits,
            step,
            is_argmax,
            has_changes,
            read,
        } = unmasked;
        let DeviceBuffers {
            chosen,
            inputs,
            changes,
        } = &self.buffers;
        if has_changes {
            change_logits(&logits, changes, inputs);
        }
        let tokens = match is_argmax {
            true => argmax_into(logits, chosen),
            false => draw_step(logits, &step, chosen),
        };
        Pending::drawn(read_ids(&tokens), read)
    }

    /// Applies masks to the logits of a step, in place. `false`, and nothing has happened, where the device has no kernels for it.
    fn mask_logits(&mut self, logits: &Tensor<2>, masks: &[RowMask]) -> bool {
        if masks.is_empty() {
            return true;
        }
        let num_rows = self.buffers.num_rows();
        let table = (self.masks)
            .get_or_insert_with(|| MaskTable::new(num_rows, logits.dims()[1], &logits.device()));
        table.apply(logits, masks)
    }
}

/// A step that can be recorded. It reads `step` and writes to `cache` when it runs, and leaves its tokens in `buffers`, too, where the
/// next step finds them.
fn recorded(
    model: &QwenModel,
    step: &DecodeStep,
    cache: &PagedKvCache,
    buffers: &DeviceBuffers,
    key: GraphKey,
) -> impl FnMut() -> Output + Send + 'static {
    let (model, step, buffers) = (model.clone(), step.clone(), buffers.clone());
    let kv = RecordedAttention::new(step.clone(), cache);
    let mut kv = match key.has_neighbours {
        true => kv.of_neighbours(),
        false => kv,
    };
    let device = model.device();
    let inv_freq = model.frequencies.inv_freq();
    let inv_freq = Tensor::<1>::from_data(inv_freq, (&device, DType::F32)); // [head_dim / 2]
    move || {
        let DeviceBuffers {
            chosen,
            inputs,
            changes,
        } = &buffers;
        let frequencies = (&inv_freq, model.frequencies.scale());
        let embed = &model.embed_tokens;
        let (x, rotary) = device_begin(embed, &step, [chosen, inputs], frequencies); // [rows, hidden]
        let adapters = match key.has_adapters {
            true => AdapterSelection::Stacked(Arc::new(StackedRows {
                slots: step.values().clone(),
                at: step.adapter_slots_at(),
            })),
            false => AdapterSelection::Base,
        };
        let x = model.forward_layers(x, &rotary, &adapters, &mut kv);
        if key.choice == TokenChoice::Int8Argmax
            && let Some(tokens) = int8_argmax(&model, &x, chosen)
        {
            return Output {
                tokens,
                logits: None,
            };
        }
        let logits = model.logits(model.final_norm(x)); // [rows, vocab]
        match key.choice {
            TokenChoice::Draw => {
                change_logits(&logits, changes, inputs);
                Output {
                    tokens: draw_step(logits, &step, chosen),
                    logits: None,
                }
            }
            TokenChoice::Int8Argmax | TokenChoice::Argmax => Output {
                tokens: argmax_into(logits.clone(), chosen),
                logits: Some(logits),
            },
        }
    }
}

/// The most likely token after each row of `x [rows, hidden]`, which the final norm hasn't seen yet, by the int8 copy of lm_head.
fn int8_argmax(
    model: &QwenModel,
    x: &Tensor<2>,
    chosen: &Tensor<1, Int>,
) -> Option<Tensor<1, Int>> {
    let (Weight::Dense(weight), Some(Int8LmHead::Gpu(copy))) =
        (&model.lm_head.weight, &model.int8_lm_head)
    else {
        return None;
    };
    let norm = (&model.norm, model.config.rms_norm_eps);
    Some(copy.argmax(x.clone(), norm, weight, chosen))
}

/// Which recorded step computes these rows.
fn key_of(model: &QwenModel, rows: &[DecodeRow<'_>]) -> GraphKey {
    let num_rows = bucket(rows.len());
    let choice = if rows.iter().any(leaves_logits) {
        TokenChoice::Argmax
    } else if !rows.iter().all(is_argmax) {
        TokenChoice::Draw
    } else if model.int8_lm_head_takes(num_rows) {
        TokenChoice::Int8Argmax
    } else {
        TokenChoice::Argmax
    };
    GraphKey {
        num_rows,
        has_adapters: rows.iter().any(|row| row.adapter_slot.is_some()),
        has_neighbours: rows.iter().any(|row| row.follows),
        choice,
    }
}

/// Whether a recorded step leaves the logits of a row: the host wants them, or the mask of the row's token comes later.
fn leaves_logits(row: &DecodeRow<'_>) -> bool {
    row.draw.is_none() || row.is_constrained || reads_logits(row)
}

/// Whether the host wants the logits of a row whose token the device draws.
fn reads_logits(row: &DecodeRow<'_>) -> bool {
    row.draw.as_ref().is_some_and(|draw| draw.reads_logits)
}

/// Whether a row takes the most likely token.
fn is_argmax(row: &DecodeRow<'_>) -> bool {
    row.draw.as_ref().is_some_and(Draw::is_argmax)
}

/// What a row changes of its logits.
fn changes<'r>(row: &'r DecodeRow<'_>) -> Option<&'r LogitChanges> {
    row.draw.as_ref()?.changes.as_ref()
}
