//! The loss of GRPO and its gradient.
//!
//! A token's loss is `-min(r·A, clip(r)·A) + β·kl`. `r` is the token's probability over the one it was drawn with, `A` the
//! advantage of its answer, and `kl = r·(exp(ref - logp) - (ref - logp) - 1)`: the factor `r` makes the gradient of the mean that
//! of the divergence, as in TRL (`use_bias_correction_kl`). Its derivative by the log-probability is known in
//! closed form, so that the gradient of the logits is that of the cross-entropy times this derivative, negated.

use model_qwen::kernels::weighted_cross_entropy;

use crate::batch::Batch;
use crate::config::{Config, LossType};
use crate::gate;
use crate::loss::{Targets, TokenStats, backward_by, stats_of_targets, tempered};
use crate::parameters::GradientStore;
use crate::preference::Numbers;
use crate::step::{Means, backward_of_loss, hidden, lm_head};
use crate::trainer::{StepNumbers, StepOutput, Trainer};
use lora_4bit::AdapterSelection;

/// An answer to learn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Prompt and answer, with the token that ended it.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// How much better than its group it is.
    pub advantage: f64,
    /// Log-probabilities of the answer's tokens at the first step on them; `None` before.
    pub old: Option<Vec<f32>>,
    /// The same by the model without its adapter, where the loss needs them.
    pub reference: Option<Vec<f32>>,
}

impl Rollout {
    /// An answer that no step has seen.
    #[must_use]
    pub fn new(prompt: &[u32], answer: &[u32], advantage: f64) -> Self {
        Self {
            tokens: [prompt, answer].concat(),
            prompt_len: prompt.len(),
            advantage,
            old: None,
            reference: None,
        }
    }

    /// Tokens of the answer.
    #[must_use]
    pub fn answer_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}

/// The loss of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyLoss {
    /// How tokens are averaged; a loss of another method counts as [`LossType::Dapo`].
    pub loss_type: LossType,
    /// How far a probability may fall and rise.
    pub epsilons: (f64, f64),
    /// Weight of the divergence from the reference.
    pub beta: f64,
    /// Temperature that the answers were drawn with.
    pub temperature: f64,
    /// The most tokens of an answer.
    pub max_completion_length: usize,
}

/// What a step found.
#[derive(Clone, Debug)]
pub struct PolicyStep {
    /// Loss, norm of the gradients, learning rate, entropy; and with the names of TRL the mean divergence of a token from the
    /// reference (`kl`), and the part of the tokens whose probability fell too far, rose too far, or either (`clip_ratio/…`).
    pub output: StepOutput,
    /// The batches that were computed.
    pub batches: Vec<Batch>,
}

/// What the loss of one token depends on, besides its log-probability.
#[derive(Clone, Copy, Debug)]
struct Term {
    advantage: f64,
    /// What the token's loss is divided by.
    normalizer: f64,
    old: Option<f64>,
    reference: Option<f64>,
}

/// Loss and derivative of one token.
#[derive(Clone, Copy, Debug, Default)]
struct TokenLoss {
    loss: f64,
    /// By the log-probability.
    derivative: f64,
    kl: f64,
    is_low: bool,
    is_high: bool,
}

