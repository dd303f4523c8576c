//! What a run tells, as events of its job.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Map, Value, json};
use trainer_sft::metrics::Record;
use trainer_sft::{Sample, StepReport};

use super::events::Event;
use super::messages::JobMessage;

/// Listens to a run, and tells of it.
pub(super) struct Watcher<'a> {
    tell: &'a dyn Fn(JobMessage),
    /// The numbers of the step that is being told of.
    record: RefCell<Option<Record>>,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(tell: &'a dyn Fn(JobMessage)) -> Self {
        Self {
            tell,
            record: RefCell::default(),
        }
    }

    fn tell(&self, event: Event) {
        (self.tell)(JobMessage::Event(event));
    }

    /// Numbers of a step or of an evaluation.
    pub(super) fn record(&self, record: &Record) {
        if record.loss.is_some() {
            *self.record.borrow_mut() = Some(record.clone());
        }
        let Some(loss) = record.eval_loss else { return };
        let mut data = Map::new();
        let step = record.step;
        data.insert("step".to_owned(), step.into());
        put(&mut data, "full_valid_loss", Some(loss));
        let accuracy = record.eval_mean_token_accuracy;
        put(&mut data, "full_valid_mean_token_accuracy", accuracy);
        for (name, value) in &record.more {
            put(&mut data, name, Some(*value));
        }
        let text = format!("Step {step}: validation loss={loss:.4}");
        self.tell(Event::metrics(text, Value::Object(data)));
    }

    /// A step is done.
    pub(super) fn step(&self, report: &StepReport) -> ControlFlow<()> {
        let record = self.record.take().unwrap_or_default();
        let StepReport {
            step, total_steps, ..
        } = *report;
        let mut data = Map::new();
        data.insert("step".to_owned(), step.into());
        data.insert("total_steps".to_owned(), total_steps.into());
        for (name, value) in [
            ("epoch", Some(report.epoch)),
            ("train_loss", Some(report.loss)),
            ("train_mean_token_accuracy", record.mean_token_accuracy),
            ("learning_rate", Some(report.learning_rate)),
            ("grad_norm", Some(report.grad_norm)),
            ("tokens_per_second", record.tokens_per_second),
        ] {
            put(&mut data, name, value);
        }
        for (name, value) in &record.more {
            put(&mut data, name, Some(*value));
        }
        let text = format!(
            "Step {step}/{total_steps}: training loss={:.4}",
            report.loss
        );
        (self.tell)(JobMessage::Step {
            event: Event::metrics(text, Value::Object(data)),
            step,
            total_steps,
            num_tokens: record.num_tokens.map(|num| num as u64),
        });
        ControlFlow::Continue(())
    }

    /// Answers to the prompts.
    pub(super) fn samples(&self, samples: &[Sample]) {
        for sample in samples {
            let text = format!("Step {}, sample {}", sample.step, sample.index + 1);
            let data = json!({ "step": sample.step, "sample": sample });
            self.tell(Event::with_data(text, data));
        }
    }

    /// A checkpoint is complete.
    pub(super) fn checkpoint(&self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name
            .strip_prefix("checkpoint-")
            .and_then(|step| step.parse::<u64>().ok());
        let text = format!("Checkpoint created at step {}", step.unwrap_or(0));
        self.tell(Event::with_data(text, json!({ "step": step })));
    }
}

/// Adds a number that is one: JSON has no others.
fn put(data: &mut Map<String, Value>, name: &str, value: Option<f64>) {
    if let Some(value) = value.filter(|value| value.is_finite()) {
        data.insert(name.to_owned(), value.into());
    }
}
