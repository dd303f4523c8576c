//! `--resume`: the checkpoint to go on from, and the run that it is part of.

use std::path::{Path, PathBuf};

use super::RunConfig;
use super::error::ConfigError;
use super::run_files::STATE_FILE;

impl RunConfig {
    /// Whether this is a run that goes on in the folder that it has written so far.
    pub(crate) fn goes_on_in_its_folder(&self) -> bool {
        let Some(checkpoint) = &self.resume else {
            return false;
        };
        let (own, output) = (
            run_of(checkpoint).canonicalize(),
            self.output.canonicalize(),
        );
        own.is_ok_and(|own| output.is_ok_and(|output| own == output))
    }
}

/// The folder of the run that a checkpoint is part of; `path` itself where it is a run.
pub(crate) fn run_of(path: &Path) -> PathBuf {
    match (number(path), path.parent()) {
        (Some(_), Some(parent)) if parent.as_os_str().is_empty() => PathBuf::from("."),
        (Some(_), Some(parent)) => parent.to_path_buf(),
        _ => path.to_path_buf(),
    }
}

/// `path` where it is a checkpoint, otherwise the newest checkpoint in it.
///
/// # Errors
/// When there is none.
pub(crate) fn find_checkpoint(path: &Path) -> Result<PathBuf, ConfigError> {
    if path.join(STATE_FILE).is_file() {
        return Ok(path.to_path_buf());
    }
    if let Some(folder) = newest_checkpoint(path) {
        return Ok(folder);
    }
    let found = match path.is_dir() {
        true => "without one: --save-steps N writes some, and so does a run that is stopped",
        false => "which is no folder",
    };
    Err(ConfigError::Value {
        flag: "resume",
        expected: "a checkpoint folder, or the folder of a run that has some".into(),
        found: format!("{}, {found}", path.display()),
    })
}

/// The checkpoint with the largest number in the folder of a run.
pub(crate) fn newest_checkpoint(run: &Path) -> Option<PathBuf> {
    let newest = checkpoints_of(run).into_iter().max();
    newest.map(|(_, folder)| folder)
}

/// The checkpoints in the folder of a run, with their numbers.
pub(crate) fn checkpoints_of(run: &Path) -> Vec<(usize, PathBuf)> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let checkpoints = entries.filter_map(|entry| {
        let folder = entry.path();
        let number = number(&folder)?;
        folder
            .join(STATE_FILE)
            .is_file()
            .then_some((number, folder))
    });
    checkpoints.collect()
}

/// 20 of `checkpoint-20`.
fn number(folder: &Path) -> Option<usize> {
    let name = folder.file_name()?.to_str()?;
    name.strip_prefix("checkpoint-")?.parse().ok()
}
