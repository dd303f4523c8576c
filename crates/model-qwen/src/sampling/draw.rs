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

impl Sampler {
    /// How to draw the token that comes after `ahead` others that are not known yet, if that takes nothing but its logits: no
    /// penalties, biases or log-probabilities. [`Sampler::observe`] the token then.
    pub fn draw(&mut self, ahead: usize) -> Option<Draw> {
        if self.is_argmax() {
            return Some(Draw::default());
        }
        let params = &self.params;
        let needs_more =
            params.logprobs.is_some() || !params.logit_bias.is_empty() || params.has_penalties();
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
}
