//! Why a model folder cannot be loaded.

use lora_4bit::bnb::BnbError;

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::json_file::JsonFileError;

/// Why a model folder cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weight files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A bitsandbytes weight.
    #[error(transparent)]
    Bnb(#[from] BnbError),
    /// One of the small files.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// A model for embeddings or scores, where text is wanted.
    #[error(
        "{dir}: config.json names a model without lm_head (`architectures`): it computes embeddings or scores, not text; \
         `server` serves it with --runner pooling", dir = .dir.display()
    )]
    NoHead {
        /// The folder.
        dir: std::path::PathBuf,
    },
    /// The files hold tensors that the config has no place for.
    #[error("{dir}: tensors that config.json has no place for: {names}", dir = .dir.display())]
    Unexpected {
        /// The folder.
        dir: std::path::PathBuf,
        /// Up to eight names.
        names: String,
    },
}
