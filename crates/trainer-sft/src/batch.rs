//! Examples → packed batches, in a seeded order that can be resumed.
//!
//! A [`Batch`] is several documents laid end to end without padding. Attention is block-diagonal (see
//! [`Batch::lengths`]) and positions restart at every document, so that a packed batch has the loss of its documents
//! computed one by one.

mod packing;
mod share;

use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::packing::first_fit;
pub(crate) use self::share::StepShare;
use crate::data::{DataError, Example, Examples, Source, Stream, StreamPlace};

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
    /// Whether the answer of each document is a wanted one; as the examples say, where the batch is made of examples.
    pub are_wanted: Vec<bool>,
}

impl Batch {
    /// Lays `examples` end to end.
    pub fn collate<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = Self::default();
        for example in examples {
            let length = example.tokens.len();
            batch.lengths.push(length);
            batch.are_wanted.push(example.is_wanted);
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
#[derive(Clone, Debug, PartialEq)]
pub struct StepBatch {
    /// At most `gradient_accumulation` batches; fewer at the end of an epoch.
    pub micro_batches: Vec<Batch>,
    /// Target tokens in all of them: the loss of the step is the sum over tokens divided by this.
    pub num_targets: usize,
    /// Passes over the data after this step, with the fraction of the current one.
    pub epoch: f64,
    /// Where the examples were read.
    pub sources: Vec<Source>,
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
    /// Rows per micro-batch; a row is one example, both of a pair, or several with `packing`.
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
    /// Rows of this epoch that have been given out; of this block, where the data is streamed.
    pub index: usize,
    /// The block, where the data is streamed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub block: Option<BlockState>,
}

/// The block of streamed data that a loader is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// Number of the block in its pass.
    pub number: usize,
    /// Where it begins.
    pub start: StreamPlace,
}

/// Endless stream of optimizer steps over shuffled examples.
#[derive(Debug)]
pub struct DataLoader {
    rows: Rows,
    order: Vec<u32>,
    options: LoaderOptions,
    state: LoaderState,
    stream: Option<Box<Stream>>,
    /// The stream has come to the end of its pass, and the last step of the epoch has been given out.
    has_ended: bool,
}

/// Examples in rows of one, of two that are a pair or, packed, of several.
#[derive(Clone, Debug)]
struct Rows {
    examples: Arc<Examples>,
    packed: Option<Vec<Vec<u32>>>,
}

impl Rows {
    fn new(examples: Arc<Examples>, options: &LoaderOptions, stream: u64) -> Self {
        let packed = options.packing.map(|capacity| {
            let mut order: Vec<u32> = (0..examples.len() as u32).collect();
            order.shuffle(&mut rng(options.seed, stream));
            let lengths = |index: u32| examples.length(index as usize);
            first_fit(&order, lengths, capacity)
        });
        let per_pair = examples.per_pair() as u32;
        let pairs = || {
            let starts = (0..examples.len() as u32).step_by(per_pair as usize);
            starts.map(|start| (start..start + per_pair).collect())
        };
        let packed = packed.or_else(|| (per_pair > 1).then(|| pairs().collect()));
        Self { examples, packed }
    }

    fn len(&self) -> usize {
        self.packed.as_ref().map_or(self.examples.len(), Vec::len)
    }

    fn get(&self, row: u32) -> Result<Vec<Example>, DataError> {
        match &self.packed {
            None => Ok(vec![self.examples.get(row as usize)?]),
            Some(rows) => {
                let row = rows[row as usize].iter();
                row.map(|&index| self.examples.get(index as usize))
                    .collect()
            }
        }
    }
}

impl DataLoader {
    /// A loader at the start of the first epoch. With no examples, [`Self::next_step`] gives empty steps.
    pub fn new(examples: Arc<Examples>, options: LoaderOptions) -> Self {
        let mut loader = Self {
            // The stream of the packing order is one that no epoch reaches.
            rows: Rows::new(examples, &options, u64::MAX),
            order: Vec::new(),
            options,
            state: LoaderState::default(),
            stream: None,
            has_ended: false,
        };
        loader.shuffle();
        loader
    }

    /// A loader at the first example of data that is read while the run goes on.
    ///
    /// # Errors
    /// When the first block cannot be read.
    pub(crate) fn streamed(stream: Box<Stream>, options: LoaderOptions) -> Result<Self, DataError> {
        let empty = Rows {
            examples: Arc::default(),
            packed: None,
        };
        let mut loader = Self {
            rows: empty,
            order: Vec::new(),
            options,
            state: LoaderState {
                block: Some(BlockState::default()),
                ..LoaderState::default()
            },
            stream: Some(stream),
            has_ended: false,
        };
        loader.load_block()?;
        Ok(loader)
    }

