//! Before the first request: a GPU compiles kernels at their first use, and graphs of steps are captured at theirs. A request
//! should not wait for either, so steps of all sizes run first, on blocks of the KV cache that nobody has yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use kv_paging::{DecodeToken, PagedKvCache};
use lora_4bit::compile_only::{compile_kernels_only, real_launches};
use model_qwen::{
    Ahead, ChoiceRow, DecodeRow, GraphRunner, MAX_LOGIT_ROWS, PackedStep, Pending, QwenModel,
    RowMask, Sampler, SamplingParams, Throttle, TokenMask, Want,
};

use super::device_failure::catch;
use super::progress::StartProgress;
use super::worker::Worker;

/// How often progress is logged.
const REPORT: Duration = Duration::from_secs(2);

/// A step that is run once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum WarmUpStep {
    Decode(DecodeWarmUp),
    /// Prompts of these lengths together.
    Prompts {
        lens: Vec<usize>,
        slot: Option<usize>,
    },
}

/// One token of each of some sequences; with drafts, some tokens of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DecodeWarmUp {
    num_rows: usize,
    has_drafts: bool,
    how: Sampling,
    slot: Option<usize>,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sampling {
    Greedy,
    Drawn,
    /// By the device, of the tokens that a mask lets through.
    Masked,
    /// With log-probabilities, for which the host reads logits.
    Read,
}

/// Tokens of a sequence that has a draft.
const TOKENS_WITH_DRAFT: usize = 4;
/// Rows up to which the host reads all logits before the first request. With more rows the device's part is the same, and the
/// host's takes its time.
const MAX_READ_ROWS: usize = 4;

impl Sampling {
    /// What needs kernels of its own with so many rows.
    fn of(num_rows: usize) -> impl Iterator<Item = Self> {
        let all = [Self::Greedy, Self::Drawn, Self::Masked, Self::Read];
        all.into_iter().filter(move |how| match how {
            Self::Greedy | Self::Drawn => true,
            // The kernel of masks is the same for all numbers of rows.
            Self::Masked => num_rows == 1,
            Self::Read => num_rows <= MAX_READ_ROWS,
        })
    }

    fn params(self) -> SamplingParams {
        match self {
            Self::Greedy => SamplingParams::greedy(),
            // Cold enough for the device to decide, whatever the logits are: the host would have to read them otherwise.
            Self::Drawn | Self::Masked => SamplingParams {
                temperature: 0.01,
                top_p: 0.9,
                // Its kernel is another one.
                repetition_penalty: 1.1,
                ..SamplingParams::default()
            },
            Self::Read => SamplingParams {
                logprobs: Some(1),
                ..SamplingParams::greedy()
            },
        }
    }
}

impl Worker {
    /// Runs every kind of step once.
    ///
    /// # Errors
    /// What the device says of the step that it can't compute.
    pub(super) fn warm_up(&mut self, progress: &StartProgress) -> Result<(), String> {
        let start = Instant::now();
        // Kernels are compiled on all cores, where the steps themselves wait for one after the other.
        let device = self.model.device();
        catch(|| {
            compile_kernels_only(&device, || self.compile_steps(progress));
            Ok(())
        })?;
        let _real = real_launches();
        let steps = self.warm_up_steps();
        let mut throttle = Throttle::new(REPORT);
        for (i, step) in steps.iter().enumerate() {
            progress.warms_up(i + 1, steps.len());
            catch(|| self.run_warm_up(step))?;
            if throttle.is_due() {
                tracing::info!("warming up: step {} of {}", i + 1, steps.len());
            }
        }
        let seconds = start.elapsed().as_secs_f32();
        tracing::info!(steps = steps.len(), seconds, "warmed up");
        Ok(())
    }

    /// Launches what the steps need, with few layers, and reads nothing.
    pub(super) fn compile_steps(&mut self, progress: &StartProgress) {
        let steps = self.warm_up_steps();
        let mut model = self.model.clone();
        // Other layers need the same kernels as the first one, but for the last, which may compute fewer rows.
        model.layers.truncate(2);
        let mut throttle = Throttle::new(REPORT);
        for (i, step) in steps.iter().enumerate() {
            progress.compiles(i + 1, steps.len());
            self.compile_step(&model, step);
            if throttle.is_due() {
                tracing::info!("compiling kernels: step {} of {}", i + 1, steps.len());
            }
        }
    }

