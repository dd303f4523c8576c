//! `trainer-sft inspect`: what a folder holds, and what is wrong with it.

mod adapter;
mod json_file;
mod model;
mod show;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lora_4bit::peft::{CONFIG_FILE, WEIGHTS_FILE, adapter_below, by_number};
use serde::Serialize;
use serde_json::Value;

use super::arguments::InspectArgs;
use super::error::{ToolError, io_error};
use crate::checkpoint::OPTIMIZER_FILE;
use crate::config::{SETTINGS, STATE_FILE, newest_checkpoint};

pub use adapter::{AdapterFacts, Norms};
use json_file::read_json;
pub use model::{DtypeFacts, ModelFacts};

/// What a folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `adapter`, `model`, `checkpoint` (of a run, with an adapter or a model in it), `run` (without a result), or `unknown`.
    pub kind: &'static str,
    /// The folder.
    pub path: PathBuf,
    /// Bytes of its files.
    pub num_bytes: u64,
    /// The adapter in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterFacts>,
    /// The model in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelFacts>,
    /// The step of a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The settings of the training run, as `run.toml` or the checkpoint has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<Value>,
    /// What is wrong.
    pub problems: Vec<String>,
}

impl Report {
    /// As one JSON object.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.unwrap_or_else(|error| error.to_string()) + "\n"
    }
}

/// Looks at a folder. What is wrong with it is in the report.
///
/// # Errors
/// When the path is no folder that can be read, or `--model` cannot be found.
pub fn inspect(args: &InspectArgs) -> Result<Report, ToolError> {
    let path = &args.path;
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            return Err(ToolError::NotAFolder {
                path: path.clone(),
                found: "a file".to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ToolError::NotAFolder {
                path: path.clone(),
                found: "nothing".to_owned(),
            });
        }
        Err(error) => return Err(io_error(path)(error)),
    }
    let has = |name: &str| path.join(name).exists();
    let is_adapter = has(CONFIG_FILE) || has(WEIGHTS_FILE);
    let is_model =
        has("config.json") || has("model.safetensors") || has("model.safetensors.index.json");
    let is_checkpoint = has(STATE_FILE);
    let mut report = Report {
        kind: match (is_checkpoint, is_adapter, is_model) {
            (true, ..) => "checkpoint",
            (false, true, _) => "adapter",
            (false, false, true) => "model",
            (false, false, false) if has(SETTINGS) => "run",
            (false, false, false) => "unknown",
        },
        path: path.clone(),
        num_bytes: num_bytes(path)?,
        adapter: None,
        model: None,
        step: None,
        training: None,
        problems: Vec::new(),
    };
    if is_adapter {
        let facts = adapter::look(path, args.model.as_deref(), &mut report.problems)?;
        report.adapter = Some(facts);
    } else if is_model {
        report.model = Some(model::look(path, &mut report.problems));
    } else {
        let checkpoint = has(SETTINGS).then(|| newest_checkpoint(path)).flatten();
        report.problems.push(match checkpoint {
            Some(checkpoint) => format!(
                "the run has not come to its end: look at its newest checkpoint, {}",
                checkpoint.display()
            ),
            None => format!(
                "expected adapter_config.json or config.json, found {}{}",
                names(path),
                below(path)
            ),
        });
    }
    look_at_training(&mut report);
    Ok(report)
}

/// Step and settings.
fn look_at_training(report: &mut Report) {
    let state = report.path.join(STATE_FILE);
    if state.exists() {
        match read_json(&state) {
            Ok(state) => {
                let step = state.get("step").or(state.get("global_step"));
                report.step = step.and_then(Value::as_u64);
                report.training = state.pointer("/run/settings").cloned();
            }
            Err(problem) => report.problems.push(problem),
        }
        let is_own = report.training.is_some();
        if is_own && !report.path.join(OPTIMIZER_FILE).exists() {
            let problem = format!("{OPTIMIZER_FILE} is missing: --resume cannot go on from here");
            report.problems.push(problem);
        }
    }
    let settings = report.path.join(SETTINGS);
    if report.training.is_none() && settings.exists() {
        let text = fs::read_to_string(&settings).map_err(|error| error.to_string());
        let parsed = text.and_then(|text| {
            toml::from_str::<Value>(&text).map_err(|error| error.message().to_owned())
        });
        match parsed {
            Ok(settings) => report.training = Some(settings),
            Err(error) => report.problems.push(format!("run.toml: {error}")),
        }
    }
}

/// Bytes of the files in a folder, without those of folders in it.
fn num_bytes(folder: &Path) -> Result<u64, ToolError> {
    let entries = fs::read_dir(folder).map_err(io_error(folder))?;
    let files = entries
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok());
    Ok(files
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum())
}

/// The folder inside of it that may be meant.
fn below(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let models = entries.map(|entry| entry.path());
    let models = models.filter(|folder| folder.join("config.json").is_file());
    let model = models.max_by_key(|folder| by_number(folder));
    match adapter_below(folder).or(model) {
        Some(meant) => format!("; did you mean {}?", meant.display()),
        None => String::new(),
    }
}

/// The first names in a folder.
fn names(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    match names.len() {
        0 => "an empty folder".to_owned(),
        1..=6 => names.join(", "),
        more => format!("{} and {} more", names[..6].join(", "), more - 6),
    }
}
