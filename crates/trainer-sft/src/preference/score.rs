//! What a batch of answers adds to the numbers of a step, and how much each of its tokens weighs in the gradient.

use super::Preference;
use super::answers::{Answers, Read};
use super::losses::{Compared, dpo, kto, odds};
use super::objective::Objective;
use super::step::Step;
use super::tally::Tally;
use crate::config::LossType;
use crate::loss::TokenStats;

/// A batch whose tokens have their stats.
pub(super) struct Scored<'a> {
    answers: &'a Answers,
    stats: &'a [TokenStats],
    read: Vec<Read>,
    /// The reference's log-probabilities; none where there is no reference.
    reference: &'a [f64],
    step: &'a Step,
    /// How much the cross-entropy of each target weighs.
    weights: Vec<f32>,
}

impl Preference {
    /// Adds the answers of a batch to `tally`. Gives the weight of each target's cross-entropy in the gradient of the loss.
    pub(super) fn add(
        &self,
        tally: &mut Tally,
        answers: &Answers,
        stats: &[TokenStats],
        reference: &[f64],
        step: &Step,
    ) -> Vec<f32> {
        let documents = 0..answers.rows.len();
        let mut scored = Scored {
            read: documents.map(|index| answers.read(index, stats)).collect(),
            weights: vec![0.0; stats.len()],
            answers,
            stats,
            reference,
            step,
        };
        scored.add_tokens(tally);
        match self.objective {
            Objective::Dpo {
                beta,
                loss,
                label_smoothing,
            } => scored.add_pairs(tally, beta, loss, label_smoothing),
            Objective::Orpo { beta } => scored.add_odds(tally, beta),
            Objective::Kto { beta, weights } => scored.add_verdicts(tally, beta, weights),
        }
        scored.weights
    }
}

impl Scored<'_> {
    fn add_tokens(&self, tally: &mut Tally) {
        for (read, &is_wanted) in self.read.iter().zip(&self.answers.are_wanted) {
            tally.num_tokens += read.num_tokens;
            tally.entropies += read.entropy;
            if is_wanted {
                tally.num_wanted += read.num_tokens;
                tally.hits += read.hits;
            }
        }
    }

    fn add_pairs(&mut self, tally: &mut Tally, beta: f64, loss: LossType, smoothing: f64) {
        for chosen in self.pairs() {
            let rejected = chosen + 1;
            let both = (self.compared(chosen), self.compared(rejected));
            let found = dpo(loss, beta, smoothing, both);
            self.weigh(chosen, found.by_chosen);
            self.weigh(rejected, found.by_rejected);
            tally.losses += found.loss;
            let rewards = (beta * both.0.ratio, beta * both.1.ratio);
            tally.add_pair(
                rewards,
                (self.read[chosen].log_p, self.read[rejected].log_p),
            );
        }
    }

    fn add_odds(&mut self, tally: &mut Tally, beta: f64) {
        let of_text = 1.0 / self.step.num_chosen.max(1) as f64;
        for chosen in self.pairs() {
            let rejected = chosen + 1;
            let means = (self.read[chosen].mean(), self.read[rejected].mean());
            let found = odds(means.0, means.1);
            for (index, by) in [(chosen, found.by_chosen), (rejected, found.by_rejected)] {
                self.weigh(
                    index,
                    -beta * by / self.read[index].num_tokens.max(1) as f64,
                );
            }
            let (nll, count) = tally.nll.get_or_insert_default();
            for row in self.answers.rows[chosen].clone() {
                self.weights[row] += of_text as f32;
                *nll += f64::from(self.stats[row].cross_entropy);
                *count += 1;
            }
            let (ratios, log_odds) = tally.odds.get_or_insert_default();
            *ratios += found.ratio;
            *log_odds += found.log_odds;
            tally.losses -= beta * found.ratio;
            tally.add_pair((beta * means.0, beta * means.1), means);
        }
    }

    fn add_verdicts(&mut self, tally: &mut Tally, beta: f64, weights: (f64, f64)) {
        for index in 0..self.read.len() {
            let (ratio, log_p) = (self.compared(index).ratio, self.read[index].log_p);
            let is_wanted = self.answers.are_wanted[index];
            let weight = if is_wanted { weights.0 } else { weights.1 };
            let (loss, by) = kto(beta, ratio, self.step.baseline, is_wanted);
            self.weigh(index, weight * by);
            tally.losses += weight * loss;
            tally.count += 1;
            let side = match is_wanted {
                true => &mut tally.chosen,
                false => &mut tally.rejected,
            };
            side.add(beta * ratio, log_p);
        }
        let (sum, count) = tally.baselines.get_or_insert_default();
        *sum += self.step.baseline;
        *count += 1;
    }

    /// The chosen answers, each of which the rejected one follows.
    fn pairs(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.read.len() / 2).map(|pair| 2 * pair)
    }

    fn compared(&self, index: usize) -> Compared {
        let read = self.read[index];
        Compared {
            ratio: read.log_p - self.reference.get(index).copied().unwrap_or(0.0),
            num_tokens: read.num_tokens,
        }
    }

    /// Weighs the tokens of an answer by the derivative of its loss, of which the step takes the mean. The cross-entropy is the
    /// negative of the log-probability.
    fn weigh(&mut self, index: usize, by: f64) {
        let weight = -by / self.step.count.max(1) as f64;
        self.answers.weigh(&mut self.weights, index, weight);
    }
}
