//! What a device has to know to draw a token itself.

use super::Sampler;

/// How a token is drawn from a row of logits, by [`SamplingParams`](super::SamplingParams) of which nothing else is set; the
/// default takes the most likely token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
}

impl Draw {
    /// Whether it takes the most likely token.
    pub fn is_argmax(&self) -> bool {
        self.scale == 0.0
    }

    /// Integers of [`Draw::words`].
    pub const WORDS: usize = 5;

    /// The fields as a device reads them.
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
    /// How a device draws the token that comes after `ahead` others that are not known yet. [`Sampler::observe`] the token then,
    /// or call [`Sampler::undrawn`]. Where [`Sampler::may_be_constrained`], the logits have to be those of [`Sampler::mask`] alone,
    /// which is known when the tokens before are.
    ///
    /// `None` where the draw takes more than the logits: with `banned` or excluded tokens, penalties, biases or log-probabilities, and for
    /// some tokens after one that a device couldn't draw.
    pub fn draw(&mut self, ahead: usize, banned: &[u32]) -> Option<Draw> {
        if !banned.is_empty() || self.num_output < self.draws_from {
            return None;
        }
        if self.is_argmax() {
            return Some(Draw::default());
        }
        let params = &self.params;
        let needs_more = params.logprobs.is_some()
            || !params.logit_bias.is_empty()
            || params.has_exclusions()
            || params.has_penalties();
        if needs_more {
            return None;
        }
        let (top_p, min_p) = (params.top_p, params.min_p);
        Some(Draw {
            scale: self.scale(),
            top_k: u32::try_from(params.top_k).unwrap_or(0),
            top_p,
            min_p,
            uniform: self.uniform(ahead) as f32,
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
    use crate::sampling::SamplingParams;

    #[test]
    fn the_host_draws_for_a_while_after_a_device_could_not() {
        let mut sampler = Sampler::new(&SamplingParams::default(), &[], 10);
        assert!(sampler.draw(0, &[]).is_some() && sampler.draw(0, &[3]).is_none());
        sampler.undrawn();
        for _ in 0..UNDRAWN {
            assert_eq!(sampler.draw(0, &[]), None);
            sampler.observe(1);
        }
        assert!(sampler.draw(0, &[]).is_some());
    }
}
