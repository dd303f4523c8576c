//! Why a GGUF file cannot be written.

use std::io;
use std::path::{Path, PathBuf};

use crate::chat_template::TemplateError;
use crate::json_file::JsonFileError;
use crate::merge::MergeError;
use crate::tokenizer::TokenizerError;

/// Why a GGUF file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The weights.
    #[error(transparent)]
    Weights(#[from] MergeError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A small file of the folder.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// The tokenizer splits text as no tokenizer does that llama.cpp has for these models.
    #[error(
        "{}: the tokenizer splits text with {found}, expected the pattern of Qwen2, which llama.cpp knows as `qwen2`",
        dir.display()
    )]
    Split {
        /// The folder.
        dir: PathBuf,
        /// The pattern.
        found: String,
    },
    /// The tokenizer makes tokens as no tokenizer does that llama.cpp has for these models.
    #[error("{}: the tokenizer's `{field}`: expected {expected}, which llama.cpp knows, found {found}", dir.display())]
    Tokenization {
        /// The folder.
        dir: PathBuf,
        /// The field of tokenizer.json.
        field: &'static str,
        /// What llama.cpp has.
        expected: &'static str,
        /// What the tokenizer has.
        found: String,
    },
    /// A model for embeddings or scores.
    #[error(
        "{}: config.json names a model without lm_head (`architectures`), expected one that generates text",
        dir.display()
    )]
    NoHead {
        /// The folder.
        dir: PathBuf,
    },
    /// Biases that llama.cpp has no tensors for.
    #[error(
        "config.json: field `attention_bias`: expected false with model_type qwen3, whose attention has no biases in llama.cpp, \
         found true"
    )]
    AttentionBias,
    /// A number that the format has no room for.
    #[error("config.json: field `{field}`: expected a number below 2^32, found {found}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        found: usize,
    },
    /// Frequencies that the format has no words for.
    #[error(
        "config.json: field `rope_scaling`: expected none, linear or yarn, which GGUF files can describe, found {found}"
    )]
    RopeScaling {
        /// Their kind.
        found: &'static str,
    },
    /// An adapter that is more than pairs of matrices.
    #[error(
        "an adapter with {found} has no form in GGUF files, expected one with pairs of matrices only: merge it into the model \
         (`trainer-sft merge`, or `export --format gguf`)"
    )]
    AdapterForm {
        /// What it has.
        found: &'static str,
    },
    /// A tensor that the format has no name for.
    #[error("{}: tensor `{name}` has no name in GGUF files", dir.display())]
    Name {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The tokenizer has a token that the model has no embedding for.
    #[error(
        "{}: token {token:?} has id {id}, expected less than the {vocab} embeddings of config.json (`vocab_size`)",
        dir.display()
    )]
    Vocabulary {
        /// The folder.
        dir: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// An adapter cannot be stored in blocks.
    #[error("the matrices of an adapter are stored as f32, f16 or bf16, found {found}")]
    AdapterType {
        /// The type.
        found: &'static str,
    },
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
}

/// A [`GgufError::Io`] about `path`.
pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> GgufError {
    let path = path.to_owned();
    move |error| GgufError::Io { path, error }
}
