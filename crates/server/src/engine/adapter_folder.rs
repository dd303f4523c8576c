//! The files of an adapter. A load reads them on a thread of its own. An adapter that has lost its slot, and whose matrices the
//! host has not kept (`--max-cpu-loras`), is read by the engine thread: all requests wait.

use std::path::Path;

use lora_4bit::peft::{CONFIG_FILE, LoraAdapter, PeftError, adapter_below};

use super::error::AdapterError;

/// Reads an adapter's folder, which may take as long as the disk likes.
///
/// # Errors
/// [`AdapterError`] if it holds no adapter for any Qwen model.
pub(super) fn read_adapter(path: &Path) -> Result<LoraAdapter, AdapterError> {
    if !path.join(CONFIG_FILE).is_file() {
        let reason = if path.is_dir() {
            match adapter_below(path) {
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
    LoraAdapter::load(path).map_err(|error| AdapterError::Invalid {
        path: path.to_owned(),
        reason: explained(&error),
    })
}

/// Says what an adapter may change where one changes something else.
fn explained(error: &PeftError) -> String {
    let PeftError::UnsupportedModule(tensor) = error else {
        return error.to_string();
    };
    let others = ["lm_head", "embed_tokens", "layernorm", "model.norm"];
    match others.iter().find(|other| tensor.contains(**other)) {
        Some(other) => format!(
            "it changes `{other}`, but adapters of the head, the embedding and the norms are not supported ({error})"
        ),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_a_tensor_says_that_the_head_is_changed() {
        let tensor = |name: &str| explained(&PeftError::UnsupportedModule(name.to_owned()));
        let head = tensor("base_model.model.lm_head.lora_A.weight");
        assert!(head.starts_with("it changes `lm_head`"), "{head}");
        let norm = tensor("base_model.model.model.layers.0.input_layernorm.weight");
        assert!(norm.starts_with("it changes `layernorm`"), "{norm}");
        let other = PeftError::Unsupported {
            field: "modules_to_save",
            found: "[\"score\"]".to_owned(),
            supported: "a list of embed_tokens and lm_head",
        };
        assert_eq!(explained(&other), other.to_string());
    }

    #[test]
    fn the_newest_checkpoint_may_be_meant() {
        let dir = tempfile::tempdir().unwrap();
        let meant = |name: &str| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(CONFIG_FILE), "{}").unwrap();
            read_adapter(dir.path()).unwrap_err().to_string()
        };
        let last = |name: &str| format!("did you mean {}?", dir.path().join(name).display());
        for (name, expected) in [
            ("checkpoint-9", "checkpoint-9"),
            ("checkpoint-10", "checkpoint-10"),
            ("checkpoint-8", "checkpoint-10"),
            ("adapter", "adapter"),
        ] {
            let error = meant(name);
            assert!(error.contains(&last(expected)), "{error}");
        }
    }
}
