//! Optional settings → a complete [`Config`].

use std::path::{Path, PathBuf};

use lora_4bit::ComputeDtype;
use model_qwen::Quantization;

use super::args::Args;
use super::{
    Config, ConfigError, DataConfig, GrpoOptions, LoraOptions, Method, ModelConfig,
    OptimizerConfig, RunConfig, SampleOptions, find_checkpoint, run_of,
};

impl Config {
    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// The first setting that is out of range, missing, or excluded by another one.
    pub fn from_args(args: Args) -> Result<Self, ConfigError> {
        Self::from_settings(args, false)
    }

    /// [`Self::from_args`], also for records in memory instead of files.
    pub(super) fn from_settings(args: Args, has_records: bool) -> Result<Self, ConfigError> {
        let full = args.full.unwrap_or(false);
        let method = args.method_config();
        let grpo = GrpoOptions {
            num_generations: args.num_generations,
            temperature: args.temperature,
            max_completion_length: args.max_completion_length,
            num_iterations: args.num_iterations,
            epsilon: args.epsilon,
            epsilon_high: args.epsilon_high,
            scale_rewards: args.scale_rewards,
            rewards: args.reward,
            reward_urls: args.reward_url,
            reward_weights: args.reward_weights,
            reward_timeout: args.reward_timeout,
        };
        let default = ModelConfig::default();
        let model = ModelConfig {
            model: args.model,
            init_config: args.init_config,
            tokenizer: args.tokenizer,
            quantization: args.quantization,
            double_quant: args.double_quant.unwrap_or(default.double_quant),
            dtype: args.dtype.unwrap_or(default.dtype),
            compute_dtype: args.compute_dtype.unwrap_or(default.compute_dtype),
            device: args.device.unwrap_or(default.device),
        };
        let default = DataConfig::default();
        let data = DataConfig {
            train: args.data,
            eval: args.eval_data,
            eval_split: args.eval_split,
            columns: args.columns,
            strict: args.strict.unwrap_or(default.strict),
            streaming: args.streaming.unwrap_or(default.streaming),
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
            use_dora: args.use_dora.unwrap_or(default.use_dora),
            modules_to_save: args.modules_to_save,
            init: args.init_lora_weights.unwrap_or(default.init),
        };
        let default = OptimizerConfig::default();
        let optimizer = OptimizerConfig {
            optim: args.optim.unwrap_or(default.optim),
            learning_rate: args.learning_rate,
            lr_schedule: args.lr_schedule.unwrap_or(default.lr_schedule),
            warmup_ratio: args.warmup_ratio.unwrap_or(default.warmup_ratio),
            warmup_steps: args.warmup_steps,
            min_lr: args.min_lr,
            min_lr_rate: args.min_lr_rate,
            lr_power: args.lr_power,
            lr_decay_steps: args.lr_decay_steps,
            loraplus_lr_ratio: args.loraplus_lr_ratio,
            neftune_noise_alpha: args.neftune_noise_alpha,
            weight_decay: args.weight_decay.unwrap_or(default.weight_decay),
            max_grad_norm: args.max_grad_norm.unwrap_or(default.max_grad_norm),
            gradient_checkpointing: args
                .gradient_checkpointing
                .unwrap_or(default.gradient_checkpointing),
        };
        let default = RunConfig::default();
        let (output, numbered) = match (args.output, &args.resume) {
            (Some(path), _) => (path, false),
            // A run goes on in its own folder.
            (None, Some(checkpoint)) => (run_of(checkpoint), false),
            (None, None) => {
                let parent = Path::new(if full { "models" } else { "adapters" });
                (free_folder(&parent.join(data_name(&data.train))), true)
            }
        };
        let run = RunConfig {
            output,
            numbered,
            full,
            epochs: args.epochs,
            max_steps: args.max_steps,
            // All answers to one prompt.
            batch_size: args.batch_size.unwrap_or(if method.method == Method::Grpo {
                grpo.num_generations()
            } else {
                default.batch_size
            }),
            gradient_accumulation: args
                .gradient_accumulation
                .unwrap_or(default.gradient_accumulation),
            seed: args.seed.unwrap_or(default.seed),
            save_steps: args.save_steps,
            log_steps: args.log_steps.unwrap_or(default.log_steps),
            save_total_limit: args.save_total_limit,
            eval_steps: args.eval_steps,
            load_best: args.load_best.unwrap_or(default.load_best),
            early_stopping_patience: args.early_stopping_patience,
            early_stopping_threshold: args.early_stopping_threshold,
            report_to: args.report_to,
            logging_dir: args.logging_dir,
            resume: args.resume,
            resume_anyway: args.resume_anyway,
            adapter: args.adapter,
            preview: args.preview,
        };
        let samples = SampleOptions {
            prompts: args.sample_prompts,
            steps: args.sample_steps,
            max_tokens: args.sample_max_tokens,
        };
        let config = Self {
            model,
            method,
            data,
            lora,
            optimizer,
            run,
            samples,
            grpo,
        };
        config.check_data(has_records, false)?;
        config.resolved()
    }

