//! What a device has to know to draw a token itself.

use super::ahead::Ahead;
use super::changes::LogitChanges;
use super::{GREEDY_BELOW, Sampler};

/// How a token is drawn from a row of logits, by [`SamplingParams`](super::SamplingParams); the default takes the most likely
/// token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draw {
    /// What logits are multiplied with before they become weights; 0 takes the most likely token.
    pub scale: f32,
    /// The random number, in [0, 1].
    pub uniform: f32,
    /// Most likely tokens to keep; 0 = all.
    pub top_k: u32,
    /// Share of the weights to keep.
    pub top_p: f32,
    /// Least weight to keep, as a share of the largest.
    pub min_p: f32,
    /// What is changed of the logits before; `None` if nothing is.
    pub changes: Option<LogitChanges>,
    /// Whether the host wants to know the logits as they are before: for log-probabilities.
    pub reads_logits: bool,
}

impl Draw {
    /// Whether it takes the most likely token of the logits as they are.
    pub fn is_argmax(&self) -> bool {
        self.scale == 0.0 && self.changes.is_none()
    }

    /// Integers of [`Draw::words`].
    pub const WORDS: usize = 5;

    /// The fields as a device reads them, without the changes.
    pub fn words(&self) -> [i32; Self::WORDS] {
        let float = |value: f32| value.to_bits() as i32;
        [
            float(self.scale),
            float(self.uniform),
            self.top_k as i32,
            float(self.top_p),
            float(self.min_p),
        ]
    }
}

/// Tokens that the host draws after one that a device couldn't draw, since that step was in vain.
const UNDRAWN: u64 = 64;

impl Sampler {
    /// Whether a device may draw the next tokens, and the host doesn't want their logits. See [`Sampler::draw`].
    pub fn draws_on_device(&self) -> bool {
        self.may_draw() && !self.has_logprobs()
    }

    fn may_draw(&self) -> bool {
        let params = &self.params;
        let reads_changed_logits = params.logprobs.is_some() && params.logprobs_mode.is_processed();
        params.allowed_token_ids.is_none()
            && (params.penalty_window.is_none() || !params.has_penalties())
            && !reads_changed_logits
            && self.num_output >= self.draws_from
    }

    /// How a device draws the token that comes after those `ahead`, none of which is in `banned`. [`Sampler::observe`] the token then,
    /// or call [`Sampler::undrawn`]. Where [`Sampler::may_be_constrained`], the logits have to be those of [`Sampler::mask`] alone,
    /// which is known when the tokens before are.
    ///
    /// `None` where only some tokens are allowed, where penalties look at the last tokens only, where log-probabilities are wanted of
    /// the logits as they are drawn from, and for some tokens after one that a device couldn't draw.
    pub fn draw(&mut self, ahead: Ahead<'_>, banned: &[u32]) -> Option<Draw> {
        if !self.may_draw() {
            return None;
        }
        let changes = self.changes(ahead, banned);
        let reads_logits = self.has_logprobs();
        if self.params.temperature < GREEDY_BELOW {
            return Some(Draw {
                changes,
                reads_logits,
                ..Draw::default()
            });
        }
        let params = &self.params;
        let (top_p, min_p) = (params.top_p, params.min_p);
        Some(Draw {
            scale: self.scale(),
            top_k: u32::try_from(params.top_k).unwrap_or(0),
            top_p,
            min_p,
            uniform: self.uniform(ahead.num()) as f32,
            changes,
            reads_logits,
        })
    }

    /// Takes note that a device couldn't draw the token of [`Sampler::draw`]: the host draws this one and the next ones.
    pub fn undrawn(&mut self) {
        self.draws_from = self.num_output + UNDRAWN;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sampling::{LogprobsMode, SamplingParams};

    #[test]
    fn the_host_draws_for_a_while_after_a_device_could_not() {
        let mut sampler = Sampler::new(&SamplingParams::default(), &[], 10);
        assert!(sampler.draw(Ahead::NONE, &[]).is_some());
        sampler.undrawn();
        for _ in 0..UNDRAWN {
            assert_eq!(sampler.draw(Ahead::NONE, &[]), None);
            sampler.observe(1);
        }
        assert!(sampler.draw(Ahead::NONE, &[]).is_some());
    }

    #[test]
    fn the_host_draws_what_a_device_does_not_know() {
        let draws = |params: SamplingParams| {
            let mut sampler = Sampler::new(&params, &[1, 2], 10);
            sampler.draw(Ahead::NONE, &[]).is_some()
        };
        let penalty = SamplingParams {
            repetition_penalty: 1.2,
            ..SamplingParams::default()
        };
        assert!(draws(penalty.clone()));
        assert!(!draws(SamplingParams {
            penalty_window: Some(1),
            ..penalty
        }));
        // A window without penalties has no effect.
        assert!(draws(SamplingParams {
            penalty_window: Some(1),
            ..SamplingParams::default()
        }));
        for (_, logprobs_mode) in LogprobsMode::ALL {
            let params = SamplingParams {
                logprobs: Some(2),
                logprobs_mode,
                ..SamplingParams::default()
            };
            assert_eq!(draws(params), !logprobs_mode.is_processed());
        }
        assert!(!draws(SamplingParams {
            allowed_token_ids: Some(vec![3]),
            ..SamplingParams::default()
        }));
    }
}
