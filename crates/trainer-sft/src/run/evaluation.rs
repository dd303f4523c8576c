//! The evaluations of a run, and what they decide.

use super::Run;
use super::told::{Told, accuracy, of_comparison};
use crate::batch::{StepBatch, sequential_batches};
use crate::config::Method;
use crate::error::TrainError;
use crate::metrics::Record;

impl Run<'_> {
    /// Measures the evaluation data, where there is any. Says whether the loss is the lowest so far.
    pub(super) fn evaluate(&mut self, batch: &StepBatch, told: &Told) -> Result<bool, TrainError> {
        // Steps that have failed are told of as such.
        self.read_checks()?;
        let step = self.trainer.num_steps();
        let rows = match self.config.method.method {
            // The baseline of an answer is that of others.
            Method::Kto => self.config.run.batch_size.max(2),
            _ => self.config.run.batch_size,
        };
        let batches = sequential_batches(&self.eval, rows);
        let Some((means, compared)) = self.trainer.measure_compared(batches)? else {
            return Ok(false);
        };
        let loss = means.loss;
        if !loss.is_finite() {
            let flag = match self.config.data.eval_split {
                Some(_) => "--eval-split",
                None => "--eval-data",
            };
            return Err(TrainError::Diverged {
                cause: self.config.likely_cause(),
                step,
                what: format!("the evaluation loss is {loss}"),
                records: format!("records of {flag}"),
                output: self.config.run.output.clone(),
            });
        }
        self.summary.eval_loss = Some(loss);
        told.line(&format!(
            "step {step}: eval loss {loss:.4}{}, entropy {:.3}{}",
            accuracy(Some(means.token_accuracy)),
            means.entropy,
            of_comparison(&compared)
        ));
        let compared = compared.into_iter();
        let record = Record {
            eval_loss: Some(loss),
            eval_mean_token_accuracy: Some(means.token_accuracy).filter(|part| part.is_finite()),
            eval_entropy: Some(means.entropy),
            num_tokens: Some(self.state.num_input_tokens_seen),
            more: compared
                .map(|(name, value)| (format!("eval_{name}"), value))
                .collect(),
            ..self.record(batch)
        };
        self.write(&record);
        Ok(self.compare(step, loss))
    }

    /// Notes the loss after `step`, as transformers' `EarlyStoppingCallback` does. Says whether it is the lowest so far.
    fn compare(&mut self, step: usize, loss: f64) -> bool {
        let threshold = self.config.run.early_stopping_threshold.unwrap_or(0.0);
        let best = self.state.best_metric;
        let gain = best.map(|best| best - loss);
        match gain.is_none_or(|gain| gain > threshold) {
            true => self.state.early_stopping_patience_counter = 0,
            false => self.state.early_stopping_patience_counter += 1,
        }
        let is_best = best.is_none_or(|best| loss < best);
        if is_best {
            self.state.best_metric = Some(loss);
            self.state.best_global_step = Some(step);
        }
        is_best
    }

    /// Whether the evaluations end the run.
    pub(super) fn has_lost_patience(&self) -> bool {
        let counter = self.state.early_stopping_patience_counter;
        let patience = self.config.run.early_stopping_patience;
        patience.is_some_and(|patience| counter >= patience)
    }
}
