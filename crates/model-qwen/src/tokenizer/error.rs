//! Why a tokenizer can't be used.

use std::path::PathBuf;

use crate::json_file::JsonFileError;

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Neither `tokenizer.json` nor `vocab.json` + `merges.txt` is in the folder.
    #[error(
        "no tokenizer in {}: expected tokenizer.json (or vocab.json and merges.txt), found {found}",
        dir.display()
    )]
    Missing {
        /// The folder that was searched.
        dir: PathBuf,
        /// What the folder holds.
        found: String,
    },
    /// A tokenizer file is there but cannot be used.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `tokenizer_config.json`, or another small file of the folder.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// Text could not be turned into tokens, or tokens into text.
    #[error("tokenizer: {0}")]
    Process(String),
}
