//! Optional settings → a complete, checked [`Config`].

use std::path::{Path, PathBuf};

use lora_4bit::ComputeDtype;
use model_qwen::{Dtype, Quantization};
use thiserror::Error;

use super::{
    Config, DataConfig, GradientCheckpointing, LoraOptions, LrSchedule, ModelConfig,
    OptimizerConfig, RunConfig, Thinking, TrainOn,
};
use crate::args::Args;

/// The value of `--target-modules` that means every linear layer but the output head.
pub const ALL_LINEAR: &str = "all-linear";
const LINEAR_NAMES: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// A setting that cannot be honoured.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value out of range.
    #[error("--{flag}: expected {expected}, found {found}")]
    Value {
        /// The flag without its dashes.
        flag: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Nothing to train on.
    #[error(
        "--data is missing: give a JSONL file to learn from, for example `--data data/train.jsonl`"
    )]
    NoData,
    /// Two settings exclude each other.
    #[error("{0}")]
    Conflict(String),
    /// The `--config` file cannot be read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

impl Config {
    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// The first setting that is out of range, missing, or excluded by another one.
    pub fn from_args(args: Args) -> Result<Self, ConfigError> {
        let full = args.full.unwrap_or(false);
        if args.data.is_empty() {
            return Err(ConfigError::NoData);
        }
        let init = args.init_config.is_some();
        let model = ModelConfig {
            model: args.model,
            init_config: args.init_config,
            tokenizer: args.tokenizer,
            quantization: args.quantization.unwrap_or(if full {
                Quantization::None
            } else {
                Quantization::Nf4
            }),
            double_quant: args.double_quant.unwrap_or(true),
            dtype: args.dtype.unwrap_or(Dtype::Auto),
            compute_dtype: args.compute_dtype.unwrap_or(ComputeDtype::Bf16),
            device: args.device.unwrap_or_else(|| "auto".into()),
        };
        let data = DataConfig {
            train: args.data,
            eval: args.eval_data,
            max_length: at_least("max-length", args.max_length.unwrap_or(1024), 2)?,
            packing: args.packing.unwrap_or(false),
            train_on: args.train_on.unwrap_or(TrainOn::Assistant),
            thinking: args.thinking.unwrap_or(Thinking::Keep),
        };
        let lora = LoraOptions {
            r: at_least("lora-r", args.lora_r.unwrap_or(16), 1)?,
            alpha: positive("lora-alpha", args.lora_alpha.unwrap_or(32.0))?,
            dropout: in_range("lora-dropout", args.lora_dropout.unwrap_or(0.0), 0.0, 0.99)?,
            target_modules: target_modules(args.target_modules)?,
            use_rslora: args.use_rslora.unwrap_or(false),
        };
        // The narrower the model, the larger the steps it takes: 2e-4 suits half a billion parameters and more, and
        // leaves the bundled model where it was.
        let bundled = model.model.is_none() && !full;
        let learning_rate = if bundled { 2e-3 } else { 2e-4 };
        let optimizer = OptimizerConfig {
            learning_rate: positive("learning-rate", args.learning_rate.unwrap_or(learning_rate))?,
            lr_schedule: args.lr_schedule.unwrap_or(LrSchedule::Cosine),
            warmup_ratio: in_range("warmup-ratio", args.warmup_ratio.unwrap_or(0.03), 0.0, 1.0)?,
            warmup_steps: args.warmup_steps,
            weight_decay: in_range("weight-decay", args.weight_decay.unwrap_or(0.0), 0.0, 10.0)?,
            max_grad_norm: in_range("max-grad-norm", args.max_grad_norm.unwrap_or(1.0), 0.0, 1e9)?,
            gradient_checkpointing: args
                .gradient_checkpointing
                .unwrap_or(GradientCheckpointing::Auto),
        };
        let stem = data.train[0]
            .file_stem()
            .map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
        let run = RunConfig {
            output: match args.output {
                Some(path) => path,
                None => free_folder(Path::new(if full { "models" } else { "adapters" }), &stem),
            },
            full,
            epochs: positive("epochs", args.epochs.unwrap_or(DEFAULT_EPOCHS))?,
            max_steps: optional_at_least("max-steps", args.max_steps)?,
            batch_size: at_least("batch-size", args.batch_size.unwrap_or(4), 1)?,
            gradient_accumulation: at_least(
                "gradient-accumulation",
                args.gradient_accumulation.unwrap_or(1),
                1,
            )?,
            seed: args.seed.unwrap_or(42),
            save_steps: optional_at_least("save-steps", args.save_steps)?,
            log_steps: at_least("log-steps", args.log_steps.unwrap_or(1), 1)?,
            eval_steps: optional_at_least("eval-steps", args.eval_steps)?,
            resume: args.resume,
            preview: optional_at_least("preview", args.preview)?,
        };
        check_conflicts(&model, &data, &run, init)?;
        Ok(Self {
            model,
            data,
            lora,
            optimizer,
            run,
        })
    }

