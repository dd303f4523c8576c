//! Sampling where a constraint says which tokens may come.

use std::sync::Arc;

use super::distribution::{argmax, sanitize};
use super::thinking::Thinking;
use super::{Logprobs, Row, SampledToken, Sampler, logprobs_of};
use crate::constraint::{Constraint, TokenMask};

/// The tokens that a row of logits may give.
#[derive(Clone, Debug)]
pub struct RowMask {
    /// Which row.
    pub row: usize,
    /// Its tokens.
    pub mask: Arc<TokenMask>,
}

impl Sampler {
    /// The same for a text that keeps to a constraint: of the next tokens only those may come that it lets through, whatever the
    /// parameters, the bans and the penalties say of them.
    #[must_use]
    pub fn constrained(mut self, constraint: Option<Constraint>) -> Self {
        self.constraint = constraint;
        self
    }

    /// The constraint, which has taken every token so far.
    pub fn constraint(&self) -> Option<&Constraint> {
        self.constraint.as_ref()
    }

    /// Whether only some tokens may come next.
    pub fn is_constrained(&self) -> bool {
        let constraint = self.constraint.as_ref();
        self.forced().is_some() || constraint.is_some_and(Constraint::is_active)
    }

    /// Whether reasoning with a budget may still come to its end.
    pub(super) fn is_thinking(&self) -> bool {
        self.thinking.as_ref().is_some_and(Thinking::is_open)
    }

    /// The only token that may come next, if reasoning has spent its budget.
    fn forced(&self) -> Option<u32> {
        self.thinking.as_ref().and_then(Thinking::forced)
    }

    /// Whether it may be that only some tokens may come after `ahead` others that are not known yet.
    pub fn may_be_constrained(&self, ahead: usize) -> bool {
        self.is_constrained() || (ahead > 0 && (self.constraint.is_some() || self.is_thinking()))
    }

    /// The tokens that may come next; `None` where every token may. Waits for the thread that computes it, or computes it.
    pub fn mask(&mut self) -> Option<Arc<TokenMask>> {
        if let Some(id) = self.forced() {
            return Some(Arc::new(TokenMask::of(id)));
        }
        self.constraint.as_mut().and_then(Constraint::mask)
    }

    /// Whether log-probabilities are wanted with the tokens.
    pub(crate) fn has_logprobs(&self) -> bool {
        self.params.logprobs.is_some()
    }

    /// The log-probabilities that are wanted with a token that a device has drawn, from the logits as they were.
    pub(crate) fn logprobs_of(&self, id: u32, logits: &mut [f32]) -> Option<Logprobs> {
        let num_top = self.params.logprobs?;
        Some(logprobs_of(logits, id, num_top, self.params.logprobs_mode))
    }

    /// Whether a token that was drawn may come next.
    pub(crate) fn allows(&mut self, id: u32) -> bool {
        self.instead_of(id) == id && self.mask().is_none_or(|mask| mask.allows(id))
    }

    /// The token that comes where `id` was drawn.
    pub(super) fn instead_of(&self, id: u32) -> u32 {
        let constraint = self.constraint.as_ref();
        constraint.map_or(id, |constraint| constraint.instead_of(id))
    }

    /// The next token where only one may come, which takes no logits. `None` where others may, and with log-probabilities.
    pub fn sample_only(&mut self) -> Option<SampledToken> {
        if self.params.logprobs.is_some() {
            return None;
        }
        let id = self.mask()?.only()?;
        self.observe(id);
        Some(SampledToken { id, logprobs: None })
    }

    /// The tokens that may come, in the order of their ids, if these are `max` at most: [`Sampler::sample_few`] takes their logits
    /// alone. `None` with log-probabilities, which are among all tokens.
    pub fn few_allowed(&mut self, max: usize) -> Option<Vec<u32>> {
        if self.params.logprobs.is_some() {
            return None;
        }
        let mask = self.mask()?;
        (mask.num_allowed() <= max).then(|| mask.ids().collect())
    }

    /// As [`Sampler::sample`], from the logits of the tokens of [`Sampler::few_allowed`].
    pub fn sample_few(&mut self, ids: &[u32], logits: &mut [f32], banned: &[u32]) -> SampledToken {
        sanitize(logits);
        let (best, _) = argmax(logits);
        let row = Row {
            logits,
            ids: Some(ids),
        };
        let id = self.choose_adjusted(row, banned, Some(best));
        self.observe(id);
        SampledToken { id, logprobs: None }
    }

    /// Makes the logits of tokens that may not come negative infinity. The best of the others, if there is a constraint.
    pub(super) fn apply_mask(&mut self, logits: &mut [f32]) -> Option<u32> {
        let mask = self.mask()?;
        mask.apply(logits);
        match argmax(logits) {
            // All of them are impossible: one has to come.
            (_, f32::NEG_INFINITY) => mask.ids().next(),
            (best, _) => Some(best),
        }
    }
}
