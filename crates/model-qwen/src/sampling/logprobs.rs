//! Log-probabilities of tokens, of the model's own logits or of those that a token is drawn from.

use std::fmt;
use std::str::FromStr;

use super::distribution::{argmax, log_sum_exp, sanitize, top_n};
use super::{Candidate, GREEDY_BELOW, Sampler};

/// Which numbers are given as log-probabilities; names and meaning as in vLLM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogprobsMode {
    /// Log-probabilities of the model's own logits.
    #[default]
    RawLogprobs,
    /// The model's own logits.
    RawLogits,
    /// Log-probabilities that a token is drawn with: after masks, biases, penalties, the temperature, top-k, top-p and min-p. A
    /// greedy token has no temperature.
    ProcessedLogprobs,
    /// The logits of these.
    ProcessedLogits,
}

impl LogprobsMode {
    /// All, with vLLM's names.
    pub const ALL: [(&'static str, Self); 4] = [
        ("raw_logprobs", Self::RawLogprobs),
        ("raw_logits", Self::RawLogits),
        ("processed_logprobs", Self::ProcessedLogprobs),
        ("processed_logits", Self::ProcessedLogits),
    ];

    /// Whether they are of what a token is drawn from.
    pub(super) fn is_processed(self) -> bool {
        matches!(self, Self::ProcessedLogprobs | Self::ProcessedLogits)
    }

    /// What is subtracted from logits.
    fn normalizer(self, logits: &[f32]) -> f32 {
        match self {
            Self::RawLogprobs | Self::ProcessedLogprobs => log_sum_exp(logits),
            Self::RawLogits | Self::ProcessedLogits => 0.0,
        }
    }
}

impl fmt::Display for LogprobsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Self::ALL.iter();
        f.write_str(
            all.find(|(_, mode)| mode == self)
                .map_or("", |(name, _)| name),
        )
    }
}

impl FromStr for LogprobsMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        let found = all.find_map(|(name, mode)| (name == text).then_some(mode));
        found.ok_or_else(|| {
            format!(
                "expected one of {}",
                Self::ALL.map(|(name, _)| name).join(", ")
            )
        })
    }
}

/// Log-probabilities at one position, or logits: see [`LogprobsMode`].
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// That of the token in question.
    pub logprob: f32,
    /// The most likely tokens with theirs, best first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Log-probability of a given token and of the `num_top` most likely ones, as for the tokens of a
/// prompt, which are not drawn: there is no other than the model's own logits. NaN logits count as impossible.
pub fn logprobs_of(logits: &mut [f32], id: u32, num_top: usize, mode: LogprobsMode) -> Logprobs {
    sanitize(logits);
    let of_all = OfAll::new(logits, num_top, mode, &mut Vec::new());
    of_all.with(logit(logits, id))
}

fn logit(logits: &[f32], id: u32) -> f32 {
    let logit = logits.get(id as usize);
    logit.copied().unwrap_or(f32::NEG_INFINITY)
}

/// What is known before a token is chosen.
pub(super) struct OfAll {
    normalizer: f32,
    top: Vec<(u32, f32)>,
}

impl OfAll {
    fn new(
        logits: &[f32],
        num_top: usize,
        mode: LogprobsMode,
        scratch: &mut Vec<Candidate>,
    ) -> Self {
        let normalizer = mode.normalizer(logits);
        let top = top_n(logits, num_top, scratch).iter();
        Self {
            normalizer,
            top: top
                .map(|c| (c.id, log_prob(c.weight, normalizer)))
                .collect(),
        }
    }

    /// With the logit of the token that was chosen.
    pub(super) fn with(self, logit: f32) -> Logprobs {
        Logprobs {
            logprob: log_prob(logit, self.normalizer),
            top: self.top,
        }
    }
}

impl Sampler {
    /// What is wanted of the model's own logits.
    pub(super) fn of_raw(&mut self, logits: &[f32]) -> Option<OfAll> {
        let mode = self.params.logprobs_mode;
        let num_top = self.params.logprobs.filter(|_| !mode.is_processed())?;
        Some(OfAll::new(logits, num_top, mode, &mut self.scratch))
    }

    /// What is wanted of the logits that `id` was drawn from, which are changed to these.
    pub(super) fn of_processed(&mut self, logits: &mut [f32], id: u32) -> Option<Logprobs> {
        let mode = self.params.logprobs_mode;
        let num_top = self.params.logprobs.filter(|_| mode.is_processed())?;
        let is_possible = argmax(logits).1 > f32::NEG_INFINITY;
        if is_possible && self.params.temperature >= GREEDY_BELOW {
            if self.is_limited(logits.len()) {
                keep(&self.candidates, logits);
            }
            let scale = self.scale();
            logits.iter_mut().for_each(|logit| *logit *= scale);
        }
        let of_all = OfAll::new(logits, num_top, mode, &mut self.scratch);
        Some(of_all.with(logit(logits, id)))
    }
}

/// Makes all others impossible; the candidates are in the order of their ids.
fn keep(candidates: &[Candidate], logits: &mut [f32]) {
    let mut next = 0;
    for candidate in candidates {
        let place = candidate.id as usize;
        logits[next..place].fill(f32::NEG_INFINITY);
        next = place + 1;
    }
    logits[next..].fill(f32::NEG_INFINITY);
}

fn log_prob(logit: f32, normalizer: f32) -> f32 {
    if logit == f32::NEG_INFINITY {
        f32::NEG_INFINITY
    } else {
        logit - normalizer
    }
}