    fn compile_step(&mut self, model: &QwenModel, step: &WarmUpStep) {
        match step {
            WarmUpStep::Decode(decode) => {
                let mut samplers = self.samplers(decode.num_rows, decode.how);
                let table = self.first_blocks();
                let rows = self.decode_rows(*decode, &mut samplers, &table);
                self.runner.compile(model, &mut self.cache, &rows);
            }
            WarmUpStep::Prompts { lens, slot } => {
                let pools = self.receiver.pools();
                let (hidden, _) = forward(model, &mut self.cache, lens, *slot, pools);
                if !pools {
                    model.logits(hidden);
                }
            }
        }
    }

    /// Large steps come first: smaller ones find room in the memory that these leave.
    fn warm_up_steps(&self) -> Vec<WarmUpStep> {
        let config = self.scheduler.config();
        let longest = config.max_model_len.min(config.max_num_batched_tokens);
        let longest = longest
            .min(self.cache.shape().num_blocks * config.block_size)
            .max(1);
        let pools = self.receiver.pools();
        let with_adapter = self.adapters.used_slot().map(Some);
        let max_rows = config.max_num_seqs.min(config.max_num_batched_tokens);
        let mut counts = GraphRunner::row_counts(max_rows);
        counts.reverse();
        let mut steps = Vec::new();
        for slot in with_adapter.into_iter().chain([None]) {
            let total = longest.saturating_mul(config.max_num_seqs);
            let totals = token_counts(total.min(config.max_num_batched_tokens));
            steps.extend(totals.map(|total| WarmUpStep::Prompts {
                lens: split(total, longest),
                slot,
            }));
            // A prompt among sequences that go on, and many that begin together.
            steps.extend(counts.iter().map(|&num| {
                let room = (longest + 1).saturating_sub(num);
                let first = room.clamp(1, 3 * config.block_size);
                let lens = std::iter::once(first).chain(std::iter::repeat_n(1, num - 1));
                let lens = lens.collect();
                WarmUpStep::Prompts { lens, slot }
            }));
            if pools {
                continue;
            }
            let with_drafts = match &self.drafts {
                Some(_) => GraphRunner::row_counts(max_rows.max(MAX_LOGIT_ROWS)),
                None => Vec::new(),
            };
            let kinds = [(&counts, false), (&with_drafts, true)];
            let decodes = kinds.into_iter().flat_map(|(counts, has_drafts)| {
                counts.iter().flat_map(move |&num_rows| {
                    Sampling::of(num_rows).map(move |how| {
                        WarmUpStep::Decode(DecodeWarmUp {
                            num_rows,
                            has_drafts,
                            how,
                            slot,
                        })
                    })
                })
            });
            steps.extend(decodes);
        }
        steps
    }

    fn run_warm_up(&mut self, step: &WarmUpStep) -> Result<(), String> {
        match step {
            WarmUpStep::Decode(decode) => {
                let mut samplers = self.samplers(decode.num_rows, decode.how);
                let table = self.first_blocks();
                let rows = self.decode_rows(*decode, &mut samplers, &table);
                let mut pending = self.runner.launch(&self.model, &mut self.cache, &rows);
                if decode.how == Sampling::Masked {
                    let mask = Arc::new(TokenMask::all(self.model.config.vocab_size));
                    let masks = [RowMask { row: 0, mask }];
                    pending = self.runner.draw_masked(pending, &masks);
                }
                self.choose(pending, samplers.iter_mut().enumerate())
            }
            WarmUpStep::Prompts { lens, slot } => {
                let pools = self.receiver.pools();
                let (hidden, ends) = forward(&self.model, &mut self.cache, lens, *slot, pools);
                if pools {
                    // Only a read tells what has failed.
                    let first = hidden.narrow(0, 0, 1).try_into_data();
                    return first.map(drop).map_err(|error| error.to_string());
                }
                let kinds = Sampling::of(ends.len()).filter(|how| *how != Sampling::Masked);
                for how in kinds {
                    let mut samplers = self.samplers(ends.len(), how);
                    let rows = ends.iter().copied().zip(&mut samplers);
                    self.choose(Pending::hidden_rows(hidden.clone(), ends.clone()), rows)?;
                }
                Ok(())
            }
        }
    }

