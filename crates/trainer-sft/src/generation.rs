//! Text of the model in training, or of any model that is in memory: many sequences at a time, by the code that serves.
//!
//! kv-paging's scheduler says what each step computes, model-qwen's [`GraphRunner`] computes steps of one token per sequence,
//! and [`model_qwen::choose()`] takes the tokens. Weights and adapters are those of the model itself, without a copy. Equal
//! prompts are computed once: the later ones find the blocks of the first one in the prefix cache.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use burn::tensor::DType;
use kv_paging::{
    CacheKey, Chunk, DecodeToken, KvShape, NewSequence, PagedKvCache, Sampled, Scheduler,
    SchedulerConfig, Step,
};
use model_qwen::{
    Ahead, Choice, ChoiceRow, DecodeRow, Dtype, GraphRunner, PackedStep, Pending, QwenConfig,
    QwenModel, Sampler, SamplingParams, Want, device_memory, is_gpu,
};
use thiserror::Error;

use crate::metrics::available_memory;

/// Tokens of one KV block.
const BLOCK_SIZE: usize = 16;
/// Tokens of one step; bounds the activations of long prompts.
const MAX_BATCHED_TOKENS: usize = 2048;
/// Sequences of one step.
const MAX_SEQS: usize = 256;
/// Part of the free memory that keys and values may take.
const PART_OF_MEMORY: u64 = 4;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// The most tokens to generate.
    pub max_tokens: usize,
}

/// What was generated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The tokens, with the one that ended them.
    pub tokens: Vec<u32>,
    /// Whether a stop token ended them, which is the last one then.
    pub has_ended: bool,
}

impl Completion {
    /// The tokens without the one that ended them.
    #[must_use]
    pub fn content(&self) -> &[u32] {
        match (self.has_ended, self.tokens.split_last()) {
            (true, Some((_, content))) => content,
            _ => &self.tokens,
        }
    }
}

/// Why nothing was generated.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// A prompt that does not fit.
    #[error("prompt {index}: {reason}")]
    Prompt {
        /// Which of the requests.
        index: usize,
        /// Why.
        reason: String,
    },
    /// The device could not compute a step.
    #[error("the device failed to compute a step: {0}")]
    Device(String),
}

/// Which weights, and when a text ends.
#[derive(Clone, Debug)]
pub struct Generator {
    /// Slot of the adapter; `None` is the model without any.
    pub slot: Option<usize>,
    /// Tokens that end a text.
    pub stop_token_ids: Vec<u32>,
}

impl Generator {
    /// Completions of all `requests`, in their order. `on_token` hears of each token (the number of the request comes first),
    /// and may end that completion.
    ///
    /// The adapters of the model are [stacked](QwenModel::stack_adapters) before, as they are now.
    ///
    /// # Errors
    /// A prompt that is empty, has unknown tokens or no room for an answer, and a device that fails.
    ///
    /// # Panics
    /// As [`QwenModel::stack_adapters`].
    pub fn generate(
        &self,
        model: &mut QwenModel,
        requests: &[Request],
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>, GenerationError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        check(model, requests)?;
        if self.slot.is_some() {
            model.stack_adapters();
        }
        let mut engine = Engine::new(self, model, requests)?;
        while engine.has_work() {
            engine.step(on_token)?;
        }
        Ok(engine.completions)
    }
}

/// Prompts that can be computed at all.
fn check(model: &QwenModel, requests: &[Request]) -> Result<(), GenerationError> {
    let (vocab, context) = (model.config.vocab_size, model.config.context_length());
    for (index, request) in requests.iter().enumerate() {
        let wrong = |reason: String| Err(GenerationError::Prompt { index, reason });
        let len = request.prompt.len();
        if len == 0 {
            return wrong("expected at least one token, found none".to_owned());
        }
        if len >= context {
            return wrong(format!(
                "expected fewer than {context} tokens, the model's context, found {len}"
            ));
        }
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= vocab) {
            return wrong(format!(
                "expected token ids below {vocab}, the size of the vocabulary, found {id}"
            ));
        }
    }
    Ok(())
}

