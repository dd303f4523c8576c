//! What a run and a step of it did, for whoever started it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::commands::quoted;
use crate::memory::MemoryPlan;

/// What a run did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The folder with the result.
    pub output: PathBuf,
    /// The checkpoint to go on from, if the run was stopped before its end.
    pub stopped: Option<PathBuf>,
    /// Optimizer steps of the whole run.
    pub num_steps: usize,
    /// Values that were trained.
    pub num_trainable: usize,
    /// Tokens seen by this process.
    pub num_tokens: usize,
    /// Loss of the first step of this process.
    pub first_loss: Option<f64>,
    /// Last logged loss.
    pub last_loss: Option<f64>,
    /// Mean reward of the first step of this process (`--method grpo`).
    pub first_reward: Option<f64>,
    /// The same of the last logged step.
    pub last_reward: Option<f64>,
    /// Last evaluation loss.
    pub eval_loss: Option<f64>,
    /// Last mean reward of the answers to held-out prompts (`--method grpo`).
    pub eval_reward: Option<f64>,
    /// The step whose weights are the result, where that is the best one (`--load-best`).
    pub best_step: Option<usize>,
    /// Its evaluation loss.
    pub best_eval_loss: Option<f64>,
    /// Its mean reward of held-out prompts (`--method grpo`).
    pub best_eval_reward: Option<f64>,
    /// The evaluations ended the run before its last step (`--early-stopping-patience`).
    pub stopped_early: bool,
    /// Seconds spent in the loop.
    pub seconds: f64,
    /// Largest resident memory in bytes.
    pub peak_memory: Option<u64>,
    /// Bytes of the card's memory in use at the end, by all programs; a run gives nothing back before. CUDA only.
    pub device_memory: Option<u64>,
    /// What the run was expected to take of the device's memory.
    pub planned_memory: Option<MemoryPlan>,
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            num_steps,
            num_tokens,
            seconds,
            ..
        } = self;
        write!(
            formatter,
            "{num_steps} steps, {num_tokens} tokens in {seconds:.0} s"
        )?;
        if let (Some(first), Some(last)) = (self.first_loss, self.last_loss) {
            write!(formatter, "; loss {first:.3} → {last:.3}")?;
        }
        if let (Some(first), Some(last)) = (self.first_reward, self.last_reward) {
            write!(formatter, "; reward {first:.3} → {last:.3}")?;
        }
        if let Some(loss) = self.eval_loss {
            write!(formatter, "; eval loss {loss:.3}")?;
        }
        if let Some(reward) = self.eval_reward {
            write!(formatter, "; eval reward {reward:.3}")?;
        }
        let best = [
            ("loss", self.best_eval_loss),
            ("reward", self.best_eval_reward),
        ];
        for (name, best) in best {
            if let (Some(step), Some(best)) = (self.best_step, best) {
                write!(
                    formatter,
                    "; the result is step {step} with eval {name} {best:.3}"
                )?;
            }
        }
        if self.stopped_early {
            let gain = match self.eval_reward {
                Some(_) => "reward no longer rose",
                None => "loss no longer fell",
            };
            write!(
                formatter,
                "; stopped early, as the eval {gain} by more than --early-stopping-threshold"
            )?;
        }
        if let Some(bytes) = self.peak_memory {
            write!(
                formatter,
                "; peak memory of the process {} MiB",
                bytes >> 20
            )?;
        }
        if let Some(bytes) = self.device_memory {
            write!(formatter, "; {} MiB of the card in use", bytes >> 20)?;
        }
        match &self.stopped {
            Some(checkpoint) => write!(
                formatter,
                "\nStopped. To go on: --resume {}",
                quoted(&checkpoint.display().to_string())
            ),
            None => write!(formatter, "\nWritten to {}", self.output.display()),
        }
    }
}

/// What one optimizer step did, for the callback of [`Training::on_step`](crate::Training::on_step).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Optimizer steps done.
    pub step: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// Passes over the training data, with the fraction of the current one.
    pub epoch: f64,
    /// Mean cross-entropy per target token, in nats; the loss of the comparison where answers are compared.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens of the step, context and targets.
    pub num_tokens: usize,
}
