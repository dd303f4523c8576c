//! Examples → packed batches, in a seeded order that can be resumed.
//!
//! A [`Batch`] is several documents laid end to end without padding. Attention is block-diagonal (see
//! [`Batch::lengths`]) and positions restart at every document, so that a packed batch has the loss of its documents
//! computed one by one.

use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::Example;

/// One forward pass: documents end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[tokens]`.
    pub tokens: Vec<u32>,
    /// Position within its document of each token, `[tokens]`.
    pub positions: Vec<u32>,
    /// What each token has to predict: the next token of its document, or `None` where no loss is taken, `[tokens]`.
    pub targets: Vec<Option<u32>>,
    /// Tokens per document; their sum is the number of tokens.
    pub lengths: Vec<usize>,
}

impl Batch {
    /// Lays `examples` end to end.
    pub fn collate<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = Self::default();
        for example in examples {
            let length = example.tokens.len();
            batch.lengths.push(length);
            batch.tokens.extend_from_slice(&example.tokens);
            batch.positions.extend(0..length as u32);
            batch
                .targets
                .extend((1..=length).map(|next| match example.mask.get(next) {
                    Some(true) => Some(example.tokens[next]),
                    _ => None,
                }));
        }
        batch
    }

    /// Number of tokens that the loss is taken over.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().flatten().count()
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }
}

/// The micro-batches of one optimizer step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBatch {
    /// At most `gradient_accumulation` batches; fewer at the end of an epoch.
    pub micro_batches: Vec<Batch>,
    /// Target tokens in all of them: the loss of the step is the sum over tokens divided by this.
    pub num_targets: usize,
    /// The epoch, from 0, that the batches are part of.
    pub epoch: usize,
}

impl StepBatch {
    /// Number of tokens in all micro-batches.
    pub fn num_tokens(&self) -> usize {
        self.micro_batches.iter().map(Batch::num_tokens).sum()
    }
}

/// How examples are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Rows per micro-batch; a row is one example, or several with `packing`.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation: usize,
    /// Fill rows of so many tokens with several examples, first fit.
    pub packing: Option<usize>,
    /// Seed of the order; every epoch has its own.
    pub seed: u64,
}

/// Where a [`DataLoader`] stands: all that is needed to go on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Completed passes over the data.
    pub epoch: usize,
    /// Rows of this epoch that have been given out.
    pub index: usize,
}

/// Endless stream of optimizer steps over shuffled examples.
#[derive(Clone, Debug)]
pub struct DataLoader {
    examples: Arc<Vec<Example>>,
    rows: Vec<Vec<usize>>,
    order: Vec<usize>,
    options: LoaderOptions,
    state: LoaderState,
}

impl DataLoader {
    /// A loader at the start of the first epoch. With no examples, [`Self::next_step`] gives empty steps.
    pub fn new(examples: Arc<Vec<Example>>, options: LoaderOptions) -> Self {
        let rows = match options.packing {
            Some(capacity) => {
                let mut indices: Vec<usize> = (0..examples.len()).collect();
                // The stream of the packing order is one that no epoch reaches.
                indices.shuffle(&mut rng(options.seed, u64::MAX));
                first_fit(&examples, &indices, capacity)
            }
            None => (0..examples.len()).map(|index| vec![index]).collect(),
        };
        let mut loader = Self {
            examples,
            rows,
            order: Vec::new(),
            options,
            state: LoaderState::default(),
        };
        loader.shuffle();
        loader
    }

    /// Optimizer steps in one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.rows.len().div_ceil(self.rows_per_step()).max(1)
    }

    /// Number of rows, which are single examples unless packed.
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Where the loader stands.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to `state`, as if all before it had been given out.
    pub fn restore(&mut self, state: LoaderState) {
        self.state = state;
        self.shuffle();
    }

    /// The micro-batches of the next optimizer step; a step never spans two epochs.
    pub fn next_step(&mut self) -> StepBatch {
        if self.state.index >= self.rows.len() {
            self.state = LoaderState {
                epoch: self.state.epoch + 1,
                index: 0,
            };
            self.shuffle();
        }
        let end = (self.state.index + self.rows_per_step()).min(self.order.len());
        let micro_batches: Vec<Batch> = self.order[self.state.index..end]
            .chunks(self.options.batch_size.max(1))
            .map(|rows| {
                Batch::collate(
                    rows.iter()
                        .flat_map(|&row| &self.rows[row])
                        .map(|&index| &self.examples[index]),
                )
            })
            .collect();
        self.state.index = end;
        let num_targets = micro_batches.iter().map(Batch::num_targets).sum();
        StepBatch {
            micro_batches,
            num_targets,
            epoch: self.state.epoch,
        }
    }

    fn rows_per_step(&self) -> usize {
        self.options.batch_size.max(1) * self.options.gradient_accumulation.max(1)
    }

    fn shuffle(&mut self) {
        self.order = (0..self.rows.len()).collect();
        self.order
            .shuffle(&mut rng(self.options.seed, self.state.epoch as u64));
    }
}

/// `examples` in their order, `batch_size` at a time: for evaluation.
pub fn sequential_batches(
    examples: &[Example],
    batch_size: usize,
) -> impl Iterator<Item = Batch> + '_ {
    examples.chunks(batch_size.max(1)).map(Batch::collate)
}

fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// Each example goes to the first row that still has room. Examples longer than `capacity` get a row of their own.
fn first_fit(examples: &[Example], order: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
    // Rows before this one have no room for even the shortest example.
    let shortest = examples
        .iter()
        .map(|example| example.tokens.len())
        .min()
        .unwrap_or(0);
    let mut first_open = 0;
    for &index in order {
        let length = examples[index].tokens.len();
        match rows[first_open..]
            .iter_mut()
            .find(|(used, _)| used + length <= capacity)
        {
            Some((used, row)) => {
                *used += length;
                row.push(index);
            }
            None => rows.push((length, vec![index])),
        }
        while rows
            .get(first_open)
            .is_some_and(|(used, _)| used + shortest > capacity)
        {
            first_open += 1;
        }
    }
    rows.into_iter().map(|(_, row)| row).collect()
}
