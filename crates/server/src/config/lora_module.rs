//! `--lora-modules`.

use std::path::PathBuf;

use serde::Deserialize;

/// One `--lora-modules` entry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LoraModule {
    /// Name for requests.
    pub name: String,
    /// PEFT folder.
    pub path: PathBuf,
}
