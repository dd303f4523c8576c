//! Learning from answers that are compared or judged: DPO, ORPO and KTO, with the losses and the numbers of TRL.
//!
//! Each loss is a function of the log-probabilities of whole answers. A micro-batch is therefore computed in three stages: the
//! reference's log-probabilities without gradients, the model's up to the head, and the gradient of each token's cross-entropy,
//! weighted by the derivative of the loss. The reference is the same model with its adapter switched off, or with another one
//! switched on.

mod answers;
mod losses;
mod objective;
mod score;
mod step;
mod tally;

use lora_4bit::AdapterSelection;
use model_qwen::QwenModel;

use self::answers::{Answers, mismatched};
pub use self::objective::Objective;
use self::step::Step;
pub use self::tally::Numbers;
pub(crate) use self::tally::Tally;
use crate::batch::{Batch, StepShare};
use crate::config::{Config, ConfigError, LossType, Method};
use crate::data::{Example, Examples};
use crate::error::TrainError;
use crate::parameters::GradientStore;
use crate::step::rows;
use crate::step::{Means, StepOptions};

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

/// Sum and number of what KTO's baseline is the mean of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Baseline {
    sum: f64,
    count: usize,
}

impl Baseline {
    /// That of all shares together.
    pub(crate) fn of_all(shares: impl IntoIterator<Item = Self>) -> Self {
        let add = |all: Self, share: Self| Self {
            sum: all.sum + share.sum,
            count: all.count + share.count,
        };
        shares.into_iter().fold(Self::default(), add)
    }

    /// The baseline, at least 0. A step of one answer has no such text, and the baseline 0.
    pub(crate) fn mean(self) -> f64 {
        match self.count {
            0 => 0.0,
            count => (self.sum / count as f64).max(0.0),
        }
    }
}

/// Refuses a weight of 0 for all of the data: nothing of it would be learnt.
///
/// # Errors
/// `--method kto` with answers of one label, whose weight is 0; answers that cannot be read.
pub(crate) fn check_labels(config: &Config, examples: &Examples) -> Result<(), TrainError> {
    let settings = &config.method;
    for (flag, weight, label) in [
        ("desirable-weight", settings.desirable_weight, true),
        ("undesirable-weight", settings.undesirable_weight, false),
    ] {
        if weight != Some(0.0) {
            continue;
        }
        let mut others = examples.iter().filter(|example| {
            let is_other = |example: &Example| example.is_wanted != label;
            example.as_ref().map_or(true, is_other)
        });
        match others.next() {
            Some(other) => drop(other?),
            None => {
                return Err(ConfigError::Conflict(format!(
                    "--{flag} 0 leaves nothing to learn: every record of the data has the label {label}"
                ))
                .into());
            }
        }
    }
    Ok(())
}

impl Preference {
    /// What `config` says; `None` where answers are only learnt.
    pub(crate) fn of(config: &Config, reference: Option<usize>, max_length: usize) -> Option<Self> {
        let settings = &config.method;
        let beta = settings.beta();
        let objective = match settings.method {
            Method::Sft | Method::Grpo => return None,
            Method::Dpo => Objective::Dpo {
                beta,
                loss: settings.loss_type.unwrap_or(LossType::Sigmoid),
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

    /// Adds the gradients of the loss of a share of `batches` to `store`. Gives what to count of it.
    pub(crate) fn gradients(
        &self,
        model: &QwenModel,
        share: StepShare<'_>,
        baseline: f64,
        options: StepOptions<'_>,
        store: &mut GradientStore,
    ) -> Tally {
        let step = self.scale(share.batches, baseline);
        let mut tally = Tally::default();
        for (_, batch) in share.own() {
            let answers = Answers::new(batch, &self.objective);
            let reference = self.reference(model, &answers);
            rows::forward_backward(model, &answers.batch, options, store, |stats| {
                self.add(&mut tally, &answers, stats, &reference, &step)
            });
        }
        tally
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
            let batches = std::slice::from_ref(&batch);
            let baseline = self.baseline(model, adapters, StepShare::whole(batches));
            let step = self.scale(batches, baseline.mean());
            let answers = Answers::new(&batch, &self.objective);
            let reference = self.reference(model, &answers);
            let stats = rows::forward(model, &answers.batch, adapters);
            self.add(&mut tally, &answers, &stats, &reference, &step);
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
        let stats = rows::forward(model, &answers.batch, &self.reference_adapters());
        let documents = 0..answers.rows.len();
        documents
            .map(|index| answers.read(index, &stats).log_p)
            .collect()
    }

    /// What the batches of a step share.
    fn scale(&self, batches: &[Batch], baseline: f64) -> Step {
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
            Objective::Kto { .. } => step.baseline = baseline,
        }
        step
    }

    /// Whether a step has a baseline.
    pub(crate) fn has_baseline(&self) -> bool {
        matches!(self.objective, Objective::Kto { .. })
    }

    /// How much likelier than under the reference an answer is after the prompt of another one, of a share of the texts of a
    /// step. Only [`Objective::Kto`] asks for it.
    pub(crate) fn baseline(
        &self,
        model: &QwenModel,
        adapters: &AdapterSelection,
        share: StepShare<'_>,
    ) -> Baseline {
        let mut found = Baseline::default();
        if !self.has_baseline() {
            return found;
        }
        let texts = mismatched(share.batches, self.max_length);
        let size = share
            .batches
            .first()
            .map_or(1, |batch| batch.lengths.len())
            .max(1);
        let chunks: Vec<_> = texts.chunks(size).collect();
        for (_, texts) in share.share.items(&chunks) {
            let batch = Batch::collate(*texts);
            let answers = Answers::new(&batch, &self.objective);
            let stats = rows::forward(model, &answers.batch, adapters);
            let reference = self.reference(model, &answers);
            for (index, reference) in reference.iter().enumerate() {
                found.sum += answers.read(index, &stats).log_p - reference;
                found.count += 1;
            }
        }
        found
    }
}