    /// These settings, complete and checked: every one that depends on the rest is filled in. Command line and library
    /// both come through here.
    ///
    /// # Errors
    /// The first setting that is out of range or excluded by another one.
    pub fn resolved(&self) -> Result<Self, ConfigError> {
        let mut config = self.clone();
        config.model.quantization = Some(self.quantization());
        if self.run.full {
            config.model.compute_dtype = ComputeDtype::F32;
        }
        config.method = self.method.resolved(self.run.adapter.as_ref());
        config.optimizer.learning_rate = Some(self.learning_rate());
        config.run.epochs = Some(self.epochs());
        if let Some(resume) = &self.run.resume {
            config.run.resume = Some(find_checkpoint(resume)?);
        }
        config.check()?;
        config.check_output()?;
        Ok(config)
    }

    /// How the frozen linear weights are held.
    pub fn quantization(&self) -> Quantization {
        let default = match self.run.full {
            true => Quantization::None,
            false => Quantization::Nf4,
        };
        self.model.quantization.unwrap_or(default)
    }

    /// Peak learning rate.
    pub fn learning_rate(&self) -> f64 {
        // The narrower the model, the larger the steps it takes: the usual value suits half a billion parameters and more,
        // and leaves the bundled model where it was.
        let default = match (self.method.method, self.is_quickstart()) {
            (Method::Grpo, _) => 1e-5,
            (Method::Sft, true) => 2e-3,
            (Method::Sft, false) => 2e-4,
            // A comparison goes further with each step than a text.
            (Method::Dpo | Method::Orpo | Method::Kto, true) => 1e-4,
            (Method::Dpo | Method::Orpo | Method::Kto, false) => 5e-6,
        };
        self.optimizer.learning_rate.unwrap_or(default)
    }

    /// Passes over the data where [`RunConfig::max_steps`] does not say how long the run is.
    pub fn epochs(&self) -> f64 {
        let is_quickstart = self.is_quickstart() && self.method.method != Method::Grpo;
        let default = match is_quickstart {
            true => QUICKSTART_EPOCHS,
            false => DEFAULT_EPOCHS,
        };
        self.run.epochs.unwrap_or(default)
    }

    /// The output folder is a new one, an empty one, or that of the run to go on with.
    fn check_output(&self) -> Result<(), ConfigError> {
        let run = &self.run;
        if run.preview.is_some() || run.numbered {
            return Ok(());
        }
        let wrong = |expected: &str, found: String| {
            Err(ConfigError::Value {
                flag: "output",
                expected: expected.into(),
                found: format!("{found} (nothing is overwritten: choose another folder)"),
            })
        };
        if run.goes_on_in_its_folder() {
            let mut results = ["adapter_model.safetensors", "model.safetensors"]
                .map(|name| run.output.join(name))
                .into_iter();
            return match results.find(|result| result.exists()) {
                Some(result) => wrong("a run that has not ended", result.display().to_string()),
                None => Ok(()),
            };
        }
        if run.output.exists() && !run.output.is_dir() {
            return wrong("a folder", format!("the file {}", run.output.display()));
        }
        let mut entries = std::fs::read_dir(&run.output)
            .into_iter()
            .flatten()
            .flatten();
        match entries.next() {
            Some(entry) => wrong("a new or empty folder", entry.path().display().to_string()),
            None => Ok(()),
        }
    }

    /// An adapter of the bundled model, which is small and has to change a lot.
    pub(crate) fn is_quickstart(&self) -> bool {
        self.model.model.is_none() && self.model.init_config.is_none() && !self.run.full
    }
}

/// Passes over the data when neither `--epochs` nor `--max-steps` is given, as in TRL.
pub const DEFAULT_EPOCHS: f64 = 3.0;

/// The same for an adapter of the bundled model.
const QUICKSTART_EPOCHS: f64 = 10.0;

/// The name of the first data file, for the output folder.
fn data_name(files: &[PathBuf]) -> String {
    let name = files.first().and_then(|file| file.file_name());
    let name = name.unwrap_or_default().to_string_lossy();
    let stem = name.split('.').next().unwrap_or_default();
    match stem.is_empty() || stem == "-" || stem.contains(['*', '?', '[']) {
        true => "run".to_owned(),
        false => stem.to_owned(),
    }
}

/// `stem-1`, or the first number that is free.
fn free_folder(stem: &Path) -> PathBuf {
    let mut number = 1usize;
    loop {
        let mut name = stem.as_os_str().to_owned();
        name.push(format!("-{number}"));
        let path = PathBuf::from(name);
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}
