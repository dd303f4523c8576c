//! Which model and which adapter a command works on.

use std::path::{Path, PathBuf};

use lora_4bit::peft::LoraAdapter;
use model_qwen::{Quantization, bundled_model_dir, resolve_model};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ToolError;
use crate::chat_format::ModelFilesError;
use crate::config::{SETTINGS, STATE_FILE};

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

/// How a run held the linear layers of its base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct BaseForm {
    pub(super) quantization: Quantization,
    pub(super) double_quant: bool,
}

/// What a run of an adapter takes where its settings do not say it.
impl Default for BaseForm {
    fn default() -> Self {
        Self {
            quantization: Quantization::Nf4,
            double_quant: true,
        }
    }
}

impl BaseForm {
    /// As the files are.
    pub(super) const STORED: Self = Self {
        quantization: Quantization::None,
        double_quant: true,
    };

    /// That of the run that wrote the adapter in `folder`; as the files are where the folder does not say.
    ///
    /// # Errors
    /// When the folder has settings that cannot be read.
    pub(super) fn of_run(folder: &Path) -> Result<Self, ToolError> {
        Ok(settings_of_run(folder)?.unwrap_or(Self::STORED))
    }
}

/// What the settings in the folder of a checkpoint or of a run say of something; `None` where the folder has none.
///
/// # Errors
/// When they cannot be read.
pub(super) fn settings_of_run<T: DeserializeOwned>(folder: &Path) -> Result<Option<T>, ToolError> {
    let Some((path, settings)) = all_settings(folder)? else {
        return Ok(None);
    };
    let some = serde_json::from_value(settings).map_err(|error| unreadable(&path, error))?;
    Ok(Some(some))
}

/// The file with the settings of a run, and all of them.
fn all_settings(folder: &Path) -> Result<Option<(PathBuf, Value)>, ToolError> {
    let read = |name: &str| {
        let path = folder.join(name);
        match path.is_file() {
            true => std::fs::read_to_string(&path).map(Some),
            false => Ok(None),
        }
        .map_err(super::error::io_error(&path))
    };
    if let Some(text) = read(STATE_FILE)? {
        let path = folder.join(STATE_FILE);
        let state: Value = serde_json::from_str(&text).map_err(|error| unreadable(&path, error))?;
        let settings = state.pointer("/run/settings").cloned();
        return Ok(settings.map(|settings| (path, settings)));
    }
    let Some(text) = read(SETTINGS)? else {
        return Ok(None);
    };
    let path = folder.join(SETTINGS);
    let settings = toml::from_str(&text).map_err(|error| unreadable(&path, error.message()))?;
    Ok(Some((path, settings)))
}

fn unreadable(path: &Path, found: impl ToString) -> ToolError {
    ToolError::Settings {
        path: path.to_owned(),
        found: found.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_base_is_that_of_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let form = || BaseForm::of_run(folder.path());
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(form().unwrap(), BaseForm::STORED);
        write(SETTINGS, "lora_r = 4\n");
        assert_eq!(form().unwrap(), BaseForm::default());
        write(SETTINGS, "quantization = \"none\"\n");
        assert_eq!(form().unwrap().quantization, Quantization::None);
        write(SETTINGS, "quantization = \"int4\"\n");
        let error = form().unwrap_err().to_string();
        assert!(error.contains("run.toml: expected the settings"), "{error}");
        assert!(error.contains("int4"), "{error}");
        let state = r#"{"run": {"settings": {"double_quant": false}}}"#;
        write(STATE_FILE, state);
        let found = form().unwrap();
        assert!(found.quantization == Quantization::Nf4 && !found.double_quant);
    }
}
