//! The files of a model folder beside its weights: read, written, and copied to a folder with new weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::json_file::read_text;
use crate::modules::copy_modules;

pub(crate) const CONFIG: &str = "config.json";
/// Name of the weights of a checkpoint in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the index of a checkpoint in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Folder of further chat templates.
const TEMPLATES: &str = "additional_chat_templates";
/// What weights end with, in this format and in others.
const WEIGHTS: [&str; 8] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "gguf",
    "h5",
    "msgpack",
    "onnx",
];

/// Why a file of a model folder cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelFolderError {
    /// A file of the folder is missing, or is not what it should be.
    #[error("{}: expected {expected}, found {found}", .path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What it should be or hold.
        expected: String,
        /// What it is or holds.
        found: String,
    },
    /// A file cannot be read, copied or written.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
}

/// Files of a training run beside its weights. They say nothing of a model made from its result, and are not copied.
pub const RUN_FILES: [&str; 7] = [
    "run.toml",
    "metrics.jsonl",
    "report.html",
    "loss.svg",
    "trainer_state.json",
    "training_args.bin",
    "adapter_config.json",
];

/// Copies what stands next to the weights and was not written yet.
pub(crate) fn copy_other_files(input: &Path, output: &Path) -> Result<(), ModelFolderError> {
    for entry in fs::read_dir(input).map_err(io_error(input))? {
        let path = entry.map_err(io_error(input))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let is_weights = extension.is_some_and(|extension| WEIGHTS.contains(&extension));
        let Some(name) = path.file_name().filter(|_| path.is_file() && !is_weights) else {
            continue;
        };
        let target = output.join(name);
        let is_run_file = RUN_FILES.iter().any(|run_file| name == *run_file);
        if name != INDEX && !is_run_file && !target.exists() {
            fs::copy(&path, &target).map_err(io_error(&path))?;
        }
    }
    // Further chat templates lie in a folder.
    let templates = input.join(TEMPLATES);
    if templates.is_dir() {
        let target = output.join(TEMPLATES);
        fs::create_dir_all(&target).map_err(io_error(&target))?;
        copy_other_files(&templates, &target)?;
    }
    copy_modules(input, output).map_err(io_error(output))
}

/// `config.json` of a folder for the same model with dense weights, in the dtype that is named, or else in the same one.
pub(crate) fn dense_config(
    dir: &Path,
    is_tied: bool,
    dtype: Option<&str>,
) -> Result<Map<String, Value>, ModelFolderError> {
    let mut config = read_object(&dir.join(CONFIG))?;
    config.remove("quantization_config");
    config.remove("quantization");
    // An adapter may have made it so, or the file says what the weights do not.
    let says_tied = config.get("tie_word_embeddings") == Some(&true.into());
    if says_tied && !is_tied {
        config.insert("tie_word_embeddings".to_owned(), false.into());
    }
    if let Some(name) = dtype {
        let fields = ["dtype", "torch_dtype"].into_iter();
        let mut fields: Vec<_> = fields.filter(|field| config.contains_key(*field)).collect();
        if fields.is_empty() {
            fields.push("torch_dtype");
        }
        for field in fields {
            config.insert(field.to_owned(), name.into());
        }
    }
    Ok(config)
}

/// Reads a file that holds a JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, ModelFolderError> {
    let refused = |found: String| wrong(path, "a JSON object", found);
    let text = read_text(path).map_err(refused)?;
    serde_json::from_str(&text).map_err(|error| refused(error.to_string()))
}

/// Writes a JSON file, indented.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), ModelFolderError> {
    fs::write(path, format!("{value:#}\n")).map_err(io_error(path))
}

/// A [`ModelFolderError::Io`] about `path`.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ModelFolderError {
    let path = path.to_owned();
    move |error| ModelFolderError::Io { path, error }
}

/// A [`ModelFolderError::Format`] about `path`.
pub(crate) fn wrong(path: &Path, expected: &str, found: impl Into<String>) -> ModelFolderError {
    ModelFolderError::Format {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found: found.into(),
    }
}
