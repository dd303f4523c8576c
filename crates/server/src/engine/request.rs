//! What goes into the engine and what comes out of it: plain data, no tensors.

use model_qwen::{Constraint, SamplingParams};

use super::error::SequenceError;

/// One sequence to generate. A request for `n` choices becomes `n` of these.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Token ids of the prompt, never empty, all below the vocabulary size.
    pub prompt: Vec<u32>,
    /// How the next token is chosen.
    pub sampling: SamplingParams,
    /// Which tokens may come, if not all: of the model's vocabulary, before its first token.
    pub constraint: Option<Constraint>,
    /// Most tokens to generate, at least 1; prompt and output together fit the context.
    pub max_tokens: usize,
    /// No stop token may be chosen before this many tokens were generated, unless the constraint lets no other one come.
    pub min_tokens: usize,
    /// Token ids that end the sequence, with the model's end-of-sequence ids unless `ignore_eos` was asked for.
    pub stop_token_ids: Vec<u32>,
    /// Name of a loaded LoRA adapter, or the base model.
    pub adapter: Option<String>,
    /// Requests with different salts never share prefix-cache blocks.
    pub cache_salt: Option<String>,
    /// Report the log-probabilities of the prompt's tokens, with this many alternatives each.
    pub prompt_logprobs: Option<usize>,
}

/// One text to make a vector of.
#[derive(Clone, Debug, Default)]
pub struct PoolRequest {
    /// Token ids, never empty, all below the vocabulary size.
    pub prompt: Vec<u32>,
    /// Name of a loaded LoRA adapter, or the base model.
    pub adapter: Option<String>,
    /// Requests with different salts never share prefix-cache blocks.
    pub cache_salt: Option<String>,
}

impl PoolRequest {
    /// The same as the engine's other parts see it: one token, which nobody chooses.
    pub(super) fn generate(self) -> GenerateRequest {
        GenerateRequest {
            prompt: self.prompt,
            sampling: SamplingParams::default(),
            constraint: None,
            max_tokens: 1,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            adapter: self.adapter,
            cache_salt: self.cache_salt,
            prompt_logprobs: None,
        }
    }
}

/// One event of a sequence. The order is: at most one `PromptLogprobs`, any number of `Token` or one `Pooled`, then `Finished` or
/// `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineOutput {
    /// One entry per prompt token; the first is `None` (nothing precedes it). Only if it was asked for.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// A generated token. A stop token is sent too, right before `Finished { reason: Stop }`.
    Token {
        /// The chosen token.
        id: u32,
        /// Present if `sampling.logprobs` is set.
        logprobs: Option<TokenLogprobs>,
        /// How many tokens of the prompt came from the prefix cache.
        num_cached_tokens: usize,
    },
    /// The vector of a [`PoolRequest`].
    Pooled {
        /// The pooled hidden states, after the final norm.
        values: Vec<f32>,
        /// How many tokens of the prompt came from the prefix cache.
        num_cached_tokens: usize,
    },
    /// The sequence is complete and its blocks are free.
    Finished {
        /// Why it ended.
        reason: FinishReason,
    },
    /// The sequence is over before its end, and its blocks are free.
    Failed(SequenceError),
}

/// Why a sequence is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

impl FinishReason {
    /// The API's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Numbers at one position, as `SamplingParams::logprobs_mode` says: log-probabilities (natural logarithm) or logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen (or given, for a prompt) token.
    pub id: u32,
    /// Its number.
    pub logprob: f32,
    /// The most probable tokens, best first, with their numbers.
    pub top: Vec<(u32, f32)>,
}
