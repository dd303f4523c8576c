//! A budget of tokens for reasoning: what ends it comes when the budget is spent.

/// How many tokens may come between the token that begins reasoning and the token that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinkingBudget {
    /// So many.
    pub num_tokens: usize,
    /// The token that begins it; `None` if the prompt has begun it.
    pub begin: Option<u32>,
    /// The token that ends it.
    pub end: u32,
}

/// Where in its reasoning a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Before(u32),
    /// With room for so many tokens.
    Within(usize),
    Behind,
}

/// A budget that is being spent.
#[derive(Clone, Debug)]
pub(super) struct Thinking {
    budget: ThinkingBudget,
    place: Place,
}

impl Thinking {
    pub(super) fn new(budget: ThinkingBudget) -> Self {
        let place = match budget.begin {
            Some(begin) => Place::Before(begin),
            None => Place::Within(budget.num_tokens),
        };
        Self { budget, place }
    }

    /// The only token that may come next, if the budget is spent.
    pub(super) fn forced(&self) -> Option<u32> {
        (self.place == Place::Within(0)).then_some(self.budget.end)
    }

    /// Whether it may force a token later on.
    pub(super) fn is_open(&self) -> bool {
        self.place != Place::Behind
    }

    /// Takes note of a token that has come.
    pub(super) fn observe(&mut self, id: u32) {
        self.place = match self.place {
            Place::Before(begin) if id == begin => Place::Within(self.budget.num_tokens),
            Place::Within(_) if id == self.budget.end => Place::Behind,
            Place::Within(left) => Place::Within(left.saturating_sub(1)),
            other => other,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{Sampler, SamplingParams};

    /// Token 5 is the likeliest, 2 ends reasoning, 1 begins it.
    fn tokens(begin: Option<u32>, num_tokens: usize, logprobs: Option<usize>) -> Vec<u32> {
        let params = SamplingParams {
            thinking_budget: Some(ThinkingBudget {
                num_tokens,
                begin,
                end: 2,
            }),
            logprobs,
            ..SamplingParams::greedy()
        };
        let mut sampler = Sampler::new(&params, &[], 40);
        let draw = |sampler: &mut Sampler, first: bool| {
            // What a device would draw ahead could be another token.
            assert!(sampler.may_be_constrained(1) || !sampler.is_thinking());
            let mut logits = vec![0.0; 40];
            logits[if first { 1 } else { 5 }] = 3.0;
            let token = sampler.sample(&mut logits, &[]);
            assert_eq!(token.logprobs.is_some(), logprobs.is_some());
            token.id
        };
        let first = begin.is_some();
        let mut ids = vec![draw(&mut sampler, first)];
        ids.extend((0..4).map(|_| draw(&mut sampler, false)));
        ids
    }

    #[test]
    fn the_end_comes_when_the_budget_is_spent() {
        for logprobs in [None, Some(1)] {
            assert_eq!(tokens(None, 0, logprobs), [2, 5, 5, 5, 5]);
            assert_eq!(tokens(None, 2, logprobs), [5, 5, 2, 5, 5]);
            assert_eq!(tokens(None, 9, logprobs), [5, 5, 5, 5, 5]);
            assert_eq!(tokens(Some(1), 1, logprobs), [1, 5, 2, 5, 5]);
            assert_eq!(tokens(Some(1), 0, logprobs), [1, 2, 5, 5, 5]);
            assert_eq!(tokens(Some(7), 0, logprobs), [1, 5, 5, 5, 5]);
        }
    }

    #[test]
    fn an_end_that_comes_earlier_is_the_end() {
        let mut thinking = Thinking::new(ThinkingBudget {
            num_tokens: 1,
            begin: None,
            end: 2,
        });
        thinking.observe(2);
        thinking.observe(5);
        assert_eq!((thinking.forced(), thinking.is_open()), (None, false));
    }
}
