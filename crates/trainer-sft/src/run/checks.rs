//! Numbers that are none stop a run before anything of them is written.

use burn::tensor::Tensor;
use tracing::warn;

use crate::config::Config;
use crate::data::Source;
use crate::error::TrainError;
use crate::parameters::visit_model;
use crate::trainer::{StepNumbers, StepOutput, Trainer};

/// Steps of a GPU that may be unread at a time.
const MAX_UNREAD: usize = 16;
/// Records of a step that a message names.
const MAX_NAMED: usize = 4;
/// Part of the loss of guessing at random above which a model has collapsed.
const COLLAPSED: f64 = 0.98;

/// Losses and gradient norms of steps, read and checked some at a time.
#[derive(Debug, Default)]
pub(super) struct Checks {
    unread: Vec<(usize, StepOutput, Vec<Source>)>,
    /// Records of the last step.
    last: Vec<Source>,
    /// Whether the weights were drawn at random, so that the first losses are those of guessing.
    from_scratch: bool,
    /// Lowest loss so far.
    lowest: Option<f64>,
    has_warned: bool,
}

/// What is wrong, and where.
pub(super) struct Broken {
    step: usize,
    what: String,
    records: String,
    /// Whether no step had changed a weight.
    is_of_model: bool,
}

impl Broken {
    pub(super) fn into_error(self, config: &Config) -> TrainError {
        TrainError::Diverged {
            cause: match self.is_of_model {
                true => "no step had changed a weight, so that the model itself computes it: `trainer-sft inspect FOLDER` \
                         says what is wrong with a model or an adapter"
                    .to_owned(),
                false => config.likely_cause(),
            },
            step: self.step,
            what: self.what,
            records: self.records,
            output: config.run.output.clone(),
        }
    }
}

impl Checks {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            from_scratch: config.model.init_config.is_some(),
            // The loss of a comparison says nothing about guessing tokens.
            has_warned: config.method.method.is_preference(),
            ..Self::default()
        }
    }

    /// Notes a step.
    pub(super) fn add(&mut self, step: usize, output: StepOutput, sources: Vec<Source>) {
        self.unread.push((step, output, sources));
    }

    /// A weight that is broken after `step`, the last one that was read.
    pub(super) fn broken_weight_after(&self, step: usize, name: &str) -> Broken {
        Broken {
            step,
            what: format!("a value of `{name}` is not a finite number"),
            records: named(&self.last),
            is_of_model: false,
        }
    }

    /// Whether many steps are unread.
    pub(super) fn is_due(&self) -> bool {
        self.unread.len() >= MAX_UNREAD
    }

    /// Reads what is unread. Gives the numbers of the last step, or the first step with a number that is none.
    pub(super) fn read(&mut self, vocab: usize) -> Result<Option<StepNumbers>, Broken> {
        let mut last = None;
        for (step, output, sources) in self.unread.drain(..) {
            let numbers = output.numbers();
            let (loss, norm) = (numbers.means.loss, numbers.grad_norm);
            let broken = |what: &str, value: f64, is_of_model| {
                Err(Broken {
                    step,
                    what: format!("{what} is {value}"),
                    records: named(&sources),
                    is_of_model,
                })
            };
            if !loss.is_finite() {
                return broken("the loss", loss, step == 1);
            }
            if !norm.is_finite() {
                return broken("the norm of the gradients", norm, false);
            }
            let guessing = (vocab as f64).ln();
            let has_learnt = match self.lowest {
                Some(lowest) => lowest < 0.8 * guessing,
                None => !self.from_scratch,
            };
            if loss > COLLAPSED * guessing && has_learnt && !self.has_warned {
                self.has_warned = true;
                warn!(
                    "step {step}: the loss {loss:.2} is that of guessing at random (ln {vocab} = {guessing:.2}): the learning \
                     rate may be too high, or the tokenizer not the model's; {}",
                    named(&sources)
                );
            }
            self.lowest = Some(self.lowest.map_or(loss, |lowest| lowest.min(loss)));
            last = Some(numbers);
            self.last = sources;
        }
        Ok(last)
    }
}

/// The first trained tensor with a value that is no finite number.
pub(super) fn broken_weight(trainer: &mut Trainer) -> Option<String> {
    let trainable = trainer.options().trainable;
    let mut names = Vec::new();
    let mut sums: Vec<Tensor<1>> = Vec::new();
    visit_model(&mut trainer.model, trainable, &mut |name, parameter| {
        names.push(name.to_owned());
        // 0 for a finite number, and not a number for any other value.
        let value = parameter.value();
        sums.push((value.clone() - value).sum()); // [1]
    });
    let sums: Vec<f32> = match sums.is_empty() {
        true => Vec::new(),
        false => Tensor::cat(sums, 0).into_data().iter::<f32>().collect(),
    };
    let mut all = names.into_iter().zip(sums);
    all.find(|(_, sum)| !sum.is_finite()).map(|(name, _)| name)
}

fn named(sources: &[Source]) -> String {
    let shown: Vec<String> = sources
        .iter()
        .take(MAX_NAMED)
        .map(ToString::to_string)
        .collect();
    let more = match sources.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("records {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_before_any_change_is_of_the_model() {
        let mut config = Config::new("x");
        config.model.model = Some("m".to_owned());
        let said = |is_of_model| {
            let broken = Broken {
                step: 1,
                what: "the loss is NaN".to_owned(),
                records: "records a.jsonl:1".to_owned(),
                is_of_model,
            };
            broken.into_error(&config).to_string()
        };
        assert!(said(true).contains("`trainer-sft inspect FOLDER`"));
        assert!(said(false).contains("--learning-rate"));
    }

    #[test]
    fn a_message_names_a_few_records() {
        let source = |line| Source {
            file: std::path::Path::new("a.jsonl").into(),
            place: crate::data::Place::Line(line),
        };
        let sources: Vec<Source> = (1..=6).map(source).collect();
        assert_eq!(named(&sources[..2]), "records a.jsonl:1, a.jsonl:2");
        let expected = "records a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4 and 2 more";
        assert_eq!(named(&sources), expected);
    }
}
