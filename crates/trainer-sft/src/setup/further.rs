//! An adapter that a run trains further: its settings are those of the run.

use std::collections::BTreeSet;
use std::path::Path;

use lora_4bit::peft::{LoraAdapter, SAVABLE};
use tracing::info;

use crate::config::{Config, LoraOptions};
use crate::error::TrainError;
use crate::lora;

/// The settings of a run that trains an adapter further: those of the adapter are the adapter's.
pub(crate) fn with_adapter(config: &Config) -> Result<Config, TrainError> {
    let mut config = config.clone();
    if let Some(folder) = config.run.adapter.clone() {
        // What is wrong with the model is said where it is loaded.
        let model = config.model.architecture();
        let is_tied = model.is_ok_and(|model| model.tie_word_embeddings);
        config.lora = options_of_adapter(&folder, &config.lora, is_tied)?;
        config.check_adapter(&folder)?;
    }
    Ok(config)
}

/// The options of the adapter that `--adapter` names. What was left at its default is taken from it; anything else has to
/// agree.
fn options_of_adapter(
    folder: &Path,
    given: &LoraOptions,
    is_tied: bool,
) -> Result<LoraOptions, TrainError> {
    let adapter = LoraAdapter::load(folder).map_err(TrainError::of_adapter(folder))?;
    let saves_both = adapter.saved.len() > 1 || adapter.saves_one_for_both(is_tied);
    let LoraAdapter {
        config, modules, ..
    } = adapter;
    let shown = folder.display();
    if given.dropout.is_none() && config.lora_dropout > 0.0 {
        info!(
            "the adapter in {shown} keeps its dropout {}: --lora-dropout gives it another one",
            config.lora_dropout
        );
    }
    if config.ensure_weight_tying && saves_both {
        info!(
            "the adapter in {shown} has embedding and head as one weight (`ensure_weight_tying`, or weights that `modules_to_save` does not name): they are trained as two from here on"
        );
    }
    let names = modules.keys().filter_map(|name| name.rsplit('.').next());
    let names: BTreeSet<String> = names.map(ToOwned::to_owned).collect();
    let default = LoraOptions::default();
    let own = LoraOptions {
        r: config.r,
        alpha: config.lora_alpha,
        dropout: Some(given.dropout.unwrap_or(config.lora_dropout)),
        target_modules: names.into_iter().collect(),
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        modules_to_save: match saves_both {
            true => SAVABLE.map(|(short, _)| short.to_owned()).to_vec(),
            false => config.modules_to_save,
        },
        init: default.init,
    };
    let differs = |flag, expected: String, found: String| {
        Err(TrainError::AdapterForm {
            flag,
            expected,
            found,
            folder: folder.to_path_buf(),
        })
    };
    let mut named = lora::target_modules(given);
    named.sort();
    if given.r != default.r && given.r != own.r {
        return differs("lora-r", own.r.to_string(), given.r.to_string());
    }
    if given.alpha != default.alpha && given.alpha != own.alpha {
        return differs("lora-alpha", own.alpha.to_string(), given.alpha.to_string());
    }
    if given.target_modules != default.target_modules && named != own.target_modules {
        return differs(
            "target-modules",
            own.target_modules.join(","),
            named.join(","),
        );
    }
    if given.use_rslora && !own.use_rslora {
        return differs("use-rslora", "false".into(), "true".into());
    }
    if given.use_dora && !own.use_dora {
        return differs("use-dora", "false".into(), "true".into());
    }
    if given.init != default.init {
        return differs(
            "init-lora-weights",
            default.init.to_string(),
            given.init.to_string(),
        );
    }
    let mut saved_names = given.modules_to_save.clone();
    saved_names.sort();
    if !saved_names.is_empty() && saved_names != own.modules_to_save {
        return differs(
            "modules-to-save",
            own.modules_to_save.join(","),
            given.modules_to_save.join(","),
        );
    }
    Ok(own)
}
