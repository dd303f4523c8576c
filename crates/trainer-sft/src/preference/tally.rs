//! Sums over the answers of a step or of an evaluation, and the numbers that are made of them.

use std::collections::BTreeMap;

use crate::step::Means;

/// Numbers of a step by TRL's names, such as `rewards/chosen`.
pub type Numbers = BTreeMap<String, f64>;

/// Sums over answers of one kind: chosen ones or rejected ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    pub(super) count: usize,
    pub(super) rewards: f64,
    pub(super) log_p: f64,
}

impl Side {
    pub(super) fn add(&mut self, reward: f64, log_p: f64) {
        self.count += 1;
        self.rewards += reward;
        self.log_p += log_p;
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.rewards += other.rewards;
        self.log_p += other.log_p;
    }
}

/// Sums over answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Of the pairs, or of the answers where there are no pairs.
    pub(super) losses: f64,
    pub(super) count: usize,
    pub(super) chosen: Side,
    pub(super) rejected: Side,
    /// Pairs whose chosen answer has the larger reward; `None` where there are no pairs.
    pub(super) num_right: Option<usize>,
    /// Tokens of wanted answers, and those that were the likeliest ones.
    pub(super) num_wanted: usize,
    pub(super) hits: f64,
    /// Tokens of all answers, and their entropies.
    pub(super) num_tokens: usize,
    pub(super) entropies: f64,
    /// ORPO: cross-entropy of the chosen texts, and its tokens.
    pub(super) nll: Option<(f64, usize)>,
    /// ORPO: log σ of the log odds, and the log odds.
    pub(super) odds: Option<(f64, f64)>,
    /// KTO: baselines, and how many of them.
    pub(super) baselines: Option<(f64, usize)>,
}

impl Tally {
    /// Adds rewards and log-probabilities of a chosen answer and of a rejected one.
    pub(super) fn add_pair(&mut self, rewards: (f64, f64), log_p: (f64, f64)) {
        self.count += 1;
        self.chosen.add(rewards.0, log_p.0);
        self.rejected.add(rewards.1, log_p.1);
        *self.num_right.get_or_insert_default() += usize::from(rewards.0 > rewards.1);
    }

    /// Adds the sums of another share of a step.
    pub(crate) fn merge(&mut self, other: &Self) {
        fn both<T: Copy>(own: &mut Option<T>, other: Option<T>, add: impl FnOnce(&mut T, T)) {
            match (own.as_mut(), other) {
                (Some(own), Some(other)) => add(own, other),
                (None, other) => *own = other,
                (Some(_), None) => {}
            }
        }
        self.losses += other.losses;
        self.count += other.count;
        self.chosen.merge(other.chosen);
        self.rejected.merge(other.rejected);
        both(&mut self.num_right, other.num_right, |own, other| {
            *own += other
        });
        self.num_wanted += other.num_wanted;
        self.hits += other.hits;
        self.num_tokens += other.num_tokens;
        self.entropies += other.entropies;
        both(&mut self.nll, other.nll, |own, other| {
            (own.0, own.1) = (own.0 + other.0, own.1 + other.1);
        });
        both(&mut self.odds, other.odds, |own, other| {
            (own.0, own.1) = (own.0 + other.0, own.1 + other.1);
        });
        both(&mut self.baselines, other.baselines, |own, other| {
            (own.0, own.1) = (own.0 + other.0, own.1 + other.1);
        });
    }

    /// Means over all that was added; `None` where that is nothing.
    pub(crate) fn means(&self) -> Option<(Means, Numbers)> {
        let count = (self.count > 0).then_some(self.count as f64)?;
        let mean = |sum: f64, count: usize| sum / count.max(1) as f64;
        let mut numbers = Numbers::new();
        let mut add = |name: &str, value: f64| {
            numbers.insert(name.to_owned(), value);
        };
        let sides = [("chosen", self.chosen), ("rejected", self.rejected)];
        for (name, side) in sides.into_iter().filter(|(_, side)| side.count > 0) {
            add(&format!("rewards/{name}"), mean(side.rewards, side.count));
            add(&format!("logps/{name}"), mean(side.log_p, side.count));
        }
        if sides.iter().all(|(_, side)| side.count > 0) {
            let [chosen, rejected] = sides.map(|(_, side)| mean(side.rewards, side.count));
            add("rewards/margins", chosen - rejected);
        }
        if let Some(right) = self.num_right {
            add("rewards/accuracies", right as f64 / count);
        }
        let mut loss = self.losses / count;
        if let Some((sum, tokens)) = self.nll {
            let nll = mean(sum, tokens);
            add("nll_loss", nll);
            loss += nll;
        }
        if let Some((ratio, log_odds)) = self.odds {
            add("log_odds_ratio", ratio / count);
            add("log_odds_chosen", log_odds / count);
        }
        if let Some((sum, count)) = self.baselines {
            add("kl", mean(sum, count));
        }
        let means = Means {
            loss,
            // No number where a step of KTO has no wanted answer.
            token_accuracy: self.hits / self.num_wanted as f64,
            entropy: mean(self.entropies, self.num_tokens),
        };
        Some((means, numbers))
    }
}