impl PolicyLoss {
    /// The loss that `config` says.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let options = &config.grpo;
        Self {
            loss_type: config.method.loss_type.unwrap_or(LossType::Dapo),
            epsilons: options.epsilons(),
            beta: config.method.beta(),
            temperature: options.temperature(),
            max_completion_length: options.max_completion_length(),
        }
    }

    fn token(&self, term: Term, logp: f64) -> TokenLoss {
        let (low, high) = self.epsilons;
        let ratio = term.old.map_or(1.0, |old| (logp - old).exp());
        let (is_low, is_high) = (
            ratio < 1.0 - low && term.advantage < 0.0,
            ratio > 1.0 + high && term.advantage > 0.0,
        );
        let clipped = ratio.clamp(1.0 - low, 1.0 + high);
        let mut loss = -(ratio * term.advantage).min(clipped * term.advantage);
        let mut derivative = match is_low || is_high {
            true => 0.0,
            false => -ratio * term.advantage,
        };
        let mut kl = 0.0;
        if let Some(reference) = term.reference.filter(|_| self.beta > 0.0) {
            let ahead = reference - logp;
            kl = ratio * (ahead.exp() - ahead - 1.0);
            loss += self.beta * kl;
            derivative -= self.beta * ratio * ahead;
        }
        TokenLoss {
            loss: loss / term.normalizer,
            derivative: derivative / term.normalizer,
            kl,
            is_low,
            is_high,
        }
    }

    /// One optimizer step on `rollouts`, `batch_size` of them at a time. Log-probabilities that are missing are filled in.
    pub fn step(
        &self,
        trainer: &mut Trainer,
        rollouts: &mut [Rollout],
        batch_size: usize,
    ) -> PolicyStep {
        gate::on_worker(&trainer.device(), || {
            self.step_here(trainer, rollouts, batch_size)
        })
    }

    fn step_here(
        &self,
        trainer: &mut Trainer,
        rollouts: &mut [Rollout],
        batch_size: usize,
    ) -> PolicyStep {
        let (num_rollouts, num_tokens) = (rollouts.len(), num_tokens(rollouts));
        trainer.prepare();
        let mut store = trainer.gradient_store();
        let (mut sums, mut entropy, mut clipped) = ([0.0; 2], 0.0, [0.0; 3]);
        let mut batches = Vec::new();
        for (index, group) in rollouts.chunks_mut(batch_size.max(1)).enumerate() {
            let batch = batch_of(group);
            if self.beta > 0.0 && group.iter().any(|rollout| rollout.reference.is_none()) {
                let reference = self.logps(trainer, &batch, &AdapterSelection::Base);
                spread(group, &reference, |rollout, logps| {
                    rollout.reference = Some(logps);
                });
            }
            let terms = self.terms(group, num_rollouts, num_tokens);
            let stats = self.gradients(trainer, (index, &batch), &terms, &mut store);
            let logps: Vec<f32> = stats.iter().map(|token| -token.cross_entropy).collect();
            for (term, stats) in terms.iter().zip(&stats) {
                let token = self.token(*term, -f64::from(stats.cross_entropy));
                sums[0] += token.loss;
                sums[1] += token.kl;
                entropy += f64::from(stats.entropy);
                let is = [token.is_low, token.is_high, token.is_low || token.is_high];
                for (sum, is) in clipped.iter_mut().zip(is) {
                    *sum += f64::from(u8::from(is));
                }
            }
            spread(group, &logps, |rollout, logps| {
                rollout.old.get_or_insert(logps);
            });
            batches.push(batch);
        }
        let mean = |sum: f64| sum / num_tokens.max(1) as f64;
        let (norm, learning_rate) = trainer.update(store);
        let numbers = StepNumbers {
            means: Means {
                loss: sums[0],
                token_accuracy: f64::NAN,
                entropy: mean(entropy),
            },
            grad_norm: norm.into_data().iter::<f64>().next().unwrap_or(f64::NAN),
        };
        let names =
            ["low_mean", "high_mean", "region_mean"].map(|name| format!("clip_ratio/{name}"));
        let mut metrics: Numbers = names.into_iter().zip(clipped.map(mean)).collect();
        if self.beta > 0.0 {
            metrics.insert("kl".to_owned(), mean(sums[1]));
        }
        PolicyStep {
            output: StepOutput::known(numbers, metrics, learning_rate),
            batches,
        }
    }

    /// Adds the gradients of a batch. Gives the stats of each token of the answers.
    fn gradients(
        &self,
        trainer: &Trainer,
        (index, batch): (usize, &Batch),
        terms: &[Term],
        store: &mut GradientStore,
    ) -> Vec<TokenStats> {
        let adapters = trainer.adapters(Some(index));
        let options = trainer.step_options(&adapters, None);
        let targets = Targets::new(&batch.targets);
        backward_of_loss(
            &trainer.model,
            batch,
            options,
            store,
            |lm_head, x, trained| {
                let mut found = Vec::with_capacity(terms.len());
                let dx = backward_by(
                    lm_head,
                    x,
                    &targets,
                    trained,
                    &mut |logits, first, tokens| {
                        let weight = |row: usize, loss: f32| {
                            let token = self.token(terms[first + row], -f64::from(loss));
                            (-token.derivative / self.temperature) as f32
                        };
                        let logits = tempered(logits, self.temperature);
                        let (rows, gradient) = weighted_cross_entropy(logits, tokens, &weight);
                        found.extend(rows.into_iter().map(TokenStats::from));
                        gradient
                    },
                );
                (found, dx)
            },
        )
    }

    /// Log-probabilities of the answers' tokens.
    fn logps(&self, trainer: &Trainer, batch: &Batch, adapters: &AdapterSelection) -> Vec<f32> {
        let model = &trainer.model;
        let x = hidden(model, batch, adapters); // [tokens, hidden]
        let targets = Targets::new(&batch.targets);
        let stats = stats_of_targets(&lm_head(model), &x, &targets, self.temperature);
        stats.iter().map(|token| -token.cross_entropy).collect()
    }

    fn terms(&self, rollouts: &[Rollout], num_rollouts: usize, num_tokens: usize) -> Vec<Term> {
        let mut terms = Vec::new();
        for rollout in rollouts {
            let len = rollout.answer_len();
            let normalizer = match self.loss_type {
                LossType::Grpo => num_rollouts * len,
                LossType::DrGrpo => num_rollouts * self.max_completion_length,
                // A configuration with one of the other methods' losses is refused.
                _ => num_tokens,
            };
            let at = |logps: &Option<Vec<f32>>, i: usize| {
                let logps = logps.as_ref()?;
                logps.get(i).map(|logp| f64::from(*logp))
            };
            terms.extend((0..len).map(|i| Term {
                advantage: rollout.advantage,
                normalizer: normalizer.max(1) as f64,
                old: at(&rollout.old, i),
                reference: at(&rollout.reference, i),
            }));
        }
        terms
    }
}

