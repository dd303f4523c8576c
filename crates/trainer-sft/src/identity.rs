//! What makes a run the run that it is: settings, data and model, compared before it goes on from a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::checkpoint::{RunIdentity, TrainerState};
use crate::config::{Config, MethodConfig, micro_batches_of};
use crate::data::Datasets;
use crate::digest;
use crate::error::TrainError;

/// Settings that change nothing of the result, or whose effect is compared otherwise (files by their content, lengths as a
/// number of steps).
const FREE: [&str; 26] = [
    "data",
    "eval_data",
    "model",
    "tokenizer",
    "init_config",
    "device",
    // How many there are counts with the micro-batches of a step.
    "devices",
    "gradient_accumulation",
    "all_reduce",
    "gradient_checkpointing",
    "offload_activations",
    "strict",
    "adapter",
    "epochs",
    "max_steps",
    "save_steps",
    "save_total_limit",
    "log_steps",
    "eval_steps",
    "report_to",
    "logging_dir",
    "sample_prompts",
    "sample_steps",
    "sample_max_tokens",
    "reward_timeout",
    "seed",
];
/// Settings that the weights in a checkpoint have taken the shape of.
const FIXED: [&str; 9] = [
    "full",
    "lora_r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
    "use_dora",
    "modules_to_save",
    "init_lora_weights",
    "optim",
];

fn settings_of(config: &Config) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(settings)) => settings,
        _ => Map::new(),
    }
}

/// The identity of a run of `config` on `data`.
pub(crate) fn identify(config: &Config, data: &Datasets) -> Result<RunIdentity, TrainError> {
    let settings = settings_of(&config.with_absolute_paths());
    let mut hash = Sha256::new();
    if let Some(folder) = config.model.folder()? {
        hash_model(&folder, &mut hash);
    }
    if let Some(folder) = &config.model.tokenizer {
        hash_file(&folder.join("tokenizer.json"), &mut hash);
    }
    if let Some(path) = &config.model.init_config {
        hash_file(path, &mut hash);
    }
    // Evaluations of other records decide otherwise. A split of the training data is known with it.
    let decides = config.run.decides_by_evaluations() && config.data.eval_split.is_none();
    let eval = data.eval.as_ref().filter(|_| decides);
    Ok(RunIdentity {
        settings,
        data: data.train.hash(),
        eval: eval.map(|eval| eval.hash.clone()),
        model: digest::short(hash),
        files: hash_of_files(config, config.model.folder()?.as_deref()),
        text_files: Some(hashes_of_texts(config)?),
    })
}

/// A hash of the weights and the tokenizer that a run of `config` starts from, of whatever form they are held in.
///
/// # Errors
/// When there is no such model.
pub fn identity_of_base(config: &Config) -> Result<String, TrainError> {
    let mut hash = Sha256::new();
    if let Some(folder) = config.model.folder()? {
        hash_model(&folder, &mut hash);
    }
    Ok(digest::short(hash))
}

