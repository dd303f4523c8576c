//! The evaluations of a run, and what they decide.

use tracing::warn;

use super::Run;
use super::progress::{ProgressReport, accuracy, of_comparison};
use crate::batch::{StepBatch, sequential_batches};
use crate::config::Method;
use crate::error::TrainError;
use crate::metrics::Record;

impl Run<'_> {
    /// Measures the evaluation data, where there is any. Says whether the loss is the lowest so far, or the reward the highest.
    pub(super) fn evaluate(
        &mut self,
        batch: &StepBatch,
        progress: &ProgressReport,
    ) -> Result<bool, TrainError> {
        // Steps that have failed are told of as such.
        self.read_checks()?;
        if self.grpo.is_some() {
            return self.evaluate_rewards(batch, progress);
        }
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
        progress.line(&format!(
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

    /// The same of the answers to held-out prompts.
    fn evaluate_rewards(
        &mut self,
        batch: &StepBatch,
        progress: &ProgressReport,
    ) -> Result<bool, TrainError> {
        let step = self.trainer.num_steps();
        let measured = match &self.grpo {
            Some(grpo) => grpo.measure(&mut self.trainer)?,
            None => None,
        };
        let Some(numbers) = measured else {
            return Ok(false);
        };
        let Some(&reward) = numbers.get("eval_reward") else {
            warn!("step {step}: no answer to a held-out prompt got a reward");
            return Ok(false);
        };
        self.summary.eval_reward = Some(reward);
        let length = numbers.get("eval_completions/mean_length");
        progress.line(&format!(
            "step {step}: eval reward {reward:.4}, {:.0} tokens per answer",
            length.copied().unwrap_or(f64::NAN)
        ));
        let record = Record {
            num_tokens: Some(self.state.num_input_tokens_seen),
            more: numbers,
            ..self.record(batch)
        };
        self.write(&record);
        Ok(self.compare(step, reward))
    }

    /// Notes the loss (or the reward) after `step`, as transformers' `EarlyStoppingCallback` does. Says whether it is the best so
    /// far.
    fn compare(&mut self, step: usize, found: f64) -> bool {
        let threshold = self.config.run.early_stopping_threshold.unwrap_or(0.0);
        let best = self.state.best_metric;
        let is_reward = self.grpo.is_some();
        let gain = best.map(|best| match is_reward {
            true => found - best,
            false => best - found,
        });
        match gain.is_none_or(|gain| gain > threshold) {
            true => self.state.early_stopping_patience_counter = 0,
            false => self.state.early_stopping_patience_counter += 1,
        }
        let is_best = gain.is_none_or(|gain| gain > 0.0);
        if is_best {
            self.state.best_metric = Some(found);
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
