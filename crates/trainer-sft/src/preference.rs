//! Learning from answers that are compared or judged: DPO, ORPO and KTO, with the losses and the numbers of TRL.
//!
//! Each loss is a function of the log-probabilities of whole answers. A micro-batch is therefore computed in three stages: the
//! reference's log-probabilities without gradients, the model's up to the head, and the gradient of each token's cross-entropy,
//! weighted by the derivative of the loss. The reference is the same model with its adapter switched off, or with another one
//! switched on.

mod losses;
mod tally;

use std::ops::Range;

use lora_4bit::AdapterSelection;
use model_qwen::QwenModel;

use self::losses::{Compared, dpo, kto, odds};
pub use self::tally::Numbers;
use self::tally::Tally;
use crate::batch::Batch;
use crate::config::{Config, LossType, Method};
use crate::data::{Example, Place, Source};
use crate::parameters::GradientStore;
use crate::step::rows::{self, Known};
use crate::step::{How, Means};

/// How answers are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// The loss.
    pub objective: Objective,
    /// The reference: the model with the adapter in this slot, or without one.
    pub reference: Option<usize>,
    /// Longest text in tokens, for the texts that are made for the baseline of [`Objective::Kto`].
    pub max_length: usize,
}

/// A loss of answers, with the names of TRL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Of pairs, beside a reference.
    Dpo {
        /// Weight of a difference from the reference.
        beta: f64,
        /// Which loss.
        loss: LossType,
        /// Part of the pairs that are the wrong way round.
        label_smoothing: f64,
    },
    /// Of pairs: the cross-entropy of the chosen text, and the odds of the answers.
    Orpo {
        /// Weight of the odds.
        beta: f64,
    },
    /// Of single answers, beside a reference.
    Kto {
        /// Weight of a difference from the reference.
        beta: f64,
        /// Weights of wanted answers and of other ones.
        weights: (f64, f64),
    },
}

impl Preference {
    /// What `config` says; `None` where answers are only learnt.
    pub(crate) fn of(config: &Config, reference: Option<usize>, max_length: usize) -> Option<Self> {
        let settings = &config.method;
        let beta = settings.beta();
        let objective = match settings.method {
            Method::Sft => return None,
            Method::Dpo => Objective::Dpo {
                beta,
                loss: settings.loss_type.unwrap_or_default(),
                label_smoothing: settings.label_smoothing.unwrap_or(0.0),
            },
            Method::Orpo => Objective::Orpo { beta },
            Method::Kto => Objective::Kto {
                beta,
                weights: (
                    settings.desirable_weight.unwrap_or(1.0),
                    settings.undesirable_weight.unwrap_or(1.0),
                ),
            },
        };
        Some(Self {
            objective,
            reference,
            max_length,
        })
    }

    /// Adds the gradients of the loss of `batches` together to `store`. Gives the means, and the numbers by TRL's names.
    pub(crate) fn gradients(
        &self,
        model: &QwenModel,
        batches: &[Batch],
        how: How<'_>,
        store: &mut GradientStore,
    ) -> Option<(Means, Numbers)> {
        let step = self.scale(model, how.1, batches);
        let mut tally = Tally::default();
        for batch in batches {
            let answers = Answers::new(batch, &self.objective);
            let reference = self.reference(model, &answers);
            rows::forward_backward(model, &answers.batch, how, store, |known| {
                let weights = self.add(&mut tally, &answers, known, &reference, &step);
                ((), weights)
            });
        }
        tally.means()
    }

    /// The same without gradients; each batch stands for itself, as a step of that batch would.
    ///
    /// # Errors
    /// The first error among the batches.
    pub(crate) fn measure<E>(
        &self,
        model: &QwenModel,
        adapters: &AdapterSelection,
        batches: impl IntoIterator<Item = Result<Batch, E>>,
    ) -> Result<Option<(Means, Numbers)>, E> {
        let mut tally = Tally::default();
        for batch in batches {
            let batch = batch?;
            let step = self.scale(model, adapters, std::slice::from_ref(&batch));
            let answers = Answers::new(&batch, &self.objective);
            let reference = self.reference(model, &answers);
            let known = rows::forward(model, &answers.batch, adapters);
            self.add(&mut tally, &answers, &known, &reference, &step);
        }
        Ok(tally.means())
    }

    fn reference_adapters(&self) -> AdapterSelection {
        match self.reference {
            Some(slot) => AdapterSelection::all(slot),
            None => AdapterSelection::Base,
        }
    }

    /// The reference's log-probabilities of the answers; none where there is no reference.
    fn reference(&self, model: &QwenModel, answers: &Answers) -> Vec<f64> {
        if matches!(self.objective, Objective::Orpo { .. }) {
            return Vec::new();
        }
        let known = rows::forward(model, &answers.batch, &self.reference_adapters());
        let documents = 0..answers.rows.len();
        documents
            .map(|index| answers.read(index, &known).log_p)
            .collect()
    }