/// Files beside the tokenizer that decide how records become tokens.
const TEXTS: [&str; 5] = [
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
/// Another one, as far as it says what ends an answer.
const GENERATION: &str = "generation_config.json";

/// A hash of each of these files that is there.
fn hashes_of_texts(config: &Config) -> Result<BTreeMap<String, String>, TrainError> {
    // Those of a tokenizer of its own count instead.
    let folder = config.model.tokenizer.clone().or(config.model.folder()?);
    let read = |name: &str| std::fs::read(folder.as_ref()?.join(name)).ok();
    let end = read(GENERATION).and_then(|bytes| {
        let settings: Map<String, Value> = serde_json::from_slice(&bytes).ok()?;
        Some(settings.get("eos_token_id")?.to_string().into_bytes())
    });
    let texts = TEXTS.into_iter().map(|name| (name, read(name)));
    let texts = texts.chain([(GENERATION, end)]);
    let hashed = texts.filter_map(|(name, bytes)| {
        let hash = Sha256::new_with_prefix(bytes?);
        Some((name.to_owned(), digest::short(hash)))
    });
    Ok(hashed.collect())
}

/// Weights up to this length are compared whole.
const WHOLE: u64 = 256 << 20;

/// Of small weights of the model, of the reference's adapter and of the schemas of rewards; none for a run without any.
fn hash_of_files(config: &Config, model: Option<&Path>) -> Option<String> {
    let entries = model.map(std::fs::read_dir).into_iter().flatten().flatten();
    let is_small = |path: &PathBuf| {
        path.extension()
            .is_some_and(|ending| ending == "safetensors")
            && path.metadata().is_ok_and(|file| file.len() <= WHOLE)
    };
    let weights = entries.flatten().map(|entry| entry.path());
    let mut weights: Vec<PathBuf> = weights.filter(is_small).collect();
    weights.sort();

    let adapter = config.method.ref_adapter.iter().flat_map(|folder| {
        ["adapter_config.json", "adapter_model.safetensors"].map(|name| folder.join(name))
    });
    let schemas = (config.grpo.rewards.iter())
        .filter_map(|reward| Some(PathBuf::from(reward.strip_prefix("json_schema:")?)));
    let mut paths = weights.into_iter().chain(adapter).chain(schemas).peekable();
    paths.peek()?;
    let mut hash = Sha256::new();
    for path in paths {
        hash_file(&path, &mut hash);
    }
    Some(digest::short(hash))
}

/// Compares this run with the one that the checkpoint of `config` is part of.
///
/// # Errors
/// Everything that differs, unless `--resume-anyway` and the weights allow it.
pub(crate) fn check(
    this: &RunIdentity,
    config: &Config,
    state: &TrainerState,
    total_steps: usize,
) -> Result<(), TrainError> {
    let Some(checkpoint) = &config.run.resume else {
        return Ok(());
    };
    let mut differences = Vec::new();
    let mut is_fixed = false;
    let mut differs = |name: &str, found: String, now: String| {
        differences.push(format!(
            "{name}: {found} in the checkpoint, {now} in this run"
        ));
    };
    match &state.run {
        None => warn!(
            "{}: does not say which data and settings it is of",
            checkpoint.display()
        ),
        Some(run) => {
            if run.model != this.model {
                let name = |run: &RunIdentity| match run.settings.get("model") {
                    Some(Value::String(name)) => format!("`{name}` ({})", run.model),
                    _ => format!("the bundled model ({})", run.model),
                };
                differs("--model", name(run), name(this));
            }
            let files = |run: &RunIdentity, key: &str, hash: &str| {
                let files = run.settings.get(key).map(show).unwrap_or_default();
                format!("{files} ({hash})").trim_start().to_owned()
            };
            if run.data != this.data {
                let name = |run: &RunIdentity| files(run, "data", &run.data);
                differs("--data", name(run), name(this));
            }
            // Checkpoints of earlier versions have it in the hash of the data.
            if run.eval.is_some() && run.eval != this.eval {
                let name = |run: &RunIdentity| match &run.eval {
                    Some(hash) => files(run, "eval_data", hash),
                    None => "none that decides".to_owned(),
                };
                differs("--eval-data", name(run), name(this));
            }
            // Checkpoints of earlier versions do not have it.
            if run.files.is_some() && run.files != this.files {
                let name = |run: &RunIdentity| match &run.files {
                    Some(hash) => hash.clone(),
                    None => "none".to_owned(),
                };
                differs(
                    "the weights of --model, the files of --ref-adapter (with --method dpo or kto also --adapter) or of --reward json_schema",
                    name(run),
                    name(this),
                );
            }
            // Checkpoints of earlier versions do not have it.
            if let (Some(found), Some(now)) = (&run.text_files, &this.text_files) {
                let names: BTreeSet<&String> = found.keys().chain(now.keys()).collect();
                for name in names {
                    let (found, now) = (found.get(name), now.get(name));
                    if found != now {
                        let show =
                            |hash: Option<&String>| hash.map_or("none".to_owned(), Clone::clone);
                        differs(&format!("{name} of the model"), show(found), show(now));
                    }
                }
            }
            let (found, shown) = micro_batches_of(&run.settings);
            let (now, mut shown_now) = micro_batches_of(&this.settings);
            if found != now {
                let devices = config.num_devices() as u64;
                if found.is_multiple_of(devices) {
                    let same = found / devices;
                    shown_now = format!("{shown_now}, where {same} would take the same steps");
                }
                differs("--gradient-accumulation", shown, shown_now);
            }
            let mut keys: Vec<&String> = run.settings.keys().chain(this.settings.keys()).collect();
            keys.sort();
            keys.dedup();
            // A checkpoint from before a setting existed is one of its default.
            let mut defaults = Config::new("");
            defaults.method = MethodConfig::defaults_of(config.method.method);
            let defaults = settings_of(&defaults);
            let is_set = |value: &&Value| !value.is_null();
            for key in keys {
                let found = run.settings.get(key).filter(is_set);
                let found = found.or_else(|| defaults.get(key));
                let now = this.settings.get(key);
                let decides = key == "eval_steps" && config.run.decides_by_evaluations();
                if found == now || (FREE.contains(&key.as_str()) && !decides) {
                    continue;
                }
                is_fixed |= FIXED.contains(&key.as_str());
                let show = |value: Option<&Value>| value.map_or("not set".into(), show);
                differs(
                    &format!("--{}", key.replace('_', "-")),
                    show(found),
                    show(now),
                );
            }
        }
    }
    if state.seed != config.run.seed {
        differs(
            "--seed",
            state.seed.to_string(),
            config.run.seed.to_string(),
        );
    }
    if state.total_steps != total_steps {
        let (found, now) = (state.total_steps, total_steps);
        differs("the number of steps", found.to_string(), now.to_string());
    }
    if differences.is_empty() {
        return Ok(());
    }
    if config.run.resume_anyway && !is_fixed {
        warn!(
            "going on although this run differs from the checkpoint:\n  {}",
            differences.join("\n  ")
        );
        return Ok(());
    }
    Err(TrainError::Resume {
        checkpoint: checkpoint.clone(),
        differences: differences.join("\n  "),
        instead: match is_fixed {
            true => {
                "the checkpoint has its weights and its optimizer in this form already, also with --resume-anyway: leave these flags out"
            }
            false => "leave the flags out to go on as before, or add --resume-anyway",
        },
    })
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(","),
        value => value.to_string(),
    }
}

/// Small files whole; of weights their length and parts of them, since reading all would take longer than loading.
fn hash_model(folder: &Path, hash: &mut Sha256) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let ending = path.extension().unwrap_or_default();
        let name = path.file_name().unwrap_or_default();
        if ending == "safetensors" {
            hash.update(name.as_encoded_bytes());
            hash_parts(&path, hash);
        } else if name == "config.json" || name == "tokenizer.json" {
            hash_file(&path, hash);
        }
    }
}

fn hash_file(path: &Path, hash: &mut Sha256) {
    // What cannot be read is an error where it is needed.
    hash.update(std::fs::read(path).unwrap_or_default());
}

fn hash_parts(path: &Path, hash: &mut Sha256) {
    const PARTS: u64 = 64;
    const SIZE: u64 = 1 << 14;
    let Ok(mut file) = File::open(path) else {
        return;
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    hash.update(length.to_le_bytes());
    for part in 0..PARTS {
        let start = length / PARTS * part;
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(start)).is_ok()
            && (&file).take(SIZE).read_to_end(&mut bytes).is_ok()
        {
            hash.update(&bytes);
        }
    }
}