    /// The settings as a file for `--config`, without the folder they were written to.
    pub fn to_toml(&self) -> String {
        // A table of strings, numbers, lists and booleans always has a TOML form.
        toml::to_string(self).unwrap_or_default()
    }
}

/// Passes over the data when neither `--epochs` nor `--max-steps` is given.
pub const DEFAULT_EPOCHS: f64 = 10.0;

fn check_conflicts(
    model: &ModelConfig,
    data: &DataConfig,
    run: &RunConfig,
    init: bool,
) -> Result<(), ConfigError> {
    let conflict = |text: &str| Err(ConfigError::Conflict(text.into()));
    if run.full && model.quantization == Quantization::Nf4 {
        return conflict(
            "--full trains every weight, and 4-bit weights cannot be trained: leave --quantization out, or leave --full out to train a LoRA adapter on the 4-bit model",
        );
    }
    if init && !run.full {
        return conflict(
            "--init-config starts from random weights, which an adapter cannot repair: add --full",
        );
    }
    if init && model.model.is_some() {
        return conflict(
            "--init-config and --model exclude each other: the weights are either random or read from a model",
        );
    }
    if init && model.tokenizer.is_none() {
        return conflict(
            "--init-config needs --tokenizer FOLDER: the folder that has tokenizer.json and the chat template",
        );
    }
    if run.eval_steps.is_some() && data.eval.is_empty() {
        return conflict("--eval-steps needs --eval-data");
    }
    if run.resume.is_none() && run.preview.is_none() {
        for name in ["adapter_model.safetensors", "model.safetensors"] {
            if run.output.join(name).exists() {
                return Err(ConfigError::Value {
                    flag: "output",
                    expected: "a folder without a trained model".into(),
                    found: format!(
                        "{} (nothing is overwritten: choose another folder)",
                        run.output.join(name).display()
                    ),
                });
            }
        }
    }
    Ok(())
}

/// `parent/stem-1`, or the first number that is free.
fn free_folder(parent: &Path, stem: &str) -> PathBuf {
    let mut number = 1usize;
    loop {
        let path = parent.join(format!("{stem}-{number}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}

fn target_modules(given: Vec<String>) -> Result<Vec<String>, ConfigError> {
    if given.is_empty() {
        return Ok(vec![ALL_LINEAR.into()]);
    }
    for name in &given {
        if name != ALL_LINEAR && !LINEAR_NAMES.contains(&name.as_str()) {
            return Err(ConfigError::Value {
                flag: "target-modules",
                expected: format!("`{ALL_LINEAR}` or a list of {}", LINEAR_NAMES.join(", ")),
                found: format!("`{name}`"),
            });
        }
    }
    Ok(given)
}

fn at_least(flag: &'static str, value: usize, least: usize) -> Result<usize, ConfigError> {
    if value >= least {
        return Ok(value);
    }
    Err(ConfigError::Value {
        flag,
        expected: format!("a whole number from {least} up"),
        found: value.to_string(),
    })
}

fn optional_at_least(
    flag: &'static str,
    value: Option<usize>,
) -> Result<Option<usize>, ConfigError> {
    value.map(|value| at_least(flag, value, 1)).transpose()
}

fn positive(flag: &'static str, value: f64) -> Result<f64, ConfigError> {
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(ConfigError::Value {
        flag,
        expected: "a number above 0".into(),
        found: value.to_string(),
    })
}

fn in_range(flag: &'static str, value: f64, low: f64, high: f64) -> Result<f64, ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Value {
        flag,
        expected: format!("a number from {low} to {high}"),
        found: value.to_string(),
    })
}