    /// What the batches of a step share.
    fn scale(&self, model: &QwenModel, adapters: &AdapterSelection, batches: &[Batch]) -> Step {
        let documents: usize = batches.iter().map(|batch| batch.lengths.len()).sum();
        let mut step = Step {
            count: match self.objective {
                Objective::Kto { .. } => documents,
                _ => documents / 2,
            },
            ..Step::default()
        };
        match self.objective {
            Objective::Dpo { .. } => {}
            Objective::Orpo { .. } => {
                let chosen = |batch: &Batch| {
                    let lengths = batch.lengths.iter().step_by(2);
                    lengths
                        .map(|length| length.saturating_sub(1))
                        .sum::<usize>()
                };
                step.num_chosen = batches.iter().map(chosen).sum();
            }
            Objective::Kto { .. } => step.baseline = self.baseline(model, adapters, batches),
        }
        step
    }

    /// How much likelier than under the reference an answer is after the prompt of another one, as a mean over a step; at
    /// least 0. A step of one answer has no such text, and the baseline 0.
    fn baseline(&self, model: &QwenModel, adapters: &AdapterSelection, batches: &[Batch]) -> f64 {
        let texts = mismatched(batches, self.max_length);
        let (mut sum, mut count) = (0.0, 0usize);
        let size = batches
            .first()
            .map_or(1, |batch| batch.lengths.len())
            .max(1);
        for texts in texts.chunks(size) {
            let batch = Batch::collate(texts);
            let answers = Answers::new(&batch, &self.objective);
            let known = rows::forward(model, &answers.batch, adapters);
            let reference = self.reference(model, &answers);
            for (index, reference) in reference.iter().enumerate() {
                sum += answers.read(index, &known).log_p - reference;
                count += 1;
            }
        }
        match count {
            0 => 0.0,
            count => (sum / count as f64).max(0.0),
        }
    }

    /// Adds the answers of a batch to `tally`. Gives the weight of each target's cross-entropy in the gradient of the loss.
    fn add(
        &self,
        tally: &mut Tally,
        answers: &Answers,
        known: &[Known],
        reference: &[f64],
        step: &Step,
    ) -> Vec<f32> {
        let mut weights = vec![0f32; known.len()];
        let read: Vec<Read> = (0..answers.rows.len())
            .map(|index| answers.read(index, known))
            .collect();
        for (read, &is_wanted) in read.iter().zip(&answers.are_wanted) {
            tally.num_tokens += read.num_tokens;
            tally.entropies += read.entropy;
            if is_wanted {
                tally.num_wanted += read.num_tokens;
                tally.hits += read.hits;
            }
        }
        let compared = |index: usize| Compared {
            ratio: read[index].log_p - reference.get(index).copied().unwrap_or(0.0),
            num_tokens: read[index].num_tokens,
        };
        let scale = 1.0 / step.count.max(1) as f64;
        let pairs = || (0..read.len() / 2).map(|pair| (2 * pair, 2 * pair + 1));
        match self.objective {
            Objective::Dpo {
                beta,
                loss,
                label_smoothing,
            } => {
                for (chosen, rejected) in pairs() {
                    let both = (compared(chosen), compared(rejected));
                    let found = dpo(loss, beta, label_smoothing, both);
                    // The cross-entropy is the negative of the log-probability.
                    answers.weigh(&mut weights, chosen, -found.by_chosen * scale);
                    answers.weigh(&mut weights, rejected, -found.by_rejected * scale);
                    tally.losses += found.loss;
                    let rewards = (beta * both.0.ratio, beta * both.1.ratio);
                    tally.add_pair(rewards, (read[chosen].log_p, read[rejected].log_p));
                }
            }
            Objective::Orpo { beta } => {
                for (chosen, rejected) in pairs() {
                    let means = (read[chosen].mean(), read[rejected].mean());
                    let found = odds(means.0, means.1);
                    let of = |index: usize, by: f64| {
                        beta * scale * by / read[index].num_tokens.max(1) as f64
                    };
                    answers.weigh(&mut weights, chosen, of(chosen, found.by_chosen));
                    answers.weigh(&mut weights, rejected, of(rejected, found.by_rejected));
                    let of_text = 1.0 / step.num_chosen.max(1) as f64;
                    let (nll, count) = tally.nll.get_or_insert_default();
                    for row in answers.rows[chosen].clone() {
                        weights[row] += of_text as f32;
                        *nll += f64::from(known[row][0]);
                        *count += 1;
                    }
                    let (ratios, log_odds) = tally.odds.get_or_insert_default();
                    *ratios += found.ratio;
                    *log_odds += found.log_odds;
                    tally.losses -= beta * found.ratio;
                    tally.add_pair((beta * means.0, beta * means.1), means);
                }
            }
            Objective::Kto { beta, weights: of } => {
                for (index, read) in read.iter().enumerate() {
                    let (ratio, is_wanted) = (compared(index).ratio, answers.are_wanted[index]);
                    let weight = if is_wanted { of.0 } else { of.1 };
                    let (loss, by) = kto(beta, ratio, step.baseline, is_wanted);
                    answers.weigh(&mut weights, index, -weight * by * scale);
                    tally.losses += weight * loss;
                    tally.count += 1;
                    match is_wanted {
                        true => tally.chosen.add(beta * ratio, read.log_p),
                        false => tally.rejected.add(beta * ratio, read.log_p),
                    }
                }
                let (sum, count) = tally.baselines.get_or_insert_default();
                *sum += step.baseline;
                *count += 1;
            }
        }
        weights
    }
}

