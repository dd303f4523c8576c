//! The checkpoints of a run: written, counted, and the best one read back.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use tracing::{info, warn};

use super::Run;
use super::best::no_best;
use crate::batch::LoaderState;
use crate::checkpoint::{self, CheckpointError};
use crate::config::checkpoints_of;
use crate::error::TrainError;
use crate::setup::read_weights;

impl Run<'_> {
    /// Writes a checkpoint after the step, and removes the ones that are no longer kept.
    pub(super) fn save(&mut self, is_new_best: bool) -> Result<PathBuf, TrainError> {
        let before = self.state.best_model_checkpoint.clone();
        if is_new_best {
            let name = format!("checkpoint-{}", self.trainer.num_steps());
            self.state.best_model_checkpoint = Some(name.into());
        }
        let saved = match self.save_checkpoint(self.loader.state()) {
            Ok(saved) => saved,
            Err(error) => {
                // What is not there cannot be the result: a later evaluation may be.
                if is_new_best {
                    self.state.best_model_checkpoint = before;
                    self.forget_unsaved_best();
                }
                return Err(error);
            }
        };
        self.remove_surplus(&saved);
        Ok(saved)
    }

    pub(super) fn save_checkpoint(&mut self, loader: LoaderState) -> Result<PathBuf, TrainError> {
        let step = self.trainer.num_steps();
        (self.state.step, self.state.loader) = (step, loader);
        let dir = self.config.run.output.join(format!("checkpoint-{step}"));
        checkpoint::save(&dir, &self.state, self.trainer.optimizer(), |folder| {
            let saved = self.weights.save(&self.trainer.model, folder, DType::F32);
            saved.map_err(|error| CheckpointError::Weights(error.to_string()))
        })?;
        Ok(dir)
    }

    /// The folder of the best checkpoint.
    fn best_folder(&self) -> Option<PathBuf> {
        let path = self.state.best_model_checkpoint.as_ref()?;
        Some(self.config.run.output.join(path))
    }

    /// The best step is the one whose checkpoint is there.
    fn forget_unsaved_best(&mut self) {
        let folder = self.best_folder();
        let state = folder.and_then(|folder| checkpoint::load_state(&folder).ok());
        (self.state.best_metric, self.state.best_global_step) = match state {
            Some(state) => (state.best_metric, state.best_global_step),
            None => (None, None),
        };
    }

    /// Removes the oldest checkpoints above `--save-total-limit`, but neither the one just `saved` nor the best one.
    fn remove_surplus(&self, saved: &Path) {
        let Some(limit) = self.config.run.save_total_limit else {
            return;
        };
        let mut all = checkpoints_of(&self.config.run.output);
        all.sort();
        let best = self.best_folder().filter(|_| self.config.run.load_best);
        let is_kept = |folder: &Path| folder == saved || best.as_deref() == Some(folder);
        let num_kept = all.iter().filter(|(_, folder)| is_kept(folder)).count();
        let surplus = all.len() - limit.max(num_kept).min(all.len());
        let others = all.iter().filter(|(_, folder)| !is_kept(folder));
        others.take(surplus).for_each(|(_, folder)| remove(folder));
    }

    /// With `--load-best`, puts the weights of the best checkpoint in the place of the last ones.
    pub(super) fn go_back_to_best(&mut self) -> Result<(), TrainError> {
        let step = self.state.best_global_step;
        if !self.config.run.load_best || step.is_none() {
            return Ok(());
        }
        self.summary.best_step = step;
        match self.grpo.is_some() {
            true => self.summary.best_eval_reward = self.state.best_metric,
            false => self.summary.best_eval_loss = self.state.best_metric,
        }
        if step == Some(self.trainer.num_steps()) {
            return Ok(());
        }
        let folder = self.best_folder().ok_or_else(|| no_best(Path::new("")))?;
        read_weights(self.config, self.trainer.model_mut(), &folder)?;
        info!("the result is the best checkpoint: {}", folder.display());
        Ok(())
    }
}

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        warn!("{}: cannot be removed: {error}", folder.display());
    }
}
