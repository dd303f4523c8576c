//! Why a training run fails.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use lora_4bit::peft::PeftError;
use model_qwen::{AdapterError, DeviceError, LoadError, SaveError, catch_device_failure, is_gpu};
use thiserror::Error;

use crate::chat_format::ModelFilesError;
use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::generation::GenerationError;
use crate::rewards::RewardError;

/// Why a run cannot start or go on.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--device` or `--devices`.
    #[error("--{flag}: {error}")]
    Device {
        /// Which of the two.
        flag: &'static str,
        /// What is wrong with it.
        #[source]
        error: DeviceError,
    },
    /// The device has failed, most often because its memory is full. The process cannot go on with it.
    #[error(
        "{what}: the device has failed: {reason}\n{}",
        advice(checkpoint.as_deref())
    )]
    DeviceFailed {
        /// What was being done.
        what: String,
        /// What the device says.
        reason: String,
        /// The newest checkpoint of the run.
        checkpoint: Option<PathBuf>,
    },
    /// The model's folder, tokenizer or chat template.
    #[error(transparent)]
    ModelFiles(#[from] ModelFilesError),
    /// The model's weights.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The training or evaluation data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// `--full` on a 4-bit checkpoint.
    #[error(
        "--full: layer `{0}` of the model is 4-bit and cannot be trained: give the unquantized model, or leave --full out"
    )]
    Quantized(String),
    /// `--init-lora-weights pissa` on a 4-bit checkpoint.
    #[error(
        "--init-lora-weights: layer `{0}` of the model is 4-bit, and nothing can be taken out of it: give the unquantized model, or \
         leave --init-lora-weights out"
    )]
    NotDense(String),
    /// The checkpoint of `--resume` belongs to another run.
    #[error("--resume {}: this run differs from the one it goes on with:\n  {differences}\n{instead}", checkpoint.display())]
    Resume {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// What differs, one line each.
        differences: String,
        /// What to do.
        instead: &'static str,
    },
    /// The adapter of `--adapter` has another form than the flags ask for.
    #[error("--{flag}: expected {expected}, as the adapter in {} has, found {found}", folder.display())]
    AdapterForm {
        /// The flag.
        flag: &'static str,
        /// The adapter's value.
        expected: String,
        /// What was given.
        found: String,
        /// The adapter.
        folder: PathBuf,
    },
    /// The model could not answer.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// Answers got no rewards.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter's files.
    #[error("{}", error.of(folder))]
    Peft {
        /// The folder of the adapter.
        folder: PathBuf,
        /// Why they cannot be read.
        error: PeftError,
    },
    /// An adapter that does not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The trained model cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A file of the output folder.
    #[error("{}: {error}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The disk has no room for the result.
    #[error("--output: expected at least {needed} MiB of room for the result, found {free} MiB in {}", folder.display())]
    Space {
        /// The folder.
        folder: PathBuf,
        /// MiB that are needed.
        needed: u64,
        /// MiB that are free.
        free: u64,
    },
    /// A loss, a gradient or a weight is infinite or not a number.
    #[error(
        "{what} at step {step} ({records}): training has diverged, and no weights of it are written; {cause}. Checkpoints written before stay in {}",
        output.display()
    )]
    Diverged {
        /// The step.
        step: usize,
        /// What is not finite.
        what: String,
        /// The records of the step.
        records: String,
        /// The setting that is the likely cause, and what to try.
        cause: String,
        /// The output folder.
        output: PathBuf,
    },
    /// The run takes more memory than it may.
    #[error("the run would take {} MiB, and {by} allows {} MiB; {instead} (--dry-run shows what takes it)", mib(*needed), *budget >> 20)]
    Memory {
        /// Bytes that the run would take.
        needed: u64,
        /// Bytes that it may take.
        budget: u64,
        /// What sets this.
        by: String,
        /// Flags with which the run would fit.
        instead: String,
    },
    /// Gradients cannot be summed over the devices as they should be.
    #[error("--all-reduce: {0}")]
    AllReduce(String),
    /// The run was told to stop before its first step had ended.
    #[error("stopped before the first step has ended; nothing is written")]
    Stopped,
    /// The result cannot be written where it belongs.
    #[error("{error}; the result {}", kept.as_ref().map_or("is lost".to_owned(), |kept| format!("is kept in {}", kept.display())))]
    Result {
        /// Why.
        error: Box<TrainError>,
        /// Where it is instead.
        kept: Option<PathBuf>,
    },
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl TrainError {
    /// An error of the adapter in `folder`.
    pub(crate) fn of_adapter(folder: &Path) -> impl FnOnce(PeftError) -> Self {
        move |error| Self::Peft {
            folder: folder.to_owned(),
            error,
        }
    }

    /// Whether the settings are wrong, and not the files that they name or what was computed.
    pub fn is_of_settings(&self) -> bool {
        match self {
            Self::Config(_) | Self::Device { .. } | Self::AdapterForm { .. } => true,
            Self::ModelFiles(error) => error.is_of_settings(),
            Self::Data(error) => matches!(error, DataError::Columns(_)),
            _ => false,
        }
    }
}

/// The result of `work`. A GPU that fails in it ends the run with an error of `what` was done, and of the newest checkpoint.
pub(crate) fn guard<T>(
    device: &Device,
    what: impl FnOnce() -> (String, Option<PathBuf>),
    work: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    if !is_gpu(device) {
        return work();
    }
    catch_device_failure(work).unwrap_or_else(|reason| {
        let (what, checkpoint) = what();
        Err(TrainError::DeviceFailed {
            what,
            reason,
            checkpoint,
        })
    })
}

/// A [`TrainError::Output`] about `path`.
pub(crate) fn output_error(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    let path = path.to_path_buf();
    move |error| TrainError::Output { path, error }
}

/// What to do when a device has failed.
fn advice(checkpoint: Option<&Path>) -> String {
    let less = "if its memory is full, give a smaller --batch-size (and a larger --gradient-accumulation for the same steps), a \
                smaller --max-length, --offload-activations, or --quantization nf4";
    match checkpoint {
        Some(checkpoint) => format!(
            "{less}; the steps so far are in {}: --resume it",
            checkpoint.display()
        ),
        None => format!("{less}; there is no checkpoint yet (--save-steps writes some)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_fails_leaves_the_last_checkpoint() {
        let failed = |checkpoint: Option<&str>| TrainError::DeviceFailed {
            what: "step 7".to_owned(),
            reason: "out of memory".to_owned(),
            checkpoint: checkpoint.map(PathBuf::from),
        };
        let said = failed(Some("a/checkpoint-5")).to_string();
        assert!(said.starts_with("step 7: the device has failed: out of memory\n"));
        assert!(said.contains("--batch-size") && said.ends_with("a/checkpoint-5: --resume it"));
        assert!(
            failed(None)
                .to_string()
                .ends_with("(--save-steps writes some)")
        );
    }
}
