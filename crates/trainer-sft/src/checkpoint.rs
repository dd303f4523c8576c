//! Checkpoints: everything that a run needs to go on as if it had never stopped.
//!
//! `checkpoint-N/` holds the trained weights (a PEFT folder, or an HF model folder in f32 with `--full`),
//! `optimizer.safetensors` with AdamW's moments, and `trainer_state.json` with the step and the place in the data. Random
//! numbers need no state of their own: shuffles and dropout masks are functions of the seed, the epoch and the step.
//! A folder is written under another name and renamed when complete.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::batch::LoaderState;
use crate::config::STATE_FILE;
use crate::optimizer::{AdamW, AdamWConfig, ByteMoments, Codes, Moments, MomentsError};

/// A checkpoint that cannot be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// Moments of AdamW that do not belong to the parameters.
    #[error("{}: {error}", path.display())]
    Moments {
        /// The file.
        path: PathBuf,
        /// Which, and what was expected.
        error: MomentsError,
    },
    /// The trained weights.
    #[error("{0}")]
    Weights(String),
}

/// What a checkpoint says of the run that wrote it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The settings, as in `run.toml`.
    pub settings: Map<String, Value>,
    /// Hash of the training data.
    pub data: String,
    /// Hash of the evaluation data, where its evaluations decide and it is no part of the training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
    /// Hash of the base model and its tokenizer.
    pub model: String,
    /// Hash of small weights of the model, and of other files that a run reads again when it goes on: the adapter of a reference,
    /// schemas of rewards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
    /// Hashes of the small files that say how records are written as tokens, such as the chat template, by their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_files: Option<BTreeMap<String, String>>,
}

/// `trainer_state.json`; what the run has logged has the names of transformers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimizer steps done.
    pub step: usize,
    /// Steps of the whole run, which the learning-rate schedule depends on.
    pub total_steps: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Place in the training data.
    pub loader: LoaderState,
    /// The run that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunIdentity>,
    /// Lowest evaluation loss so far; with `--method grpo` the highest mean reward of held-out prompts.
    #[serde(default)]
    pub best_metric: Option<f64>,
    /// The step that it was measured after.
    #[serde(default)]
    pub best_global_step: Option<usize>,
    /// The checkpoint of that step, seen from the folder of the run.
    #[serde(default)]
    pub best_model_checkpoint: Option<PathBuf>,
    /// Evaluations since then that have not improved the loss.
    #[serde(default)]
    pub early_stopping_patience_counter: usize,
    /// Tokens of all steps, context and targets.
    #[serde(default)]
    pub num_input_tokens_seen: usize,
    /// The records of the metrics file so far, to the letter.
    #[serde(default)]
    pub log_history: Vec<Box<RawValue>>,
}

/// AdamW's moments.
pub(crate) const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Writes a checkpoint to `dir`; `write_weights` writes the trained weights into the folder it is given.
///
/// # Errors
///
/// When a file cannot be written; `dir` then is as before.
pub fn save(
    dir: &Path,
    state: &TrainerState,
    optimizer: &AdamW,
    write_weights: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    write_folder(dir, |folder| {
        write_weights(folder)?;
        write_optimizer(&folder.join(OPTIMIZER_FILE), optimizer)?;
        let path = folder.join(STATE_FILE);
        let text =
            serde_json::to_string_pretty(state).map_err(|error| io_error(&path)(error.into()))?;
        fs::write(&path, text + "\n").map_err(io_error(&path))?;
        // The library for tensors keeps its files to the user; this one is a new file like any other.
        let optimizer = folder.join(OPTIMIZER_FILE);
        let like_new = fs::metadata(&path).map_err(io_error(&path))?.permissions();
        fs::set_permissions(&optimizer, like_new).map_err(io_error(&optimizer))
    })
}

/// Reads state and optimizer of the checkpoint in `dir`; the weights are read by whoever knows their form.
///
/// # Errors
///
/// When a file is missing or broken.
pub fn load(
    dir: &Path,
    config: AdamWConfig,
    device: &Device,
) -> Result<(TrainerState, AdamW), CheckpointError> {
    let state = load_state(dir)?;
    let (moments, bytes) = read_optimizer(&dir.join(OPTIMIZER_FILE), device)?;
    let optimizer = AdamW::resume(config, state.step, moments).with_byte_moments(bytes);
    Ok((state, optimizer))
}

/// Reads the state of the checkpoint in `dir`.
///
/// # Errors
///
/// When the file is missing or broken.
pub fn load_state(dir: &Path) -> Result<TrainerState, CheckpointError> {
    let path = dir.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(io_error(&path))?;
    serde_json::from_str(&text).map_err(|error| CheckpointError::Content {
        path: path.clone(),
        expected: "the state of a training run",
        found: error.to_string(),
    })
}

