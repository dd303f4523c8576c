//! Which model and which adapter a command works on.

use std::path::{Path, PathBuf};

use lora_4bit::peft::LoraAdapter;
use model_qwen::{bundled_model_dir, resolve_model};

use super::ToolError;
use crate::chat_format::ModelFilesError;

/// Reads an adapter; an error names its folder.
pub(super) fn load_adapter(folder: &Path) -> Result<LoraAdapter, ToolError> {
    LoraAdapter::load(folder).map_err(|error| ToolError::Adapter {
        folder: folder.to_owned(),
        error,
    })
}

/// The folder of a model that a flag names.
pub(super) fn named_model(model: &str) -> Result<PathBuf, ToolError> {
    resolve_model(model).map_err(|error| {
        ToolError::ModelFiles(ModelFilesError::Resolve {
            model: model.to_owned(),
            error,
        })
    })
}

/// The folder of the model that `--model` names, or else of the one that the adapter names.
pub(super) fn base_model(
    model: Option<&str>,
    (folder, adapter): (&Path, &LoraAdapter),
) -> Result<PathBuf, ToolError> {
    if let Some(model) = model {
        return named_model(model);
    }
    let base = adapter.config.base_model_name_or_path.as_deref();
    let Some(base) = base.filter(|base| !base.trim().is_empty()) else {
        return Err(ToolError::Flag {
            flag: "model",
            expected: format!("the base model of {}", folder.display()),
            found: "none, and adapter_config.json names none (`base_model_name_or_path`)"
                .to_owned(),
        });
    };
    resolve_model(base).map_err(|error| ToolError::Base {
        adapter: folder.to_owned(),
        base: base.to_owned(),
        error: Box::new(error),
    })
}

/// The adapter, and the model: that of `--model`, of the adapter, or the bundled one.
pub(super) fn model_and_adapter(
    model: Option<&str>,
    adapter: Option<&Path>,
) -> Result<(PathBuf, Option<LoraAdapter>), ToolError> {
    if let Some(folder) = adapter {
        let adapter = load_adapter(folder)?;
        let base = base_model(model, (folder, &adapter))?;
        return Ok((base, Some(adapter)));
    }
    let model = match model {
        Some(model) => named_model(model)?,
        None => bundled_model_dir().map_err(ModelFilesError::NoModel)?,
    };
    Ok((model, None))
}