    /// Optimizer steps in one epoch; `None` where the data is streamed.
    pub fn steps_per_epoch(&self) -> Option<usize> {
        let steps = self.rows.len().div_ceil(self.rows_per_step()).max(1);
        self.stream.is_none().then_some(steps)
    }

    /// Examples, those of the current block where the data is streamed.
    pub fn examples(&self) -> &Examples {
        &self.rows.examples
    }

    /// Number of rows, which are single examples unless packed; of the current block where the data is streamed.
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Where the loader stands.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to `state`, as if all before it had been given out.
    ///
    /// # Errors
    /// When streamed data cannot be read again.
    pub fn restore(&mut self, state: LoaderState) -> Result<(), DataError> {
        self.has_ended = false;
        self.state = LoaderState {
            block: self
                .stream
                .as_ref()
                .map(|_| state.block.unwrap_or_default()),
            ..state
        };
        match (&mut self.stream, self.state.block) {
            (Some(stream), Some(block)) => {
                stream.seek(block.start)?;
                self.load_block()?;
                self.state.index = state.index;
            }
            _ => self.shuffle(),
        }
        Ok(())
    }

    /// The micro-batches of the next optimizer step; a step never spans two epochs.
    ///
    /// # Errors
    /// When the tokens cannot be read back, or streamed data has malformed records.
    pub fn next_step(&mut self) -> Result<StepBatch, DataError> {
        let mut rows: Vec<Vec<Example>> = Vec::new();
        while rows.len() < self.rows_per_step() && !self.rows.examples.is_empty() {
            if self.state.index >= self.rows.len() && !self.advance(rows.is_empty())? {
                break;
            }
            rows.push(self.rows.get(self.order[self.state.index])?);
            self.state.index += 1;
        }
        let mut sources: Vec<Source> = rows
            .iter()
            .flatten()
            .map(|example| example.source.clone())
            .collect();
        sources.dedup();
        let micro_batches: Vec<Batch> = rows
            .chunks(self.options.batch_size.max(1))
            .map(|rows| Batch::collate(rows.iter().flatten()))
            .collect();
        let num_targets = micro_batches.iter().map(Batch::num_targets).sum();
        let part = match &self.stream {
            Some(stream) => stream.progress(),
            None => self.state.index as f64 / self.rows.len().max(1) as f64,
        };
        Ok(StepBatch {
            micro_batches,
            num_targets,
            epoch: self.state.epoch as f64 + part,
            sources,
        })
    }

    /// Goes to the next block or, if `may_end`, to the next epoch. Says whether there are rows.
    fn advance(&mut self, may_end: bool) -> Result<bool, DataError> {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.has_ended) {
            let start = stream.place();
            let number = self.state.block.map_or(0, |block| block.number + 1);
            let before = self.state;
            self.state.block = Some(BlockState { number, start });
            if self.load_block()? {
                return Ok(true);
            }
            self.state = before;
            self.has_ended = true;
        }
        if !may_end {
            return Ok(false);
        }
        self.has_ended = false;
        self.state.epoch += 1;
        self.state.index = 0;
        if self.stream.is_some() {
            self.state.block = Some(BlockState::default());
            return self.load_block();
        }
        self.shuffle();
        Ok(true)
    }

    /// Loads the block that the stream stands at. `false` at the end of a pass.
    fn load_block(&mut self) -> Result<bool, DataError> {
        let Some(stream) = &mut self.stream else {
            return Ok(false);
        };
        let Some(examples) = stream.next_block()? else {
            return Ok(false);
        };
        let block = self.state.block.map_or(0, |block| block.number as u64);
        self.rows = Rows::new(Arc::new(examples), &self.options, u64::MAX - 1 - block);
        self.state.index = 0;
        self.shuffle();
        Ok(true)
    }

    fn rows_per_step(&self) -> usize {
        self.options.batch_size.max(1) * self.options.gradient_accumulation.max(1)
    }

    fn shuffle(&mut self) {
        let block = self
            .state
            .block
            .map_or(0, |block| (block.number as u64) << 20);
        let stream = self.state.epoch as u64 + block;
        self.order = (0..self.rows.len() as u32).collect();
        self.order.shuffle(&mut rng(self.options.seed, stream));
    }
}

/// `examples` in their order, `batch_size` (pairs, where they are pairs) at a time: for evaluation.
pub fn sequential_batches(
    examples: &Examples,
    batch_size: usize,
) -> impl Iterator<Item = Result<Batch, DataError>> + '_ {
    let size = batch_size.max(1) * examples.per_pair();
    (0..examples.len()).step_by(size).map(move |start| {
        let end = (start + size).min(examples.len());
        let examples = (start..end).map(|index| examples.get(index));
        let examples = examples.collect::<Result<Vec<_>, _>>()?;
        Ok(Batch::collate(&examples))
    })
}

fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
