//! Why a command fails.

use std::io;
use std::path::{Path, PathBuf};

use lora_4bit::peft::PeftError;
use model_qwen::gguf::GgufError;
use model_qwen::quantize::QuantizeError;
use model_qwen::{
    AdapterError, ChatError, DeviceError, GenerationConfigError, JsonFileError, LoadError,
    MergeError, TemplateError, TokenizerError,
};
use thiserror::Error;

use crate::chat_format::ModelFilesError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::error::TrainError;

/// Why a command of the program fails.
#[derive(Debug, Error)]
pub enum ToolError {
    /// A flag has a value that cannot be honoured.
    #[error("--{flag}: expected {expected}, found {found}")]
    Flag {
        /// The flag without its dashes.
        flag: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// There is something where the result should be.
    #[error("--output: expected a new path, found {}, which exists: nothing is overwritten", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The settings of a run cannot be read.
    #[error("{}: expected the settings of a run, found {found}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// The file to write exists.
    #[error("{}: expected a new file, found one that exists: give --force to overwrite it, or another name", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// Questions without a terminal.
    #[error(
        "the questions are asked on a terminal, and standard input is none: give --yes and --data FILE, and what is not to be \
         at its default; not given are {}",
        missing.join(", ")
    )]
    NoTerminal {
        /// The flags that would answer.
        missing: Vec<&'static str>,
    },
    /// The disk has no room for the result.
    #[error("--output: expected at least {needed} MiB of room, found {free} MiB in {}", folder.display())]
    Space {
        /// The folder.
        folder: PathBuf,
        /// MiB that are needed.
        needed: u64,
        /// MiB that are free.
        free: u64,
    },
    /// The adapter names a base model that cannot be found.
    #[error(
        "--model: expected the base model of {}; its adapter_config.json names {base:?} (`base_model_name_or_path`): {error}",
        adapter.display()
    )]
    Base {
        /// The adapter.
        adapter: PathBuf,
        /// What it names.
        base: String,
        /// Why that is not found.
        error: Box<model_qwen::ResolveError>,
    },
    /// The folder that was to be looked at is none.
    #[error("{}: expected a folder with an adapter, a checkpoint or a model, found {found}", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// The records give no finite loss.
    #[error(
        "the loss is {loss}, expected a finite number: the weights or the activations are broken"
    )]
    Loss {
        /// The loss.
        loss: f64,
    },
    /// The records have nothing to measure.
    #[error(
        "--{flag}: expected records with tokens to measure, found none in {num_examples} examples"
    )]
    NoTargets {
        /// The flag without its dashes.
        flag: &'static str,
        /// The examples.
        num_examples: usize,
    },
    /// A signal has ended the command; nothing is written.
    #[error("stopped; nothing is written")]
    Stopped,
    /// An adapter.
    #[error("{}", error.of(folder))]
    Adapter {
        /// The folder.
        folder: PathBuf,
        /// Why it is refused.
        error: PeftError,
    },
    /// An adapter that was made for another model.
    #[error(transparent)]
    Fit(#[from] AdapterError),
    /// The model, or the sums.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The model's weights.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Quantizing the result.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// The GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model's folder, tokenizer or chat template.
    #[error(transparent)]
    ModelFiles(#[from] ModelFilesError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// `generation_config.json`.
    #[error(transparent)]
    Generation(#[from] GenerationConfigError),
    /// A small JSON file.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// A setting that training has, too.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--device`.
    #[error("--device: {0}")]
    Device(#[from] DeviceError),
    /// The records.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Records without fields that the run of the adapter read.
    #[error(
        "{error}; the names are those of {} (`columns`: {columns}): --columns names the fields of this data, also those \
         with their usual names (--columns messages=messages)",
        settings.display()
    )]
    NotedColumns {
        /// What the run wrote down.
        columns: String,
        /// Where.
        settings: PathBuf,
        /// Why the records cannot be used.
        error: Box<DataError>,
    },
    /// A line of a chat that is no question and no command.
    #[error("`{found}` is no command: {commands}")]
    ChatCommand {
        /// The line.
        found: String,
        /// The commands.
        commands: &'static str,
    },
    /// What a run would refuse before it begins.
    #[error(transparent)]
    Run(#[from] TrainError),
    /// The model of a chat, or an answer.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A line of a chat that is no text.
    #[error("standard input: {found}")]
    ChatLine {
        /// Which, and what is wrong with it.
        found: String,
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

impl ToolError {
    /// Whether the command line is wrong, and not the files that it names or what was computed.
    pub fn is_of_settings(&self) -> bool {
        match self {
            Self::Flag { .. }
            | Self::Exists { .. }
            | Self::FileExists { .. }
            | Self::NoTerminal { .. }
            | Self::Base { .. }
            | Self::Config(_)
            | Self::Device(_) => true,
            Self::ModelFiles(error) => error.is_of_settings(),
            Self::Run(error) => error.is_of_settings(),
            Self::Data(error) => matches!(error, DataError::Columns(_)),
            _ => false,
        }
    }

    /// Whether the command has ended because it was told to.
    pub fn is_stopped(&self) -> bool {
        matches!(
            self,
            Self::Stopped
                | Self::Merge(MergeError::Stopped)
                | Self::Gguf(GgufError::Weights(MergeError::Stopped))
                | Self::Quantize(QuantizeError::Stopped)
        )
    }
}

/// A [`ToolError::Io`] about `path`.
pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ToolError {
    let path = path.to_owned();
    move |error| ToolError::Io { path, error }
}
