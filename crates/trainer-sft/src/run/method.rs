//! What a step learns from, by the method of the run.

use super::Run;
use crate::batch::StepBatch;
use crate::error::TrainError;
use crate::grpo::Grpo;
use crate::trainer::StepOutput;

impl Run<'_> {
    /// What the next step learns from.
    pub(super) fn next_batch(&mut self) -> Result<StepBatch, TrainError> {
        match self.grpo.as_ref().and_then(Grpo::prompts_again) {
            Some(batch) => Ok(batch),
            None => Ok(self.loader.next_step()?),
        }
    }

    /// One optimizer step on `batch`, by the method of the run.
    pub(super) fn optimize(&mut self, batch: &mut StepBatch) -> Result<StepOutput, TrainError> {
        let Some(grpo) = &mut self.grpo else {
            return Ok(self.trainer.step(&batch.micro_batches));
        };
        grpo.step(&mut self.trainer, batch, self.watch.stop)
    }
}
