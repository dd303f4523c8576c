//! One sequence from prompt to end: the shortest program that uses model, cache and sampler together.

use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor};
use kv_paging::{KvShape, PagedKvCache};
use lora_4bit::AdapterSelection;

use crate::choose::{Choice, ChoiceRow, Want, choose};
use crate::model::QwenModel;
use crate::packed_step::PackedStep;
use crate::sampling::{Sampler, SamplingParams};

/// Tokens of one KV block.
const BLOCK_SIZE: usize = 16;
/// Prompt tokens computed in one step; bounds the activations of a long prompt.
const CHUNK: usize = 512;

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the text; they are not part of the result.
    pub stop_token_ids: Vec<u32>,
    /// Slot of the LoRA adapter to use.
    pub adapter: Option<usize>,
}

/// The device could not compute a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device failed to compute a step: {0}")]
pub struct GenerateError(pub String);

/// Generates until a stop token, `max_tokens`, or `on_token` breaks; returns the generated tokens.
///
/// # Errors
/// When the device could not compute a step.
///
/// # Panics
/// When the prompt is empty or holds ids that are not below `vocab_size`.
pub fn generate(
    model: &QwenModel,
    request: &GenerateRequest,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>, GenerateError> {
    assert!(
        !request.prompt.is_empty(),
        "generate: the prompt has no token"
    );
    let mut sequence = SingleSequence::new(model, request);
    let mut sampler = Sampler::new(&request.sampling, &request.prompt, model.config.vocab_size);
    let mut output = Vec::new();
    let mut hidden = None;
    for chunk in request.prompt.chunks(CHUNK) {
        hidden = Some(sequence.step(chunk)); // [chunk, hidden]
    }
    while let Some(rows) = hidden.take() {
        if output.len() == request.max_tokens {
            break;
        }
        let token = next_token(model, &rows, &mut sampler)?;
        if request.stop_token_ids.contains(&token) {
            break;
        }
        output.push(token);
        if on_token(token).is_break() {
            break;
        }
        hidden = Some(sequence.step(&[token])); // [1, hidden]
    }
    Ok(output)
}

/// The token after the last row of hidden states, `[tokens, hidden]`.
fn next_token(
    model: &QwenModel,
    hidden: &Tensor<2>,
    sampler: &mut Sampler,
) -> Result<u32, GenerateError> {
    let mut last = [ChoiceRow {
        row: hidden.dims()[0] - 1,
        want: Want::Token {
            sampler,
            banned: &[],
        },
    }];
    let choices = choose(model, hidden, &mut last).map_err(GenerateError)?;
    match choices.as_slice() {
        [Choice::Token(token)] => Ok(token.id),
        other => unreachable!("a token was wanted of one row, not {other:?}"),
    }
}

/// A sequence that owns its whole cache: block `i` of its table is block `i` of the pool.
struct SingleSequence<'a> {
    model: &'a QwenModel,
    adapters: AdapterSelection,
    cache: PagedKvCache,
    block_table: Vec<u32>,
    len: usize,
}

impl<'a> SingleSequence<'a> {
    fn new(model: &'a QwenModel, request: &GenerateRequest) -> Self {
        let config = &model.config;
        let num_blocks = (request.prompt.len() + request.max_tokens).div_ceil(BLOCK_SIZE);
        let shape = KvShape {
            num_layers: config.num_hidden_layers,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            block_size: BLOCK_SIZE,
            num_blocks,
            dtype: DType::F32,
        };
        Self {
            model,
            adapters: match request.adapter {
                Some(slot) => AdapterSelection::All {
                    slot,
                    dropout: None,
                },
                None => AdapterSelection::Base,
            },
            cache: PagedKvCache::new(&shape, &model.device()),
            block_table: (0..num_blocks as u32).collect(),
            len: 0,
        }
    }

    /// Hidden states of the sequence's next tokens, `[tokens, hidden]`.
    fn step(&mut self, tokens: &[u32]) -> Tensor<2> {
        let mut step = PackedStep::default();
        step.push(tokens, self.len, None, &self.block_table);
        self.len += tokens.len();
        step.forward_with(self.model, &mut self.cache, &self.adapters)
    }
}
