//! Why an adapter cannot be merged.

use std::io;
use std::path::{Path, PathBuf};

use lora_4bit::bnb::BnbError;
use safetensors::Dtype;

use crate::adapter::AdapterError;
use crate::checkpoint::CheckpointError;
use crate::json_file::JsonFileError;
use crate::load::LoadError;
use crate::model_folder::ModelFolderError;

/// Why merged weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// One of the small files.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// The weight files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter was made for another model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A bitsandbytes weight.
    #[error(transparent)]
    Bnb(#[from] BnbError),
    /// A small file of the folder cannot be read, copied or written.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// A tensor is not in the files.
    #[error("{}: tensor `{name}` is missing", dir.display())]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has a dtype that weights cannot have.
    #[error("{}: tensor `{name}`: expected dtype BF16, F16 or F32, found {found}", dir.display())]
    Dtype {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype in the file.
        found: Dtype,
    },
    /// A weight is no number.
    #[error(
        "{}: tensor `{name}`{}: value {index} is {found}, expected a finite number", dir.display(),
        if *is_changed { " with the adapter added" } else { "" }
    )]
    NotFinite {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// Place of the first such value.
        index: usize,
        /// The value.
        found: f32,
        /// Whether the adapter has a part in it.
        is_changed: bool,
    },
    /// A weight is too large for the dtype that it is written in.
    #[error(
        "tensor `{name}`: {found} is too large for {dtype}, expected at most {largest}: choose bf16 or f32"
    )]
    TooLarge {
        /// The tensor.
        name: String,
        /// The value.
        found: f32,
        /// The dtype.
        dtype: &'static str,
        /// The largest number of that dtype.
        largest: f32,
    },
    /// Whoever looked on has stopped it.
    #[error("stopped")]
    Stopped,
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
}

/// A [`MergeError::Io`] about `path`.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> MergeError {
    let path = path.to_owned();
    move |error| MergeError::Io { path, error }
}