impl Tally {
    fn add_pair(&mut self, rewards: (f64, f64), log_p: (f64, f64)) {
        self.count += 1;
        self.chosen.add(rewards.0, log_p.0);
        self.rejected.add(rewards.1, log_p.1);
        *self.num_right.get_or_insert_default() += usize::from(rewards.0 > rewards.1);
    }
}

/// What the batches of a step share.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// Pairs, or answers where there are no pairs.
    count: usize,
    /// ORPO: tokens of the chosen texts.
    num_chosen: usize,
    /// KTO.
    baseline: f64,
}

/// The answers of a batch, one in each document.
struct Answers {
    /// With a target for each token that the loss needs.
    batch: Batch,
    /// The targets of each document among those of the batch.
    rows: Vec<Range<usize>>,
    /// Whether a target is a token of an answer.
    is_answer: Vec<bool>,
    are_wanted: Vec<bool>,
}

/// What is known of one answer: sums over its tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    log_p: f64,
    hits: f64,
    entropy: f64,
    num_tokens: usize,
}

impl Read {
    fn mean(&self) -> f64 {
        self.log_p / self.num_tokens.max(1) as f64
    }
}

impl Answers {
    fn new(batch: &Batch, objective: &Objective) -> Self {
        let mut batch = batch.clone();
        let mut are_wanted = batch.are_wanted.clone();
        are_wanted.resize(batch.lengths.len(), true);
        let (mut rows, mut is_answer, mut start) = (Vec::new(), Vec::new(), 0);
        for (document, &length) in batch.lengths.iter().enumerate() {
            let first = is_answer.len();
            // TRL's ORPO learns the whole chosen text, its prompt too.
            let learns_all = matches!(objective, Objective::Orpo { .. }) && document % 2 == 0;
            for token in start..start + length {
                let has_target = batch.targets[token].is_some();
                if !has_target && learns_all && token + 1 < start + length {
                    batch.targets[token] = Some(batch.tokens[token + 1]);
                }
                if batch.targets[token].is_some() {
                    is_answer.push(has_target);
                }
            }
            rows.push(first..is_answer.len());
            start += length;
        }
        Self {
            batch,
            rows,
            is_answer,
            are_wanted,
        }
    }

    /// The targets of document `index` that are tokens of its answer.
    fn targets(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let rows = self.rows[index].clone();
        rows.filter(|&row| self.is_answer[row])
    }

    fn read(&self, index: usize, known: &[Known]) -> Read {
        let mut read = Read::default();
        for row in self.targets(index) {
            let [loss, hit, entropy] = known[row].map(f64::from);
            read.log_p -= loss;
            read.hits += hit;
            read.entropy += entropy;
            read.num_tokens += 1;
        }
        read
    }

    fn weigh(&self, weights: &mut [f32], index: usize, weight: f64) {
        for row in self.targets(index) {
            weights[row] += weight as f32;
        }
    }
}

/// Each answer of a step after the prompt of the next one; none where there is only one.
fn mismatched(batches: &[Batch], max_length: usize) -> Vec<Example> {
    /// Tokens of a prompt, and of an answer with whether they are learnt.
    type Text = (Vec<u32>, Vec<(u32, bool)>);
    let mut texts: Vec<Text> = Vec::new();
    for batch in batches {
        let mut start = 0;
        for &length in &batch.lengths {
            let targets = &batch.targets[start..start + length];
            let first = targets.iter().position(Option::is_some);
            let prompt = first.map_or(length, |first| first + 1);
            let (prompt, answer) = batch.tokens[start..start + length].split_at(prompt);
            let learnt = targets
                .iter()
                .map(Option::is_some)
                .skip(prompt.len().max(1) - 1);
            texts.push((
                prompt.to_vec(),
                answer.iter().copied().zip(learnt).collect(),
            ));
            start += length;
        }
    }
    if texts.len() < 2 {
        return Vec::new();
    }
    let answers = texts.iter().cycle().skip(texts.len() - 1);
    let joined = texts.iter().zip(answers).map(|((prompt, _), (_, answer))| {
        let prompt = prompt.iter().map(|&token| (token, false));
        let (tokens, mask) = prompt
            .chain(answer.iter().copied())
            .take(max_length)
            .unzip();
        Example {
            tokens,
            mask,
            is_wanted: true,
            source: Source {
                file: std::path::Path::new("").into(),
                place: Place::Line(0),
            },
        }
    });
    joined.collect()
}
