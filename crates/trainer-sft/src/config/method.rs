//! What is learnt from: examples, or rewards.

use serde::{Deserialize, Serialize};

/// How a run learns, by the names of TRL's trainers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// From examples of answers (supervised fine-tuning).
    #[default]
    Sft,
    /// From rewards for its own answers (group relative policy optimization).
    Grpo,
}
