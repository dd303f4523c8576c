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

/// One event of a sequence. The order is: at most one `PromptLogprobs`, any number of `Token`, then `Finished` or `Failed`.
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

/// Log-probabilities at one position, taken from the raw logits (before temperature and penalties).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen (or given, for a prompt) token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens, best first, with their log-probabilities.
    pub top: Vec<(u32, f32)>,
}