/// All that one call needs: cache, scheduler, runner and a sampler for each sequence.
struct Engine<'a> {
    generator: &'a Generator,
    model: &'a QwenModel,
    requests: &'a [Request],
    scheduler: Scheduler,
    cache: PagedKvCache,
    runner: GraphRunner,
    samplers: Vec<Option<Sampler>>,
    completions: Vec<Completion>,
    /// Requests with the prompt of one that is being computed, behind that one.
    behind: HashMap<usize, VecDeque<usize>>,
}

impl<'a> Engine<'a> {
    fn new(
        generator: &'a Generator,
        model: &'a QwenModel,
        requests: &'a [Request],
    ) -> Result<Self, GenerationError> {
        let shape = shape(model, requests);
        let config = SchedulerConfig {
            max_num_seqs: MAX_SEQS.min(requests.len()),
            max_num_batched_tokens: MAX_BATCHED_TOKENS,
            block_size: BLOCK_SIZE,
            num_blocks: shape.num_blocks,
            max_model_len: model.config.context_length(),
            enable_prefix_caching: true,
        };
        let failed = |error: kv_paging::ConfigError| GenerationError::Device(error.to_string());
        let scheduler = Scheduler::new(config).map_err(failed)?;
        let vocab = model.config.vocab_size;
        let sampler =
            |request: &Request| Some(Sampler::new(&request.sampling, &request.prompt, vocab));
        let mut engine = Self {
            generator,
            model,
            requests,
            runner: GraphRunner::new(model, scheduler.config()),
            scheduler,
            cache: PagedKvCache::new(&shape, &model.device()),
            samplers: requests.iter().map(sampler).collect(),
            completions: vec![Completion::default(); requests.len()],
            behind: HashMap::new(),
        };
        let mut firsts: HashMap<&[u32], usize> = HashMap::new();
        for (index, request) in requests.iter().enumerate() {
            match firsts.get(request.prompt.as_slice()) {
                Some(&first) => engine.behind.entry(first).or_default().push_back(index),
                None => {
                    firsts.insert(&request.prompt, index);
                    engine.add(index)?;
                }
            }
        }
        Ok(engine)
    }

    fn add(&mut self, index: usize) -> Result<(), GenerationError> {
        let request = &self.requests[index];
        let sequence = NewSequence {
            id: index as u64,
            prompt: request.prompt.clone(),
            cache_key: CacheKey::default(),
            max_tokens: request.max_tokens,
            skip_reading_prefix_cache: false,
        };
        let refused = |error: kv_paging::AddError| GenerationError::Prompt {
            index,
            reason: error.to_string(),
        };
        self.scheduler.add(sequence).map_err(refused)
    }

    fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// One step of all scheduled sequences: launch, choose, commit.
    fn step(
        &mut self,
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<(), GenerationError> {
        let step = self.scheduler.schedule();
        let pending = match step.chunks.iter().all(Chunk::decodes) {
            true => self.decode(&step),
            false => self.forward(&step),
        };
        let chosen = self.choose(&step, pending)?;
        let mut sampled = Vec::with_capacity(chosen.len());
        for (chunk, token) in chosen {
            let index = chunk.id as usize;
            let has_ended = self.generator.stop_token_ids.contains(&token);
            let completion = &mut self.completions[index];
            completion.tokens.push(token);
            completion.has_ended = has_ended;
            let is_stopped = on_token(index, token).is_break();
            sampled.push(Sampled {
                id: chunk.id,
                token,
                finished: has_ended || is_stopped || chunk.reaches_max_len,
            });
        }
        self.scheduler.commit(&sampled);
        // The blocks of these prompts can be found from now on.
        for sampled in sampled {
            for index in self
                .behind
                .remove(&(sampled.id as usize))
                .unwrap_or_default()
            {
                self.add(index)?;
            }
        }
        Ok(())
    }

    /// Starts a step of one token per sequence.
    fn decode(&mut self, step: &Step) -> Pending {
        let draws = self.runner.records_steps();
        let rows = step.chunks.iter().map(|chunk| DecodeRow {
            follows: false,
            token: DecodeToken::Id(chunk.tokens[0]),
            position: chunk.start,
            adapter_slot: self.generator.slot,
            block_table: &chunk.block_table,
            draw: (self.samplers[chunk.id as usize].as_mut().filter(|_| draws))
                .and_then(|sampler| sampler.draw(Ahead::NONE, &[])),
            is_constrained: false,
        });
        let rows: Vec<DecodeRow<'_>> = rows.collect();
        self.runner.launch(self.model, &mut self.cache, &rows)
    }

    /// Computes the hidden states of chunks of any length, packed one after the other.
    fn forward(&mut self, step: &Step) -> Pending {
        let mut packed = PackedStep::default();
        for chunk in &step.chunks {
            let slot = self.generator.slot;
            packed.push(&chunk.tokens, chunk.start, slot, &chunk.block_table);
        }
        let ends = packed.last_rows();
        let hidden = packed.forward_rows(self.model, &mut self.cache, &ends); // [chunks, hidden]
        Pending::hidden_rows(hidden, ends)
    }

    /// Waits for the tokens of a step. A token that a device could not draw is missing: the next step computes it again.
    fn choose<'s>(
        &mut self,
        step: &'s Step,
        pending: Pending,
    ) -> Result<Vec<(&'s Chunk, u32)>, GenerationError> {
        let mut ends = 0;
        let mut sampling: Vec<(&Chunk, usize, Sampler)> = Vec::with_capacity(step.chunks.len());
        for chunk in &step.chunks {
            ends += chunk.tokens.len();
            if let Some(sampler) = self.samplers[chunk.id as usize].take_if(|_| chunk.samples) {
                sampling.push((chunk, ends - 1, sampler));
            }
        }
        let rows = sampling.iter_mut().map(|(_, row, sampler)| ChoiceRow {
            row: *row,
            want: Want::Token {
                sampler,
                banned: &[],
            },
        });
        let mut rows: Vec<ChoiceRow<'_>> = rows.collect();
        let choices = match rows.is_empty() {
            true => Vec::new(),
            false => (pending.tokens(self.model, &mut rows)).map_err(GenerationError::Device)?,
        };
        drop(rows);
        let mut chosen = Vec::with_capacity(choices.len());
        for ((chunk, _, sampler), choice) in sampling.into_iter().zip(choices) {
            self.samplers[chunk.id as usize] = Some(sampler);
            if let Choice::Token(token) = choice {
                chosen.push((chunk, token.id));
            }
        }
        Ok(chosen)
    }
}

/// A cache for the requests.
fn shape(model: &QwenModel, requests: &[Request]) -> KvShape {
    let device = model.device();
    let auto = if is_gpu(&device) {
        DType::BF16
    } else {
        DType::F32
    };
    let free = match is_gpu(&device) {
        true => device_memory(&device).map(|memory| memory.free),
        false => available_memory(),
    };
    let lengths = requests.iter().map(|request| {
        let answer = request.max_tokens.max(1);
        request.prompt.len().saturating_add(answer)
    });
    let dtype = Dtype::Auto.resolve(auto, &device);
    shape_for(&model.config, dtype, lengths, free)
}

/// A cache for as many sequences of these lengths as a part of the `free` memory has room for, and for the longest one in any case.
fn shape_for(
    config: &QwenConfig,
    dtype: DType,
    lengths: impl Iterator<Item = usize>,
    free: Option<u64>,
) -> KvShape {
    let mut shape = KvShape {
        num_layers: config.num_hidden_layers,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        block_size: BLOCK_SIZE,
        num_blocks: 0,
        dtype,
    };
    let room = free.map_or(usize::MAX, |free| {
        free as usize / PART_OF_MEMORY as usize / shape.bytes_per_block()
    });
    let context = config.context_length();
    let (mut longest, mut all) = (1, 0);
    for length in lengths {
        let blocks = length.min(context).div_ceil(BLOCK_SIZE);
        (longest, all) = (longest.max(blocks), all + blocks);
    }
    // Few sizes: a GPU keeps the memory of each for the next cache of that size.
    shape.num_blocks = all.next_power_of_two().min(room).max(longest);
    shape
}

/// Bytes of a GPU's cache for so many sequences of so many tokens.
pub(crate) fn cache_bytes(
    config: &QwenConfig,
    (sequences, tokens): (usize, usize),
    free: Option<u64>,
) -> u64 {
    let lengths = std::iter::repeat_n(tokens, sequences);
    let shape = shape_for(config, DType::BF16, lengths, free);
    (shape.num_blocks * shape.bytes_per_block()) as u64
}
