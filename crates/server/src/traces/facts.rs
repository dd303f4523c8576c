//! What a span tells.

use std::time::{Duration, Instant, SystemTime};

use super::context::Context;

/// What the engine knows of a sequence that has ended.
#[derive(Clone, Debug)]
pub struct SequenceSpan {
    /// When it came to the engine.
    pub submitted: Instant,
    /// Its first step, if it had one.
    pub scheduled: Option<Instant>,
    /// Its first token.
    pub first_token: Option<Instant>,
    /// Its last token.
    pub last_token: Option<Instant>,
    /// Tokens of its prompt.
    pub num_prompt_tokens: usize,
    /// Its tokens.
    pub num_tokens: usize,
    /// Most tokens that it may have.
    pub max_tokens: usize,
    /// Its sampling temperature.
    pub temperature: f32,
    /// The part of the tokens that it is sampled from.
    pub top_p: f32,
    /// Its adapter.
    pub adapter: Option<String>,
}

/// What is known of a request when it comes.
#[derive(Debug)]
pub(super) struct RequestFacts {
    pub(super) context: Context,
    pub(super) request_id: String,
    pub(super) route: String,
    pub(super) model: String,
    pub(super) began: (SystemTime, Instant),
}

/// What a span learns on its way.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    pub(super) sequences: Vec<SequenceSpan>,
    pub(super) num_choices: Option<usize>,
    pub(super) end: Option<(Duration, u16)>,
}
