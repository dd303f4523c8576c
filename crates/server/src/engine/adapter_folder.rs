//! The files of an adapter. A load reads them on a thread of its own. An adapter that has lost its slot, and whose matrices the
//! host has not kept (`--max-cpu-loras`), is read by the engine thread: all requests wait.

use std::fs;
use std::path::Path;

use lora_4bit::peft::{CONFIG_FILE, LoraAdapter};
use model_qwen::QwenModel;

use super::error::AdapterError;

/// Reads an adapter's folder, which may take as long as the disk likes.
///
/// # Errors
/// [`AdapterError`] if it holds no adapter for any Qwen model.
pub(super) fn read_adapter(path: &Path) -> Result<LoraAdapter, AdapterError> {
    if !path.join(CONFIG_FILE).is_file() {
        let reason = if path.is_dir() {
            let below = fs::read_dir(path).into_iter().flatten().flatten();
            let below = below.map(|entry| entry.path());
            let mut below: Vec<_> = below
                .filter(|path| path.join(CONFIG_FILE).is_file())
                .collect();
            below.sort();
            match below.last() {
                Some(folder) => format!(
                    "the folder has no {CONFIG_FILE}; did you mean {}?",
                    folder.display()
                ),
                None => format!("the folder has no {CONFIG_FILE}"),
            }
        } else if path.is_file() {
            "expected the folder, found a file".to_owned()
        } else {
            "no such folder; an adapter must be a local one, so download it first from a hub"
                .to_owned()
        };
        return Err(AdapterError::NotFound {
            path: path.to_owned(),
            reason,
        });
    }
    let invalid = |reason: String| AdapterError::Invalid {
        path: path.to_owned(),
        reason: explained(reason),
    };
    let adapter = LoraAdapter::load(path).map_err(|error| invalid(error.to_string()))?;
    QwenModel::check_shared(&adapter).map_err(|error| AdapterError::Invalid {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(adapter)
}

/// Says what an adapter may change where one changes something else.
pub(super) fn explained(reason: String) -> String {
    let others = ["lm_head", "embed_tokens", "layernorm", "model.norm"];
    // What the error says of all such adapters comes after the tensor's name.
    let subject = reason.split(": adapters of ").next().unwrap_or(&reason);
    match others.iter().find(|other| subject.contains(**other)) {
        Some(other) => format!(
            "it changes `{other}`, but adapters of the head, the embedding and the norms are not supported ({reason})"
        ),
        None => reason,
    }
}
