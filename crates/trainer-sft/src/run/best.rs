//! The best checkpoint of a run that goes on.

use std::path::Path;

use crate::checkpoint::TrainerState;
use crate::config::{Config, ConfigError, run_of};
use crate::error::TrainError;

/// Makes the path of the best checkpoint, in the state of the checkpoint of `--resume`, one of this run.
///
/// # Errors
/// When that checkpoint is not there any more.
pub(super) fn find_best(config: &Config, state: &mut TrainerState) -> Result<(), TrainError> {
    let run = &config.run;
    let (true, Some(resume)) = (run.load_best, &run.resume) else {
        return Ok(());
    };
    let Some(path) = state.best_model_checkpoint.take() else {
        // A run without --load-best has kept none.
        (state.best_metric, state.best_global_step) = (None, None);
        return Ok(());
    };
    let folder = run_of(resume).join(&path);
    if !folder.is_dir() {
        return Err(no_best(&folder));
    }
    state.best_model_checkpoint = match run.goes_on_in_its_folder() {
        true => Some(path),
        false => Some(folder.canonicalize().unwrap_or(folder)),
    };
    Ok(())
}

/// The checkpoint is not there any more.
pub(super) fn no_best(folder: &Path) -> TrainError {
    TrainError::Config(ConfigError::Value {
        flag: "load-best",
        expected: "the best checkpoint so far".into(),
        found: format!(
            "no folder {}: go on from a newer checkpoint",
            folder.display()
        ),
    })
}
