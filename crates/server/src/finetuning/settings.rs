//! Settings of a job → the trainer's own [`Config`], which checks them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use trainer_sft::args::Args;
use trainer_sft::config::{Config, ConfigError};

use super::spec::{Method, Source};

/// Steps between checkpoints: what a killed server loses at most.
const SAVE_STEPS: usize = 20;
/// Checkpoints that are kept.
const SAVE_TOTAL_LIMIT: usize = 3;
/// What OpenAI calls `n_epochs`.
const EPOCHS: (&str, &str) = ("n_epochs", "epochs");
/// What may be given instead of it.
const STEPS: &str = "max_steps";
/// OpenAI's factor of the learning rate.
const MULTIPLIER: &str = "learning_rate_multiplier";
/// Texts that the model answers while it learns.
const PROMPTS: &str = "sample_prompts";

/// Flags of the server that messages of jobs name.
const OF_SERVER: [&str; 3] = ["finetuning-dir", "finetuning-device", "finetuning-memory"];

/// Where a job reads and writes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Paths {
    /// What is learnt from; empty for records in memory.
    pub(super) data: Vec<PathBuf>,
    /// What is evaluated on.
    pub(super) eval: Vec<PathBuf>,
    /// The trainer's output folder.
    pub(super) output: PathBuf,
    /// The adapter to start from.
    pub(super) adapter: Option<PathBuf>,
    /// The file of [`prompts`].
    pub(super) prompts: Option<PathBuf>,
    /// Whether to go on from the newest checkpoint in the output folder.
    pub(super) resumes: bool,
}

/// A setting that cannot be honoured.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    /// Its name, if it is about one.
    pub(super) name: Option<String>,
    /// What was expected and found.
    pub(super) message: String,
}

impl Refusal {
    fn new(name: &str, message: impl Into<String>) -> Self {
        Self {
            name: Some(name.to_owned()),
            message: message.into(),
        }
    }
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Self {
        let name = match &error {
            ConfigError::Value { flag, .. } => Some(setting_name(flag)),
            ConfigError::NoEvalData => Some("eval_steps".to_owned()),
            ConfigError::NoData
            | ConfigError::Conflict(_)
            | ConfigError::File { .. }
            | ConfigError::NoSettings { .. } => None,
        };
        Self {
            name,
            message: in_settings(&error.to_string()),
        }
    }
}

/// The texts that the model answers while it learns.
pub(super) fn prompts(settings: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let wrong = |found: &Value| {
        let message =
            format!("`{PROMPTS}`: expected a list of texts that are not empty, found {found}");
        Refusal::new(PROMPTS, message)
    };
    let text = |value: &Value| match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        other => Err(wrong(other)),
    };
    match settings.get(PROMPTS) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(vec![text.clone()]),
        Some(Value::Array(texts)) => texts.iter().map(text).collect(),
        Some(other) => Err(wrong(other)),
    }
}

/// Refuses two settings for the length of a new job; of jobs of earlier versions the steps count.
pub(super) fn check_length(settings: &Map<String, Value>) -> Result<(), Refusal> {
    let is_given = |name| settings.get(name).is_some_and(|value| !value.is_null());
    match is_given(STEPS) && is_given(EPOCHS.0) {
        true => {
            let message = format!(
                "`{STEPS}` takes the place of `{}`: give one of them",
                EPOCHS.0
            );
            Err(Refusal::new(STEPS, message))
        }
        false => Ok(()),
    }
}

