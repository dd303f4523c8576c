//! Settings that cannot be honoured.

use std::path::PathBuf;

use thiserror::Error;

use super::run_files::SETTINGS;
use crate::sample_data;

/// A setting that cannot be honoured.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value out of range.
    #[error("--{flag}: expected {expected}, found {found}")]
    Value {
        /// The flag without its dashes.
        flag: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Nothing to train on.
    #[error(
        "--data is missing: give a JSONL file to learn from, for example `--data {}`",
        sample_data::example().unwrap_or_else(|| "FILE".into()).display()
    )]
    NoData,
    /// Nothing to evaluate on.
    #[error("--eval-steps needs --eval-data (or --eval-split, but not with --method grpo)")]
    NoEvalData,
    /// A run to go on with whose settings are not known.
    #[error(
        "--resume: expected the folder of a run or of one of its checkpoints, with the settings of the run in {SETTINGS}; found {}, \
         which has none: give --data and the other flags of the run, too",
        path.display()
    )]
    NoSettings {
        /// The folder.
        path: PathBuf,
    },
    /// Two settings exclude each other.
    #[error("{0}")]
    Conflict(String),
    /// The `--config` file, or that of an adapter, cannot be read or has a setting that cannot be honoured.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}
