//! Sampling from the largest logits alone, where the others cannot change what is drawn.

use super::distribution::{Candidate, argmax, draw, exp, keep_top_p, sanitize, top_n};
use super::{GREEDY_BELOW, SampledToken, Sampler, SamplingParams};

/// The largest logits of a row of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct TopLogits {
    /// Tokens with their logits, in the order of their ids: all whose logit is larger than `bound`.
    pub entries: Vec<(u32, f32)>,
    /// No other logit is larger.
    pub bound: f32,
    /// Sum of `exp((logit - largest) * scale)` over the vocabulary, for the sampler's [`Sampler::scale`].
    pub total: f64,
}

impl TopLogits {
    /// Whether all others are impossible.
    fn is_complete(&self) -> bool {
        self.bound == f32::NEG_INFINITY
    }
}

impl Sampler {
    /// What logits are multiplied with before they become weights: the inverse of the temperature; 1 for greedy samplers.
    pub fn scale(&self) -> f32 {
        match self.params.temperature < GREEDY_BELOW {
            true => 1.0,
            false => 1.0 / self.params.temperature,
        }
    }

    /// Whether [`Sampler::sample_top`] may have an answer. It has none where all logits count: with log-probabilities, with
    /// biases, with tokens that may not come, with penalties that raise logits, and when temperature alone decides. Of the tokens
    /// that a constraint lets through, the sum of weights isn't known.
    pub fn takes_top(&self) -> bool {
        let params = &self.params;
        let is_greedy = params.temperature < GREEDY_BELOW;
        let has_limit = params.top_k > 0 || params.min_p > 0.0;
        params.logprobs.is_none()
            && params.logit_bias.is_empty()
            && !params.has_exclusions()
            && params.repetition_penalty >= 1.0
            && params.presence_penalty >= 0.0
            && params.frequency_penalty >= 0.0
            // Without top-k, top-p takes its share of a sum over all tokens.
            && (is_greedy || params.top_k > 0 || !(params.has_penalties() || self.is_constrained()))
            && (is_greedy || has_limit || params.top_p < 1.0)
    }

    /// Whether `num` of the largest logits suffice, without [`TopLogits::total`]: for greedy samplers, and with top-k.
    pub fn takes_largest(&self, num: usize) -> bool {
        let params = &self.params;
        let is_greedy = params.temperature < GREEDY_BELOW;
        self.takes_top() && (is_greedy || (1..=num).contains(&params.top_k))
    }

    /// As [`Sampler::sample`], from the largest logits. `None`, and nothing has changed, if a smaller one may count.
    pub fn sample_top(&mut self, top: &TopLogits, banned: &[u32]) -> Option<SampledToken> {
        let limited = self.params.top_k > 0;
        let is_greedy = self.params.temperature < GREEDY_BELOW;
        if !self.takes_top() || (!is_greedy && !limited && !banned.is_empty()) {
            return None;
        }
        let mask = self.mask();
        let allows = |id: &u32| mask.as_ref().is_none_or(|mask| mask.allows(*id));
        let allowed = top.entries.iter().filter(|(id, _)| allows(id));
        let (ids, mut logits): (Vec<u32>, Vec<f32>) = allowed.copied().unzip();
        sanitize(&mut logits);
        self.lower(&ids, &mut logits, banned);
        // Here ids are places in `ids`.
        let (best, max) = argmax(&logits);
        // Negative infinity is above no bound: then nothing is possible.
        if max <= top.bound {
            return None;
        }
        let place = match is_greedy {
            true => best,
            false => {
                self.collect_top(&logits, max, top)?;
                let u = self.uniform(0);
                draw(&self.candidates, u).unwrap_or(best)
            }
        };
        let id = self.instead_of(ids[place as usize]);
        self.observe(id);
        Some(SampledToken { id, logprobs: None })
    }

    /// Applies bans and penalties.
    fn lower(&mut self, ids: &[u32], logits: &mut [f32], banned: &[u32]) {
        let place = |id: &u32| ids.binary_search(id).ok();
        for place in banned.iter().filter_map(place) {
            logits[place] = f32::NEG_INFINITY;
        }
        for (id, seen) in &self.seen {
            if let Some(place) = place(id) {
                logits[place] = self.params.penalized(logits[place], seen.num_output);
            }
        }
    }

    /// Collects what top-k, top-p and min-p keep. `None` if smaller logits might be among it.
    fn collect_top(&mut self, logits: &[f32], max: f32, top: &TopLogits) -> Option<()> {
        let SamplingParams {
            top_k,
            top_p,
            min_p,
            ..
        } = *self.params;
        let scale = self.scale();
        let weigh = |logit: f32| exp((logit - max) * scale);
        let lowest = match top_k {
            0 => None,
            top_k => {
                let kth = top_n(logits, top_k, &mut self.scratch).get(top_k - 1);
                match top.is_complete() {
                    true => Some(kth.map_or(f32::NEG_INFINITY, |kth| kth.weight)),
                    false => Some(kth?.weight).filter(|kth| *kth > top.bound),
                }
            }
        };
        if top_k > 0 && lowest.is_none() {
            return None;
        }
        let above = |logit: f32| logit > top.bound && lowest.is_none_or(|lowest| logit >= lowest);
        let kept = (0..).zip(logits).filter(|(_, logit)| above(**logit));
        self.candidates.clear();
        self.candidates.extend(kept.map(|(id, &logit)| Candidate {
            id,
            weight: weigh(logit),
        }));
        self.candidates.retain(|c| c.weight > 0.0);
        let sum: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let total = if lowest.is_some() { sum } else { top.total };
        // Infinite logits have no sum.
        if !total.is_finite() {
            return None;
        }
        let reaches_p = sum >= f64::from(top_p) * total;
        let reaches_min_p = min_p > 0.0 && weigh(top.bound) < min_p;
        if lowest.is_none() && !reaches_min_p && (top_p >= 1.0 || !reaches_p) {
            return None;
        }
        if top_p < 1.0 {
            keep_top_p(&mut self.candidates, top_p, total, &mut self.scratch);
        }
        self.candidates.retain(|c| c.weight >= min_p);
        Some(())
    }
}