/// The configuration of a run.
pub(super) fn config(
    source: &Source,
    method: Method,
    settings: &Map<String, Value>,
    seed: Option<u64>,
    paths: &Paths,
) -> Result<Config, Refusal> {
    let mut own = settings.clone();
    let multiplier = own.shift_remove(MULTIPLIER);
    own.shift_remove(PROMPTS);
    if let Some(epochs) = own.shift_remove(EPOCHS.0) {
        // OpenAI's three are numbers or texts.
        let number = epochs
            .as_str()
            .and_then(|text| text.trim().parse::<f64>().ok());
        own.insert(EPOCHS.1.to_owned(), number.map_or(epochs, Value::from));
    }
    let args = Args::from_json(&own).map_err(|(name, reason)| {
        let reason = reason.replace(EPOCHS.1, EPOCHS.0);
        Refusal::new(&name.replace(EPOCHS.1, EPOCHS.0), reason)
    })?;
    let args = complete(args, source, method, seed, paths);
    let has_records = paths.data.is_empty();
    let Some(multiplier) = multiplier else {
        return checked(args, has_records);
    };
    let factor = match &multiplier {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    let factor = factor.filter(|factor: &f64| factor.is_finite() && *factor > 0.0);
    let Some(factor) = factor else {
        let message =
            format!("`{MULTIPLIER}`: expected a number above 0 or \"auto\", found {multiplier}");
        return Err(Refusal::new(MULTIPLIER, message));
    };
    if args.training.learning_rate.is_some() {
        let message =
            format!("`{MULTIPLIER}` multiplies the default of `learning_rate`: give one of them");
        return Err(Refusal::new(MULTIPLIER, message));
    }
    let default = checked(args.clone(), has_records)?.learning_rate();
    let mut args = args;
    args.training.learning_rate = Some(factor * default);
    checked(args, has_records)
}

/// Checks settings as the trainer's command line does, which takes those of the run to go on with from its folder.
fn checked(args: Args, has_records: bool) -> Result<Config, Refusal> {
    match args.output.resume {
        Some(_) => Ok(Config::from_args(&args.resumed()?)?),
        None => Ok(args.to_config(has_records)?),
    }
}

/// What the server sets besides the client.
fn complete(
    mut args: Args,
    source: &Source,
    method: Method,
    seed: Option<u64>,
    paths: &Paths,
) -> Args {
    args.data.data.clone_from(&paths.data);
    args.data.eval_data.clone_from(&paths.eval);
    args.model.model.clone_from(&source.model);
    args.model.quantization = args.model.quantization.or(Some(source.quantization));
    args.model.dtype = Some(source.dtype);
    args.model.device = Some(source.device.clone());
    args.memory.device_memory = source.memory;
    args.memory.gpu_memory_utilization = source.memory.map(|_| 1.0);
    args.method.method = Some(method.of_trainer());
    args.lora.adapter = paths.adapter.clone().filter(|_| !paths.resumes);
    args.training.seed = seed;
    let output = &mut args.output;
    output.output = Some(paths.output.clone());
    output.resume = paths.resumes.then(|| paths.output.clone());
    output.sample_prompts.clone_from(&paths.prompts);
    output.log_steps = Some(1);
    output.save_steps = output.save_steps.or(Some(SAVE_STEPS));
    output.save_total_limit = output.save_total_limit.or(Some(SAVE_TOTAL_LIMIT));
    args
}

/// A message of the trainer, whose flags become settings: `--lora-r: …` is `` `lora_r`: … ``.
pub(super) fn in_settings(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find("--") {
        let name = &rest[start + 2..];
        let end = name.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
        let end = end.unwrap_or(name.len());
        let starts = rest[..start]
            .chars()
            .next_back()
            .is_none_or(|c| !c.is_alphanumeric());
        if end == 0 || !starts || name.starts_with('-') {
            text.push_str(&rest[..start + 2]);
            rest = name;
            continue;
        }
        text.push_str(&rest[..start]);
        text.push_str(&match &name[..end] {
            flag if OF_SERVER.contains(&flag) => format!("--{flag}"),
            // What a job may take is no setting of its own.
            "device-memory" => "--finetuning-memory".to_owned(),
            flag => format!("`{}`", setting_name(flag)),
        });
        rest = &name[end..];
    }
    text.push_str(rest);
    text
}

pub(super) fn setting_name(flag: &str) -> String {
    match flag.replace('-', "_") {
        name if name == EPOCHS.1 => EPOCHS.0.to_owned(),
        name if name == "data" => "training_file".to_owned(),
        name if name == "eval_data" => "validation_file".to_owned(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use model_qwen::{Dtype, Quantization};
    use serde_json::json;

    use super::*;

    fn source() -> Source {
        Source {
            model: None,
            quantization: Quantization::None,
            dtype: Dtype::Auto,
            device: "cpu".to_owned(),
            memory: None,
        }
    }

    fn read(settings: Value) -> Result<Config, Refusal> {
        let paths = Paths {
            data: vec!["a.jsonl".into()],
            output: "no such folder".into(),
            ..Paths::default()
        };
        let settings = settings.as_object().unwrap();
        config(&source(), Method::Supervised, settings, Some(7), &paths)
    }

    #[test]
    fn settings_are_the_trainers() {
        let config = read(
            json!({ "n_epochs": "2", "lora_r": 8, "target_modules": "q_proj", "learning_rate_multiplier": "0.5" }),
        );
        let config = config.unwrap();
        assert_eq!(
            (config.epochs(), config.lora.r, config.run.seed),
            (2.0, 8, 7)
        );
        assert_eq!(config.lora.target_modules, ["q_proj"]);
        // The bundled model's default is 2e-3.
        assert!((config.learning_rate() - 1e-3).abs() < 1e-12);
        assert_eq!(config.quantization(), Quantization::None);
        assert_eq!(config.run.save_steps, Some(SAVE_STEPS));
    }

    #[test]
    fn a_refused_setting_is_named() {
        for (settings, name, message) in [
            (json!({ "lora_r": 0 }), Some("lora_r"), "`lora_r`: expected"),
            (
                json!({ "n_epochs": -1 }),
                Some("n_epochs"),
                "`n_epochs`: expected",
            ),
            (
                json!({ "lora_r": "many" }),
                Some("lora_r"),
                "`lora_r`: expected a whole number, 0 or more, found string",
            ),
            (
                json!({ "eval_steps": 5 }),
                Some("eval_steps"),
                "`validation_file`",
            ),
            (
                json!({ "learning_rate_multiplier": 0 }),
                Some("learning_rate_multiplier"),
                "above 0",
            ),
            (
                json!({ "learning_rate_multiplier": 1, "learning_rate": 1 }),
                Some("learning_rate_multiplier"),
                "give one of them",
            ),
            (
                json!({ "warmup_ratio": 0.5, "warmup_steps": 0 }),
                Some("warmup_ratio"),
                "`warmup_ratio` and `warmup_steps` say the same: leave one of them out",
            ),
            (json!({ "beta": 0.1 }), None, "`beta`"),
        ] {
            let refusal = read(settings.clone()).unwrap_err();
            assert!(refusal.message.contains(message), "{settings}: {refusal:?}");
            if let Some(name) = name {
                assert_eq!(refusal.name.as_deref(), Some(name));
            }
        }
        let both = json!({ "n_epochs": 2, "max_steps": 3 });
        assert!(check_length(both.as_object().unwrap()).is_err());
        let one = json!({ "n_epochs": null, "max_steps": 3 });
        assert_eq!(check_length(one.as_object().unwrap()), Ok(()));
        let refusal = prompts(json!({ "sample_prompts": ["a", ""] }).as_object().unwrap());
        assert_eq!(refusal.unwrap_err().name.as_deref(), Some("sample_prompts"));
    }

    #[test]
    fn flags_become_settings() {
        for (message, expected) in [
            ("--lora-r: expected 1", "`lora_r`: expected 1"),
            (
                "give --epochs or --max-steps",
                "give `n_epochs` or `max_steps`",
            ),
            ("a--b, -- and ---", "a--b, -- and ---"),
        ] {
            assert_eq!(in_settings(message), expected);
        }
    }
}
