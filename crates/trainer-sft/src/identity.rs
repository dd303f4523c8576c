//! What makes a run the run that it is: settings, data and model, compared before it goes on from a checkpoint.

mod differences;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub(crate) use self::differences::check;
use crate::checkpoint::RunIdentity;
use crate::config::Config;
use crate::data::Datasets;
use crate::digest;
use crate::error::TrainError;

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