/// Checks that the optimizer read from `dir` belongs to parameters of these sizes.
///
/// # Errors
///
/// The first parameter whose moments are missing, unknown or of another length.
pub fn check_optimizer(
    dir: &Path,
    optimizer: &AdamW,
    sizes: &BTreeMap<String, usize>,
) -> Result<(), CheckpointError> {
    optimizer
        .check(sizes)
        .map_err(|error| CheckpointError::Moments {
            path: dir.join(OPTIMIZER_FILE),
            error,
        })
}

/// Fills a folder under another name and renames it to `dir`, replacing what was there.
fn write_folder(
    dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut partial = dir.as_os_str().to_owned();
    partial.push(".part");
    let partial = PathBuf::from(partial);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io_error(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(io_error(&partial))?;
    if let Err(error) = fill(&partial) {
        // A full disk has room again.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(io_error(dir))?;
    }
    fs::rename(&partial, dir).map_err(io_error(dir))
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    move |error| CheckpointError::Io { path, error }
}

fn write_optimizer(path: &Path, optimizer: &AdamW) -> Result<(), CheckpointError> {
    let mut parts: Vec<(String, Dtype, Vec<u8>)> = Vec::new();
    for (name, Moments { mean, variance }) in optimizer.moments() {
        for (kind, tensor) in [("mean", mean), ("variance", variance)] {
            let bytes = tensor
                .to_data()
                .iter::<f32>()
                .flat_map(f32::to_le_bytes)
                .collect();
            parts.push((format!("{name}.{kind}"), Dtype::F32, bytes));
        }
    }
    for (name, ByteMoments { mean, variance }) in optimizer.byte_moments() {
        for (kind, Codes { codes, absmax }) in [("mean", mean), ("variance", variance)] {
            let scales = absmax.into_iter().flat_map(f32::to_le_bytes).collect();
            parts.push((format!("{name}.{kind}"), Dtype::U8, codes));
            parts.push((format!("{name}.{kind}.absmax"), Dtype::F32, scales));
        }
    }
    let found = |error: safetensors::SafeTensorError| CheckpointError::Content {
        path: path.to_path_buf(),
        expected: "room for the optimizer state",
        found: error.to_string(),
    };
    let views = parts
        .iter()
        .map(|(name, dtype, bytes)| {
            let len = 8 * bytes.len() / dtype.bitsize();
            Ok((name, TensorView::new(*dtype, vec![len], bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(found)?;
    safetensors::serialize_to_file(views, None, path).map_err(found)
}

/// AdamW's moments in f32, and those in 8 bits.
type AllMoments = (BTreeMap<String, Moments>, BTreeMap<String, ByteMoments>);

fn read_optimizer(path: &Path, device: &Device) -> Result<AllMoments, CheckpointError> {
    let content = |found: String| CheckpointError::Content {
        path: path.to_path_buf(),
        expected: "pairs of tensors `<parameter>.mean` and `<parameter>.variance`, f32, or u8 with `.absmax` beside them",
        found,
    };
    let bytes = fs::read(path).map_err(io_error(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| content(error.to_string()))?;
    let floats = |name: &str| -> Result<Vec<f32>, CheckpointError> {
        let view = file
            .tensor(name)
            .map_err(|error| content(error.to_string()))?;
        if view.dtype() != Dtype::F32 {
            return Err(content(format!("`{name}` of type {:?}", view.dtype())));
        }
        let (values, _) = view.data().as_chunks::<4>();
        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Ok(values.collect())
    };
    let read = |name: &str| -> Result<Tensor<1>, CheckpointError> {
        let values = floats(name)?;
        let len = values.len();
        let data = TensorData::new(values, [len]);
        Ok(Tensor::from_data(data, (device, DType::F32)))
    };
    let codes = |name: &str| -> Result<Option<Codes>, CheckpointError> {
        let view = file.tensor(name);
        let view = view.map_err(|error| content(error.to_string()))?;
        if view.dtype() != Dtype::U8 {
            return Ok(None);
        }
        Ok(Some(Codes {
            codes: view.data().to_vec(),
            absmax: floats(&format!("{name}.absmax"))?,
        }))
    };
    let (mut moments, mut byte_moments) = (BTreeMap::new(), BTreeMap::new());
    for name in file.names() {
        if let Some(parameter) = name.strip_suffix(".mean") {
            let variance = format!("{parameter}.variance");
            if let (Some(mean), Some(variance)) = (codes(name)?, codes(&variance)?) {
                let pair = ByteMoments { mean, variance };
                byte_moments.insert(parameter.to_owned(), pair);
                continue;
            }
            let pair = Moments {
                mean: read(name)?,
                variance: read(&variance)?,
            };
            moments.insert(parameter.to_owned(), pair);
        }
    }
    Ok((moments, byte_moments))
}
