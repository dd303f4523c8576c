//! Optional settings → a complete, checked [`Config`].

use std::path::{Path, PathBuf};

use lora_4bit::ComputeDtype;
use model_qwen::Quantization;
use thiserror::Error;

use super::args::Args;
use super::{Config, DataConfig, LoraOptions, ModelConfig, OptimizerConfig, RunConfig};

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
    /// Nothing to evaluate on.
    #[error("--eval-steps needs --eval-data")]
    NoEvalData,
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
        let default = ModelConfig::default();
        let model = ModelConfig {
            model: args.model,
            init_config: args.init_config,
            tokenizer: args.tokenizer,
            quantization: args.quantization.unwrap_or(if full {
                Quantization::None
            } else {
                default.quantization
            }),
            double_quant: args.double_quant.unwrap_or(default.double_quant),
            dtype: args.dtype.unwrap_or(default.dtype),
            compute_dtype: args.compute_dtype.unwrap_or(default.compute_dtype),
            device: args.device.unwrap_or(default.device),
        };
        let default = DataConfig::default();
        let data = DataConfig {
            train: args.data,
            eval: args.eval_data,
            max_length: args.max_length.unwrap_or(default.max_length),
            packing: args.packing.unwrap_or(default.packing),
            train_on: args.train_on.unwrap_or(default.train_on),
            thinking: args.thinking.unwrap_or(default.thinking),
        };
        let default = LoraOptions::default();
        let lora = LoraOptions {
            r: args.lora_r.unwrap_or(default.r),
            alpha: args.lora_alpha.unwrap_or(default.alpha),
            dropout: args.lora_dropout.unwrap_or(default.dropout),
            target_modules: if args.target_modules.is_empty() {
                default.target_modules
            } else {
                args.target_modules
            },
            use_rslora: args.use_rslora.unwrap_or(default.use_rslora),
        };
        let default = OptimizerConfig::default();
        // The narrower the model, the larger the steps it takes: the default suits half a billion parameters and more, and
        // leaves the bundled model where it was.
        let bundled = model.model.is_none() && !full;
        let learning_rate = if bundled { 2e-3 } else { default.learning_rate };
        let optimizer = OptimizerConfig {
            learning_rate: args.learning_rate.unwrap_or(learning_rate),
            lr_schedule: args.lr_schedule.unwrap_or(default.lr_schedule),
            warmup_ratio: args.warmup_ratio.unwrap_or(default.warmup_ratio),
            warmup_steps: args.warmup_steps,
            weight_decay: args.weight_decay.unwrap_or(default.weight_decay),
            max_grad_norm: args.max_grad_norm.unwrap_or(default.max_grad_norm),
            gradient_checkpointing: args
                .gradient_checkpointing
                .unwrap_or(default.gradient_checkpointing),
        };
        let stem = data.train[0]
            .file_stem()
            .map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
        let default = RunConfig::default();
        let run = RunConfig {
            output: match args.output {
                Some(path) => path,
                None => free_folder(Path::new(if full { "models" } else { "adapters" }), &stem),
            },
            full,
            epochs: args.epochs.unwrap_or(default.epochs),
            max_steps: args.max_steps,
            batch_size: args.batch_size.unwrap_or(default.batch_size),
            gradient_accumulation: args
                .gradient_accumulation
                .unwrap_or(default.gradient_accumulation),
            seed: args.seed.unwrap_or(default.seed),
            save_steps: args.save_steps,
            log_steps: args.log_steps.unwrap_or(default.log_steps),
            eval_steps: args.eval_steps,
            resume: args.resume,
            preview: args.preview,
        };
        let config = Self {
            model,
            data,
            lora,
            optimizer,
            run,
        };
        config.check()?;
        if config.run.eval_steps.is_some() && config.data.eval.is_empty() {
            return Err(ConfigError::NoEvalData);
        }
        Ok(config)
    }

    /// Checks every setting's range, and that no two exclude each other. Messages name the settings as the command line does:
    /// `--lora-r` is [`LoraOptions::r`].
    ///
    /// # Errors
    /// The first setting that is out of range or excluded by another one.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Self {
            model,
            data,
            lora,
            optimizer,
            run,
        } = self;
        if !matches!(model.compute_dtype, ComputeDtype::F32 | ComputeDtype::Bf16) {
            return Err(ConfigError::Value {
                flag: "compute-dtype",
                expected: "f32 or bf16".into(),
                found: format!("{:?}", model.compute_dtype).to_lowercase(),
            });
        }
        at_least("max-length", data.max_length, 2)?;
        at_least("lora-r", lora.r, 1)?;
        positive("lora-alpha", lora.alpha)?;
        in_range("lora-dropout", lora.dropout, 0.0, 0.99)?;
        check_target_modules(&lora.target_modules)?;
        positive("learning-rate", optimizer.learning_rate)?;
        in_range("warmup-ratio", optimizer.warmup_ratio, 0.0, 1.0)?;
        in_range("weight-decay", optimizer.weight_decay, 0.0, 10.0)?;
        in_range("max-grad-norm", optimizer.max_grad_norm, 0.0, 1e9)?;
        positive("epochs", run.epochs)?;
        at_least("batch-size", run.batch_size, 1)?;
        at_least("gradient-accumulation", run.gradient_accumulation, 1)?;
        at_least("log-steps", run.log_steps, 1)?;
        for (flag, value) in [
            ("max-steps", run.max_steps),
            ("save-steps", run.save_steps),
            ("eval-steps", run.eval_steps),
            ("preview", run.preview),
        ] {
            at_least(flag, value.unwrap_or(1), 1)?;
        }
        if run.output.as_os_str().is_empty() {
            return Err(ConfigError::Value {
                flag: "output",
                expected: "a folder".into(),
                found: "an empty path".into(),
            });
        }
        self.check_conflicts()
    }

    /// The settings as a file for `--config`, without the folder they were written to.
    pub fn to_toml(&self) -> String {
        // A table of strings, numbers, lists and booleans always has a TOML form.
        toml::to_string(self).unwrap_or_default()
    }
}

/// Passes over the data when neither `--epochs` nor `--max-steps` is given.
pub const DEFAULT_EPOCHS: f64 = 10.0;

impl Config {
    fn check_conflicts(&self) -> Result<(), ConfigError> {
        let (model, run) = (&self.model, &self.run);
        let init = model.init_config.is_some();
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

fn check_target_modules(given: &[String]) -> Result<(), ConfigError> {
    let wrong = |found: String| {
        Err(ConfigError::Value {
            flag: "target-modules",
            expected: format!("`{ALL_LINEAR}` or a list of {}", LINEAR_NAMES.join(", ")),
            found,
        })
    };
    let unknown = |name: &&String| *name != ALL_LINEAR && !LINEAR_NAMES.contains(&name.as_str());
    match given.iter().find(unknown) {
        Some(name) => wrong(format!("`{name}`")),
        None if given.is_empty() => wrong("an empty list".to_owned()),
        None => Ok(()),
    }
}

fn at_least(flag: &'static str, value: usize, least: usize) -> Result<(), ConfigError> {
    if value >= least {
        return Ok(());
    }
    Err(ConfigError::Value {
        flag,
        expected: format!("a whole number from {least} up"),
        found: value.to_string(),
    })
}

fn positive(flag: &'static str, value: f64) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ConfigError::Value {
        flag,
        expected: "a number above 0".into(),
        found: value.to_string(),
    })
}

fn in_range(flag: &'static str, value: f64, low: f64, high: f64) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Value {
        flag,
        expected: format!("a number from {low} to {high}"),
        found: value.to_string(),
    })
}
