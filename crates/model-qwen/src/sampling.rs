//! From logits to the next token, with vLLM's parameters and their meaning.
//!
//! Order: the constraint's tokens, allowed tokens, logit bias, bad words, banned tokens, penalties (repetition over prompt and output, frequency and
//! presence over the output; a window may leave older tokens out), temperature, top-k, top-p, min-p, draw. Log-probabilities are those
//! of the raw logits, before any of this, unless [`LogprobsMode`] says otherwise.
//!
//! Nothing sorts the vocabulary (151,936 tokens for Qwen): top-k and top-p select in linear time,
//! and plain temperature sampling sums weights by blocks.

mod ahead;
mod changes;
mod constrained;
mod distribution;
mod draw;
mod logprobs;
mod params;
mod seen;
mod thinking;
mod top;
mod window;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub use ahead::Ahead;
pub use changes::LogitChanges;
pub use constrained::RowMask;
use distribution::{
    Candidate, argmax, draw, draw_dense, exp, keep_top_p, sanitize, top_n, total_weight,
};
pub use draw::Draw;
pub use logprobs::{Logprobs, LogprobsMode, logprobs_of};
pub use params::{SamplingError, SamplingParams};
pub use thinking::ThinkingBudget;
pub use top::TopLogits;

use crate::constraint::Constraint;
use seen::Seen;
use thinking::Thinking;

/// Temperatures below this are greedy, as in vLLM.
const GREEDY_BELOW: f32 = 1e-5;

/// What [`Sampler::sample`] chose.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: u32,
    /// Log-probabilities, if [`SamplingParams::logprobs`] asks for them.
    pub logprobs: Option<Logprobs>,
}