fn num_tokens(rollouts: &[Rollout]) -> usize {
    rollouts.iter().map(Rollout::answer_len).sum()
}

/// Prompts and answers end to end; the targets are the tokens of the answers.
fn batch_of(rollouts: &[Rollout]) -> Batch {
    let mut batch = Batch::default();
    for rollout in rollouts {
        let length = rollout.tokens.len();
        batch.lengths.push(length);
        batch.tokens.extend_from_slice(&rollout.tokens);
        batch.positions.extend(0..length as u32);
        let target = |next: usize| {
            let token = rollout.tokens.get(next).copied();
            token.filter(|_| next >= rollout.prompt_len)
        };
        batch.targets.extend((1..=length).map(target));
    }
    batch
}

/// Gives each rollout its part of `values`, which has one for each token of the answers.
fn spread(rollouts: &mut [Rollout], values: &[f32], mut give: impl FnMut(&mut Rollout, Vec<f32>)) {
    let mut rest = values;
    for rollout in rollouts {
        let (own, others) = rest.split_at(rollout.answer_len());
        give(rollout, own.to_vec());
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(beta: f64) -> PolicyLoss {
        PolicyLoss {
            beta,
            epsilons: (0.2, 0.3),
            ..PolicyLoss::of(&Config::new("unused"))
        }
    }

    /// The derivative of a token's loss is that of a difference quotient, on both sides of each bound.
    #[test]
    fn derivatives_are_those_of_the_loss() {
        for beta in [0.0, 0.3] {
            for advantage in [-1.5, 0.0, 2.0] {
                for logp in [-3.0, -2.3, -2.1, -1.9, -1.7, -1.0] {
                    let term = Term {
                        advantage,
                        normalizer: 4.0,
                        old: Some(-2.0),
                        reference: Some(-2.5),
                    };
                    let (policy, h) = (policy(beta), 1e-6);
                    let at = |logp| policy.token(term, logp).loss;
                    let expected = (at(logp + h) - at(logp - h)) / (2.0 * h);
                    let found = policy.token(term, logp).derivative;
                    assert!((found - expected).abs() < 1e-6, "{advantage} {logp}");
                }
            }
        }
    }

    #[test]
    fn bounds_are_counted_on_the_side_that_they_stop() {
        let token = |advantage, logp: f64| {
            let term = Term {
                advantage,
                normalizer: 1.0,
                old: Some(0.0),
                reference: None,
            };
            let token = policy(0.0).token(term, logp.ln());
            (token.is_low, token.is_high)
        };
        assert_eq!(token(1.0, 1.31), (false, true));
        assert_eq!(token(1.0, 0.5), (false, false));
        assert_eq!(token(-1.0, 0.79), (true, false));
        assert_eq!(token(-1.0, 1.5), (false, false));
    }
}
