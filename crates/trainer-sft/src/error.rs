//! Why a training run fails.

use std::path::{Path, PathBuf};

use lora_4bit::peft::PeftError;
use model_qwen::{AdapterError, DeviceError, LoadError, SaveError};
use thiserror::Error;

use crate::chat_format::ModelFilesError;
use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::DataError;

/// Why a run cannot start or go on.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--device`.
    #[error("--device: {0}")]
    Device(#[from] DeviceError),
    /// The model's folder, tokenizer or chat template.
    #[error(transparent)]
    ModelFiles(#[from] ModelFilesError),
    /// The model's weights.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer makes ids that the model has no embedding for.
    #[error(
        "the tokenizer has {tokens} tokens and the model only {vocab} embeddings: give the tokenizer of this model"
    )]
    Vocabulary {
        /// Size of the tokenizer's vocabulary.
        tokens: usize,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The training or evaluation data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// `--full` on a 4-bit checkpoint.
    #[error(
        "--full: layer `{0}` of the model is 4-bit and cannot be trained: give the unquantized model, or leave --full out"
    )]
    Quantized(String),
    /// The checkpoint of `--resume` belongs to another run.
    #[error("--resume: {field} is {found} in the checkpoint and {expected} in this run")]
    Resume {
        /// What differs.
        field: &'static str,
        /// The checkpoint's value.
        found: String,
        /// This run's value.
        expected: String,
    },
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter's files.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// An adapter that does not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The trained model cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A file of the output folder.
    #[error("{}: {error}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The loss is infinite or not a number.
    #[error(
        "the loss is {loss} at step {step}: training has diverged; try a smaller --learning-rate. Checkpoints written before stay in {}",
        output.display()
    )]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f64,
        /// The output folder.
        output: PathBuf,
    },
}

/// A [`TrainError::Output`] about `path`.
pub(crate) fn output_error(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    let path = path.to_path_buf();
    move |error| TrainError::Output { path, error }
}