/// Draws the tokens of one sequence. Holds its random state and the tokens seen so far.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Arc<SamplingParams>,
    /// Which tokens may come, if not all.
    constraint: Option<Constraint>,
    /// The budget of its reasoning, if it has one.
    thinking: Option<Thinking>,
    rng: ChaCha8Rng,
    /// Tokens so far: each one has a random number of its own.
    num_output: u64,
    /// Tokens after which a device may draw again.
    draws_from: u64,
    /// Empty unless a penalty is on.
    seen: HashMap<u32, Seen>,
    /// The tokens that count for penalties, oldest first; empty unless only the last ones do.
    recent: VecDeque<u32>,
    /// The output so far; empty unless some words may not come.
    output: Vec<u32>,
    /// Raw values of the logits that were changed in this step.
    changed: Vec<(u32, f32)>,
    candidates: Vec<Candidate>,
    scratch: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of the output of `prompt`. Equal seeds give equal tokens for equal
    /// logits; without a seed the random state comes from the operating system.
    ///
    /// `params` is taken as it is: call [`SamplingParams::validate`] at the boundary. Ids of
    /// `prompt` from `vocab_size` on are ignored.
    pub fn new(params: &SamplingParams, prompt: &[u32], vocab_size: usize) -> Self {
        let rng = match params.seed {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed),
            None => rand::make_rng(),
        };
        let mut sampler = Self {
            params: Arc::new(params.clone()),
            constraint: None,
            thinking: params.thinking_budget.map(Thinking::new),
            rng,
            num_output: 0,
            draws_from: 0,
            seen: HashMap::new(),
            recent: VecDeque::new(),
            output: Vec::new(),
            changed: Vec::new(),
            candidates: Vec::new(),
            scratch: Vec::new(),
        };
        if params.has_penalties() {
            let ids = prompt.iter().copied();
            sampler.count_prompt(ids.filter(|id| (*id as usize) < vocab_size));
        }
        sampler
    }

    /// The sampler that this one becomes when it observes `token`. It takes its memory from `reuse`, any sampler that nobody
    /// needs, where that is large enough.
    #[must_use]
    pub fn after(&self, token: u32, reuse: Option<Self>) -> Self {
        let mut sampler = match reuse {
            Some(reuse) => Self {
                params: Arc::clone(&self.params),
                constraint: self.constraint.clone(),
                thinking: self.thinking.clone(),
                rng: self.rng.clone(),
                num_output: self.num_output,
                draws_from: self.draws_from,
                seen: cloned_into(reuse.seen, &self.seen),
                recent: cloned_into(reuse.recent, &self.recent),
                output: cloned_into(reuse.output, &self.output),
                ..reuse
            },
            None => self.clone(),
        };
        sampler.observe(token);
        sampler
    }

    /// Draws the next token and counts it for the penalties.
    ///
    /// `logits` (`[vocab]`) is changed in place; `banned` tokens are never drawn, as long as
    /// another one is left. NaN counts as impossible. If no token is possible, the answer is the
    /// lowest id that is not banned; with a constraint, the most likely one that it lets through.
    pub fn sample(&mut self, logits: &mut [f32], banned: &[u32]) -> SampledToken {
        sanitize(logits);
        let of_raw = self.of_raw(logits);
        let best = self.apply_mask(logits);
        let row = Row {
            logits: &mut *logits,
            ids: None,
        };
        let id = self.choose_adjusted(row, banned, best);
        let id = self.instead_of(id);
        // The first record of an id holds its raw value.
        let changed = self.changed.iter().find(|(changed, _)| *changed == id);
        let raw = match changed {
            Some((_, raw)) => *raw,
            None => logits
                .get(id as usize)
                .copied()
                .unwrap_or(f32::NEG_INFINITY),
        };
        let logprobs = match of_raw {
            Some(of_raw) => Some(of_raw.with(raw)),
            None => self.of_processed(logits, id),
        };
        self.observe(id);
        SampledToken { id, logprobs }
    }

    /// The token that the parameters choose. Where none is possible, `best`: its place in the row.
    fn choose_adjusted(&mut self, mut row: Row<'_>, banned: &[u32], best: Option<u32>) -> u32 {
        self.changed.clear();
        self.keep_allowed(&mut row);
        self.apply_bias(&mut row);
        self.exclude_bad_words(&mut row);
        for &id in banned {
            change(&mut row, &mut self.changed, id, |_| f32::NEG_INFINITY);
        }
        self.apply_penalties(&mut row);
        let place = self.choose(row.logits, banned, best);
        match row.ids {
            None => place,
            Some(ids) => ids.get(place as usize).copied().unwrap_or(place),
        }
    }

    /// Counts an output token that was not drawn by this sampler: for the penalties and the constraint, and so that the next one
    /// gets another random number.
    pub fn observe(&mut self, id: u32) {
        self.num_output += 1;
        if let Some(constraint) = &mut self.constraint {
            constraint.consume(id);
        }
        if let Some(thinking) = &mut self.thinking {
            thinking.observe(id);
        }
        if self.params.has_penalties() {
            self.count_output(id);
        }
        if !self.params.bad_words.is_empty() {
            self.output.push(id);
        }
    }

    fn keep_allowed(&self, row: &mut Row<'_>) {
        let Some(allowed) = &self.params.allowed_token_ids else {
            return;
        };
        let places = allowed.iter().filter_map(|&id| row.place(id));
        let kept: Vec<(usize, f32)> = places.map(|place| (place, row.logits[place])).collect();
        row.logits.fill(f32::NEG_INFINITY);
        for (place, logit) in kept {
            row.logits[place] = logit;
        }
    }

    fn exclude_bad_words(&mut self, row: &mut Row<'_>) {
        for word in &self.params.bad_words {
            if let Some((&last, before)) = word.split_last()
                && self.output.ends_with(before)
            {
                change(row, &mut self.changed, last, |_| f32::NEG_INFINITY);
            }
        }
    }

    fn apply_bias(&mut self, row: &mut Row<'_>) {
        for &(id, bias) in &self.params.logit_bias {
            change(row, &mut self.changed, id, |logit| logit + bias);
        }
    }

    fn apply_penalties(&mut self, row: &mut Row<'_>) {
        let params = &self.params;
        for (&id, &Seen { num_output, .. }) in &self.seen {
            change(row, &mut self.changed, id, |logit| {
                params.penalized(logit, num_output)
            });
        }
    }

    /// The random number of the token that comes after `ahead` others: uniform in [0, 1) with 53 bits.
    fn uniform(&mut self, ahead: usize) -> f64 {
        // Two words of the stream each.
        let at = 2 * (u128::from(self.num_output) + ahead as u128);
        self.rng.set_word_pos(at);
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    fn choose(&mut self, logits: &[f32], banned: &[u32], otherwise: Option<u32>) -> u32 {
        let (best, max) = argmax(logits);
        if max == f32::NEG_INFINITY {
            // Nothing is possible.
            let mut ids = 0..logits.len() as u32;
            let lowest = || ids.find(|id| !banned.contains(id)).unwrap_or(0);
            return otherwise.unwrap_or_else(lowest);
        }
        let SamplingParams {
            temperature, top_k, ..
        } = *self.params;
        if temperature < GREEDY_BELOW {
            return best;
        }
        let u = self.uniform(0);
        let inverse_temperature = 1.0 / temperature;
        let limited = top_k > 0 && top_k < logits.len();
        if !self.is_limited(logits.len()) {
            return draw_dense(logits, max, inverse_temperature, u).unwrap_or(best);
        }
        let total = self.collect_candidates(logits, max, limited);
        let SamplingParams { top_p, min_p, .. } = *self.params;
        if top_p < 1.0 {
            keep_top_p(&mut self.candidates, top_p, total, &mut self.scratch);
        }
        // The most likely token has weight 1.
        self.candidates.retain(|c| c.weight >= min_p);
        draw(&self.candidates, u).unwrap_or(best)
    }

    /// Whether top-k, top-p or min-p leave tokens of a row of this length out.
    fn is_limited(&self, len: usize) -> bool {
        let SamplingParams {
            top_k,
            top_p,
            min_p,
            ..
        } = *self.params;
        (top_k > 0 && top_k < len) || top_p < 1.0 || min_p > 0.0
    }

    /// Collects, in the order of their ids, the tokens that top-k keeps, or those that top-p and
    /// min-p can keep, with weights exp((logit - max) / temperature). Returns the weight top-p
    /// takes its share of: that of all tokens top-k keeps.
    fn collect_candidates(&mut self, logits: &[f32], max: f32, limited: bool) -> f64 {
        let SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = *self.params;
        let scale = 1.0 / temperature;
        let (lowest, mut total) = if limited {
            // Tokens that tie with the k-th stay, as in transformers and vLLM.
            let kth = top_n(logits, top_k, &mut self.scratch).last();
            (kth.map_or(max, |c| c.weight), None)
        } else {
            // Tokens lighter than this cannot be kept: top-p leaves out more than all of them
            // together weigh. The factor 0.5 leaves room for rounding.
            let total = total_weight(logits, max, scale);
            let light = 0.5 * (1.0 - f64::from(top_p)) * total / logits.len() as f64;
            let light = light.max(0.5 * f64::from(min_p)).ln() as f32;
            (max + temperature * light, Some(total))
        };
        let weigh = |(id, &logit): (usize, &f32)| Candidate {
            id: id as u32,
            weight: exp((logit - max) * scale),
        };
        let kept = logits.iter().enumerate().filter(|(_, l)| **l >= lowest);
        self.candidates.clear();
        self.candidates
            .extend(kept.map(weigh).filter(|c| c.weight > 0.0));
        let candidates = &self.candidates;
        *total.get_or_insert_with(|| candidates.iter().map(|c| f64::from(c.weight)).sum())
    }
}

/// A clone of `source` in the memory of `target`.
fn cloned_into<T: Clone>(mut target: T, source: &T) -> T {
    target.clone_from(source);
    target
}

/// The logits of a row, of all tokens or of some.
struct Row<'a> {
    logits: &'a mut [f32],
    /// Their tokens, in the order of ids; `None` if these are all.
    ids: Option<&'a [u32]>,
}

impl Row<'_> {
    /// Where the logit of a token is.
    fn place(&self, id: u32) -> Option<usize> {
        let place = match self.ids {
            None => id as usize,
            Some(ids) => ids.binary_search(&id).ok()?,
        };
        (place < self.logits.len()).then_some(place)
    }
}

fn change(row: &mut Row<'_>, changed: &mut Vec<(u32, f32)>, id: u32, new: impl FnOnce(f32) -> f32) {
    if let Some(logit) = row.place(id).map(|place| &mut row.logits[place]) {
        changed.push((id, *logit));
        // Large logits can overflow here; keep what `sanitize` guarantees.
        let value = new(*logit);
        *logit = if value.is_nan() {
            f32::NEG_INFINITY
        } else {
            value.min(f32::MAX)
        };
    }
}
