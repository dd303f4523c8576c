//! What the engine counts of its sequences: vLLM's histograms of requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::histogram::{Histogram, PREEMPTIONS, REQUEST_SECONDS, STEP_TOKENS, TOKEN_SECONDS};

/// How a sequence ended, in vLLM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A stop token or a stop string, or a vector.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The client went away.
    Abort,
    /// The device or the engine failed.
    Error,
}

impl Ended {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// Counts of sequences that have ended, and of steps.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the metrics")]
pub struct RequestMetrics {
    ended: [AtomicU64; Ended::ALL.len()],
    pub prompt_tokens: Histogram,
    pub generation_tokens: Histogram,
    pub max_tokens: Histogram,
    pub computed_prompt_tokens: Histogram,
    pub num_preemptions: Histogram,
    pub iteration_tokens: Histogram,
    pub queue_time: Histogram,
    pub prefill_time: Histogram,
    pub decode_time: Histogram,
    pub inference_time: Histogram,
    pub time_per_output_token: Histogram,
}

impl RequestMetrics {
    /// Nothing counted yet; no sequence is longer than `max_model_len`.
    pub(super) fn new(max_model_len: usize) -> Self {
        let tokens = || Histogram::of_tokens(max_model_len);
        let seconds = || Histogram::new(&REQUEST_SECONDS);
        Self {
            ended: Default::default(),
            prompt_tokens: tokens(),
            generation_tokens: tokens(),
            max_tokens: tokens(),
            computed_prompt_tokens: tokens(),
            num_preemptions: Histogram::new(&PREEMPTIONS),
            iteration_tokens: Histogram::new(&STEP_TOKENS),
            queue_time: seconds(),
            prefill_time: seconds(),
            decode_time: seconds(),
            inference_time: seconds(),
            time_per_output_token: Histogram::new(&TOKEN_SECONDS),
        }
    }

    /// Sequences that ended so.
    pub fn num_ended(&self, how: Ended) -> u64 {
        self.ended[how as usize].load(Ordering::Relaxed)
    }

    /// Counts a sequence that never ran.
    pub(super) fn count(&self, how: Ended) {
        self.ended[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a sequence that has ended.
    pub(super) fn record(&self, how: Ended, lengths: SequenceLengths, times: &SequenceTimes) {
        self.count(how);
        let Some(scheduled) = times.scheduled else {
            return;
        };
        let SequenceLengths {
            num_prompt,
            num_generated,
            max_tokens,
        } = lengths;
        let observe = |histogram: &Histogram, value: usize| histogram.observe_value(value as f64);
        observe(&self.prompt_tokens, num_prompt);
        observe(&self.generation_tokens, num_generated);
        observe(
            &self.computed_prompt_tokens,
            num_prompt.saturating_sub(times.num_cached),
        );
        observe(&self.num_preemptions, times.num_preemptions);
        if let Some(max_tokens) = max_tokens {
            observe(&self.max_tokens, max_tokens);
        }
        let now = Instant::now();
        self.queue_time.observe(scheduled - times.submitted);
        let last = times.last_token.unwrap_or(now);
        self.inference_time.observe(last - scheduled);
        let Some(first) = times.first_token else {
            return;
        };
        self.prefill_time.observe(first - scheduled);
        self.decode_time.observe(last - first);
        if let Some(more) = num_generated.checked_sub(1).filter(|&more| more > 0) {
            let seconds = (last - first).as_secs_f64() / more as f64;
            self.time_per_output_token.observe_value(seconds);
        }
    }
}

/// How long a sequence has become.
pub(super) struct SequenceLengths {
    /// Tokens of its prompt.
    pub(super) num_prompt: usize,
    /// Tokens after the prompt.
    pub(super) num_generated: usize,
    /// Most tokens after the prompt; `None` for a sequence that wants a vector.
    pub(super) max_tokens: Option<usize>,
}

/// What a sequence has gone through.
#[derive(Debug)]
pub(super) struct SequenceTimes {
    pub(super) submitted: Instant,
    pub(super) scheduled: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    pub(super) num_preemptions: usize,
    num_cached: usize,
}

impl SequenceTimes {
    pub(super) fn new(submitted: Instant) -> Self {
        Self {
            submitted,
            scheduled: None,
            first_token: None,
            last_token: None,
            num_preemptions: 0,
            num_cached: 0,
        }
    }

    /// Takes note of the first step.
    pub(super) fn schedule(&mut self, num_cached: usize, now: Instant) {
        if self.scheduled.is_none() {
            self.scheduled = Some(now);
            self.num_cached = num_cached;
        }
    }

    /// Takes note of a token, or of a vector.
    pub(super) fn token(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }
}
