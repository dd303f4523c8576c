//! Fine-tuning over HTTP.

use std::path::PathBuf;

use super::ConfigError;
use super::args::Args;
use super::job_priority::JobPriority;

/// Largest uploaded file unless `--max-file-size` says otherwise, as at OpenAI.
const MAX_FILE_SIZE: u64 = 512 << 20;

/// Whether and where adapters are trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FineTuningConfig {
    /// Where files, jobs and results are kept.
    pub dir: PathBuf,
    /// What a job gets of the processor while requests run.
    pub priority: JobPriority,
    /// Where jobs run in processes of their own; `None` is in the server's process, on its device.
    pub device: Option<String>,
    /// Bytes that a job may take, besides weights that it shares with the server.
    pub memory: Option<u64>,
    /// Largest uploaded file in bytes.
    pub max_file_size: u64,
}

impl FineTuningConfig {
    /// `None` without `--enable-finetuning`.
    pub(super) fn from_args(args: &Args) -> Result<Option<Self>, ConfigError> {
        if !args.enable_finetuning {
            let given = [
                ("--finetuning-dir", args.finetuning_dir.is_some()),
                ("--finetuning-priority", args.finetuning_priority.is_some()),
                ("--finetuning-device", args.finetuning_device.is_some()),
                ("--finetuning-memory", args.finetuning_memory.is_some()),
                ("--max-file-size", args.max_file_size.is_some()),
            ];
            return match given.iter().find(|(_, is_given)| *is_given) {
                Some((flag, _)) => Err(ConfigError::Flag {
                    flag,
                    message: "needs --enable-finetuning".to_owned(),
                }),
                None => Ok(None),
            };
        }
        for (flag, size) in [
            ("--max-file-size", args.max_file_size),
            ("--finetuning-memory", args.finetuning_memory),
        ] {
            if size == Some(0) {
                let message = "expected at least 1 byte, found 0".to_owned();
                return Err(ConfigError::Flag { flag, message });
            }
        }
        if let Some(name) = &args.finetuning_device
            && let Err(error) = model_qwen::parse_device(name)
        {
            return Err(ConfigError::Flag {
                flag: "--finetuning-device",
                message: error.to_string(),
            });
        }
        Ok(Some(Self {
            dir: args.finetuning_dir.clone().unwrap_or_else(default_dir),
            priority: args.finetuning_priority.unwrap_or_default(),
            device: args.finetuning_device.clone(),
            memory: args.finetuning_memory,
            max_file_size: args.max_file_size.unwrap_or(MAX_FILE_SIZE),
        }))
    }
}

/// The user's folder for data: what was trained is no cache.
fn default_dir() -> PathBuf {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.filter(|path| path.is_absolute()).unwrap_or_else(|| {
        let home = std::env::home_dir().unwrap_or_default();
        home.join(".local/share")
    });
    data.join("qwen-burn/finetuning")
}
