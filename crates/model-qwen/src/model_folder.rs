//! The files of a model folder beside its weights: read, written, and copied to a folder with new weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::json_file::read_text;
use crate::modules::{MODULES, module_folders};

pub(crate) const CONFIG: &str = "config.json";
/// Name of the weights of a checkpoint in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the index of a checkpoint in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Files between a text and its tokens: the tokenizer, the chat template, and what generation starts from and ends with.
pub const TEXT_FILES: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
/// Folder of further chat templates.
pub const TEMPLATES: &str = "additional_chat_templates";
/// The further chat template for conversations with tools, by its path in a model folder.
pub(crate) const TOOL_USE_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";
/// Files in which old folders and other programs say that the weights are quantized.
pub(crate) const QUANTIZATION_FILES: [&str; 4] = [
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
];
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

/// What sentence-transformers writes: [`MODULES`] and its neighbours.
pub(crate) const MODULE_FILES: [&str; 3] = [
    MODULES,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
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
    copy_modules(input, output)
}

/// Copies `modules.json` with its neighbours and the folders that it names, unless they are there.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_modules(input: &Path, output: &Path) -> Result<(), ModelFolderError> {
    for name in MODULE_FILES {
        copy(&input.join(name), &output.join(name))?;
    }
    for folder in module_folders(input) {
        copy(&input.join(&folder), &output.join(&folder))?;
    }
    Ok(())
}

/// Copies a file, or a folder with what it holds; the copies get the permissions of new files.
fn copy(from: &Path, to: &Path) -> Result<(), ModelFolderError> {
    if from.is_dir() {
        fs::create_dir_all(to).map_err(io_error(to))?;
        for entry in fs::read_dir(from).map_err(io_error(from))? {
            let path = entry.map_err(io_error(from))?.path();
            copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    } else if from.is_file() && !to.exists() {
        let bytes = fs::read(from).map_err(io_error(from))?;
        fs::write(to, bytes).map_err(io_error(to))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_modules_are_copied_unless_they_lie_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        for folder in [input.join("1_Pooling"), output.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        let modules = r#"[{"path": "", "type": "a"}, {"path": "1_Pooling", "type": "b"}, {"path": "2_Normalize", "type": "c"},
            {"path": "../secret", "type": "d"}, {"path": "/etc", "type": "e"}]"#;
        fs::write(input.join(MODULES), modules).unwrap();
        fs::write(input.join("1_Pooling/config.json"), "{}").unwrap();
        assert_eq!(module_folders(&input), ["1_Pooling", "2_Normalize"]);
        copy_modules(&input, &output).unwrap();
        assert!(output.join(MODULES).is_file());
        assert!(output.join("1_Pooling/config.json").is_file());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