    /// Tokens of the longest sequence of a decode step.
    fn most_tokens(&self) -> usize {
        TOKENS_WITH_DRAFT.min(self.scheduler.config().max_model_len)
    }

    /// The blocks of such a sequence.
    fn first_blocks(&self) -> Vec<u32> {
        let num_blocks = self.most_tokens().div_ceil(self.cache.shape().block_size);
        (0..num_blocks as u32).collect()
    }

    /// One row for each sampler, of sequences whose first blocks are in `block_table`.
    fn decode_rows<'a>(
        &self,
        decode: DecodeWarmUp,
        samplers: &mut [Sampler],
        block_table: &'a [u32],
    ) -> Vec<DecodeRow<'a>> {
        let each = match decode.has_drafts {
            true => self.most_tokens(),
            false => 1,
        };
        let row = |(row, sampler): (usize, &mut Sampler)| DecodeRow {
            follows: row % each > 0,
            token: DecodeToken::Id(0),
            position: row % each,
            adapter_slot: decode.slot,
            block_table: &block_table[..=(row % each) / self.cache.shape().block_size],
            draw: sampler.draw(Ahead::NONE, &[]),
            is_constrained: decode.how == Sampling::Masked,
        };
        samplers.iter_mut().enumerate().map(row).collect()
    }

    fn samplers(&self, num: usize, how: Sampling) -> Vec<Sampler> {
        let new = || Sampler::new(&how.params(), &[0], self.model.config.vocab_size);
        std::iter::repeat_with(new).take(num).collect()
    }

    /// Waits for tokens that nobody wants.
    fn choose<'a>(
        &self,
        pending: Pending,
        rows: impl Iterator<Item = (usize, &'a mut Sampler)>,
    ) -> Result<(), String> {
        let want = |sampler| Want::Token {
            sampler,
            banned: &[],
        };
        let rows = rows.map(|(row, sampler)| ChoiceRow {
            row,
            want: want(sampler),
        });
        let mut rows: Vec<ChoiceRow<'_>> = rows.collect();
        let chosen = pending.tokens(&self.model, &mut rows);
        chosen.map(drop).map_err(|error| error.to_string())
    }
}

/// Computes prompts of these lengths: the hidden states of all tokens or of the last one of each prompt, and the rows of these.
fn forward(
    model: &QwenModel,
    cache: &mut PagedKvCache,
    lens: &[usize],
    slot: Option<usize>,
    all: bool,
) -> (Tensor<2>, Vec<usize>) {
    let block_size = cache.shape().block_size;
    let longest = lens.iter().copied().max().unwrap_or(0);
    let table: Vec<u32> = (0..longest.div_ceil(block_size) as u32).collect();
    let tokens = vec![0; longest];
    let mut packed = PackedStep::default();
    for &len in lens {
        packed.push(&tokens[..len], 0, slot, &table[..len.div_ceil(block_size)]);
    }
    let ends = packed.last_rows();
    let hidden = match all {
        true => packed.forward(model, cache),
        false => packed.forward_rows(model, cache, &ends),
    };
    (hidden, ends)
}

/// Numbers of tokens that may need kernels of their own, the largest first: which kernel computes a product depends on the number
/// of its rows, and on how many parts of the card these keep busy.
fn token_counts(largest: usize) -> impl Iterator<Item = usize> {
    let powers = (1..usize::BITS - 1).map(|bits| 1 << bits);
    let counts = powers.flat_map(|num| [num, num + num / 2]);
    let mut counts: Vec<usize> = counts.take_while(|&num| num < largest).collect();
    counts.push(largest);
    counts.into_iter().rev()
}

/// Lengths of prompts with `total` tokens together, of `longest` tokens at most.
fn split(total: usize, longest: usize) -> Vec<usize> {
    let whole = std::iter::repeat_n(longest, total / longest);
    whole
        .chain(Some(total % longest).filter(|&rest| rest > 0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_as_large_as_they_may_be_at_most() {
        let counts = |largest| token_counts(largest).collect::<Vec<_>>();
        let up_to_96 = [96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2];
        assert_eq!(counts(100), [&[100], &up_to_96[..]].concat());
        assert_eq!(counts(8), [8, 6, 4, 3, 2]);
        assert_eq!(counts(1), [1]);
        assert_eq!(split(100, 40), [40, 40, 20]);
        assert_eq!(split(80, 40), [40, 40]);
        assert_eq!(split(3, 40), [3]);
    }
}
