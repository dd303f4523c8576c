//! The parameters of sampling and their ranges.

use super::{LogprobsMode, ThinkingBudget};

/// A sampling parameter out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{param}: expected {expected}, found {found}")]
pub struct SamplingError {
    /// The parameter's name, as in the API.
    pub param: &'static str,
    /// The range it takes.
    pub expected: &'static str,
    /// What was given.
    pub found: String,
}

/// How to draw the next token; names, ranges and meaning as in vLLM's `SamplingParams`.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 (below 1e-5) is greedy: always the most likely token, the one with
    /// the lowest id if several are.
    pub temperature: f32,
    /// Keep the k most likely tokens and those that tie with the last of them. 0 is off.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens whose probabilities add up to at least this.
    /// 1 is off.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the most likely one. 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the output.
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the output. 0 is off.
    pub presence_penalty: f32,
    /// Subtracted as many times as the token is in the output. 0 is off.
    pub frequency_penalty: f32,
    /// How many of the last tokens of prompt and output the three penalties look at; `None` is all of them.
    pub penalty_window: Option<usize>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The only tokens that may be drawn; `None` allows all.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Runs of tokens that may not come in the output, none of them empty: the last token of one is not drawn after the others.
    pub bad_words: Vec<Vec<u32>>,
    /// Makes the draws reproducible.
    pub seed: Option<u64>,
    /// Report this many of the most likely tokens. `Some(0)`: only the chosen one's log-probability.
    pub logprobs: Option<usize>,
    /// Which numbers these are.
    pub logprobs_mode: LogprobsMode,
    /// How long the text may reason.
    pub thinking_budget: Option<ThinkingBudget>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            seed: None,
            logprobs: None,
            logprobs_mode: LogprobsMode::default(),
            thinking_budget: None,
        }
    }
}

impl SamplingParams {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Checks every parameter's range.
    ///
    /// # Errors
    /// Names the first parameter that is out of range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |param, value: f32, ok: bool, expected| {
            if ok && value.is_finite() {
                return Ok(());
            }
            Err(SamplingError {
                param,
                expected,
                found: value.to_string(),
            })
        };
        let penalty = "a number from -2 to 2";
        check(
            "temperature",
            self.temperature,
            self.temperature >= 0.0,
            "a finite number, 0 or more",
        )?;
        check(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "a number above 0, up to 1",
        )?;
        check(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "a number from 0 to 1",
        )?;
        check(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty > 0.0,
            "a finite number above 0",
        )?;
        check(
            "presence_penalty",
            self.presence_penalty,
            (-2.0..=2.0).contains(&self.presence_penalty),
            penalty,
        )?;
        check(
            "frequency_penalty",
            self.frequency_penalty,
            (-2.0..=2.0).contains(&self.frequency_penalty),
            penalty,
        )?;
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err(SamplingError {
                param: "allowed_token_ids",
                expected: "at least one token id",
                found: "an empty list".to_owned(),
            });
        }
        if self.bad_words.iter().any(Vec::is_empty) {
            return Err(SamplingError {
                param: "bad_words",
                expected: "words of at least one token",
                found: "an empty one".to_owned(),
            });
        }
        for &(_, bias) in &self.logit_bias {
            check(
                "logit_bias",
                bias,
                (-100.0..=100.0).contains(&bias),
                "numbers from -100 to 100",
            )?;
        }
        Ok(())
    }

    /// [`SamplingParams::validate`], and that the tokens that it names exist.
    ///
    /// # Errors
    /// Names the first parameter that is out of range.
    pub fn validate_for_vocab(&self, vocab_size: usize) -> Result<(), SamplingError> {
        self.validate()?;
        let biased = self.logit_bias.iter().map(|(id, _)| ("logit_bias", *id));
        let allowed = self.allowed_token_ids.iter().flatten();
        let allowed = allowed.map(|id| ("allowed_token_ids", *id));
        let bad = self.bad_words.iter().flatten();
        let mut ids = biased
            .chain(allowed)
            .chain(bad.map(|id| ("bad_words", *id)));
        match ids.find(|(_, id)| *id as usize >= vocab_size) {
            None => Ok(()),
            Some((param, id)) => Err(SamplingError {
                param,
                expected: "token ids of the vocabulary",
                found: format!("{id} (the vocabulary has {vocab_size} tokens)"),
            }),
        }
    }

    /// Whether some tokens may not be drawn.
    pub(super) fn has_exclusions(&self) -> bool {
        self.allowed_token_ids.is_some() || !self.bad_words.is_empty()
    }

    /// Whether tokens that came up before have other logits.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// A logit after the penalties of a token that came up `num_output` times in the output, and at least once before or in it.
    pub(super) fn penalized(&self, logit: f32, num_output: u32) -> f32 {
        let repeated = if logit > 0.0 {
            logit / self.repetition_penalty
        } else {
            logit * self.repetition_penalty
        };
        let presence = if num_output > 0 {
            self.presence_penalty
        } else {
            0.0
        };
        repeated - self.frequency_penalty * num_output as f32 - presence
    }
}
