//! `--finetuning-priority`.

use serde::{Deserialize, Serialize};

/// What a job gets of the processor while requests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobPriority {
    /// The smallest share, and all of it while no request needs it
    #[default]
    Normal,
    /// Nothing: a job waits while requests run
    Low,
}
