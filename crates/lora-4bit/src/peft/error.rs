//! What can be wrong with an adapter.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensorError};

use super::names::{CONFIG_FILE, PREFIX, WEIGHTS_FILE};

/// Why an adapter cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeftError {
    /// The folder is not there.
    #[error("adapter folder `{0}` does not exist")]
    NoFolder(PathBuf),
    /// The path leads to something else than a folder.
    #[error("`{0}` is not a folder, expected one with {CONFIG_FILE} and {WEIGHTS_FILE}")]
    NotAFolder(PathBuf),
    /// A file is not in the folder.
    #[error("`{folder}` has no {file}{hint}")]
    NoFile {
        /// The folder.
        folder: PathBuf,
        /// The missing file.
        file: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// The file system refused.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The configuration is not JSON, or a field has the wrong type.
    #[error("{CONFIG_FILE}: {0}")]
    ConfigJson(serde_json::Error),
    /// A field has an impossible value.
    #[error("{CONFIG_FILE}: field `{field}` is {found}, expected {expected}")]
    ConfigValue {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A field asks for something that is not implemented.
    #[error(
        "{CONFIG_FILE}: field `{field}` is {found}, which is not supported (supported: {supported})"
    )]
    Unsupported {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The values that are supported.
        supported: &'static str,
    },
    /// A pattern is not a regular expression.
    #[error("{CONFIG_FILE}: field `{field}`: `{pattern}` is not a regular expression: {reason}")]
    Pattern {
        /// Name of the field.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file with the matrices is not a safetensors file.
    #[error("{WEIGHTS_FILE}: {0}")]
    Safetensors(SafeTensorError),
    /// A tensor is not a LoRA matrix.
    #[error(
        "{WEIGHTS_FILE}: tensor `{0}` is not a LoRA matrix, expected `{PREFIX}<module>.lora_A.weight` or `.lora_B.weight`"
    )]
    UnexpectedTensor(String),
    /// A tensor belongs to a module that adapters are not computed for.
    #[error(
        "{WEIGHTS_FILE}: tensor `{0}`: adapters of lm_head, embed_tokens and norms are not supported; supported are those of the \
         linear layers inside the decoder, and whole weights of embed_tokens and lm_head"
    )]
    UnsupportedModule(String),
    /// A file is not what its name says.
    #[error(
        "`{0}` is a Git LFS pointer, the file itself was not fetched: run `git lfs pull` in the folder, or download the adapter \
         again"
    )]
    LfsPointer(PathBuf),
    /// A tensor belongs to a module that the configuration does not target.
    #[error(
        "{WEIGHTS_FILE}: tensor `{0}` belongs to a module that {CONFIG_FILE} does not target (`target_modules`, `exclude_modules`, \
         `layers_to_transform`)"
    )]
    UntargetedTensor(String),
    /// Only one of the two matrices of a module is there.
    #[error("{WEIGHTS_FILE}: tensor `{found}` has no partner `{missing}`")]
    NoPartner {
        /// The matrix that is there.
        found: String,
        /// The one that is not.
        missing: String,
    },
    /// A matrix holds an infinity or what is not a number.
    #[error("{WEIGHTS_FILE}: tensor `{name}`: value {index} is {found}, expected a finite number")]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// Place of the first such value.
        index: usize,
        /// The value.
        found: f32,
    },
    /// A matrix has a type that is not a 16- or 32-bit float.
    #[error("{WEIGHTS_FILE}: tensor `{name}` has dtype {found}, expected F32, BF16 or F16")]
    Dtype {
        /// Name of the tensor.
        name: String,
        /// Its type.
        found: Dtype,
    },
    /// A matrix has another shape than the configuration asks for.
    #[error(
        "{WEIGHTS_FILE}: tensor `{name}` has shape {found:?}, expected {expected} (rank {rank} by {CONFIG_FILE})"
    )]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The right shape.
        expected: &'static str,
        /// The rank that the configuration gives the module.
        rank: usize,
    },
    /// DoRA's magnitudes are not one for each row of the module's weight.
    #[error(
        "{WEIGHTS_FILE}: tensor `{name}` has shape {found:?}, expected [{expected}], the rows of lora_B"
    )]
    MagnitudeShape {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// Number of rows.
        expected: usize,
    },
    /// A module of `modules_to_save` is not in the file.
    #[error("{WEIGHTS_FILE} has no tensor `{0}`, which `modules_to_save` in {CONFIG_FILE} names")]
    NoSavedModule(String),
    /// The weight of a saved module is no matrix.
    #[error("{WEIGHTS_FILE}: tensor `{name}` has shape {found:?}, expected [vocab, hidden]")]
    SavedShape {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// There is no matrix at all.
    #[error("{WEIGHTS_FILE} holds no LoRA matrix")]
    Empty,
    /// The matrices of a module in memory do not have the sizes that they state.
    #[error("module `{module}`: matrix {matrix} holds {found} values, expected {expected}")]
    NumValues {
        /// Name of the module.
        module: String,
        /// `A`, `B`, `lora_magnitude_vector`, or `weight` of a saved module.
        matrix: &'static str,
        /// The number of values.
        found: usize,
        /// The right number.
        expected: usize,
    },
}

impl PeftError {
    /// The message with the adapter's folder, which some errors name already.
    pub fn of(&self, folder: &Path) -> String {
        match self {
            Self::NoFolder(_)
            | Self::NotAFolder(_)
            | Self::NoFile { .. }
            | Self::Io { .. }
            | Self::LfsPointer(_) => self.to_string(),
            _ => format!("{}: {self}", folder.display()),
        }
    }

    pub(super) fn value(field: &'static str, found: impl Display, expected: &'static str) -> Self {
        let found = found.to_string();
        Self::ConfigValue {
            field,
            found,
            expected,
        }
    }

    pub(super) fn unsupported(
        field: &'static str,
        found: impl Display,
        supported: &'static str,
    ) -> Self {
        let found = found.to_string();
        Self::Unsupported {
            field,
            found,
            supported,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
