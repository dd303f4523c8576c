//! Optional settings → a complete [`Config`].

use std::path::{Path, PathBuf};

use lora_4bit::ComputeDtype;
use model_qwen::Quantization;

use super::args::Args;
use super::{BatchSize, Config, ConfigError, Method, RunConfig, find_checkpoint, run_of};

impl Config {
    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// The first setting that is out of range, missing, or excluded by another one.
    pub fn from_args(args: &Args) -> Result<Self, ConfigError> {
        Self::from_settings(args, false)
    }

    /// [`Self::from_args`], also for records in memory instead of files.
    pub(super) fn from_settings(args: &Args, has_records: bool) -> Result<Self, ConfigError> {
        let full = args.model.full.unwrap_or(false);
        let method = args.method.to_config();
        let grpo = args.grpo.to_config();
        let data = args.data.to_config();
        let optimizer = args.training.to_config(args.lora.loraplus_lr_ratio);
        let default = RunConfig::default();
        let (own, training) = (&args.output, &args.training);
        let (output, numbered) = match (&own.output, &own.resume) {
            (Some(path), _) => (path.clone(), false),
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
            epochs: training.epochs,
            max_steps: training.max_steps,
            // All answers to one prompt.
            batch_size: match training.batch_size {
                Some(BatchSize::Rows(rows)) => rows,
                _ if method.method == Method::Grpo => grpo.num_generations(),
                _ => default.batch_size,
            },
            batch_size_auto: training.batch_size == Some(BatchSize::Auto),
            gradient_accumulation: training
                .gradient_accumulation
                .unwrap_or(default.gradient_accumulation),
            seed: training.seed.unwrap_or(default.seed),
            save_steps: own.save_steps,
            log_steps: own.log_steps.unwrap_or(default.log_steps),
            save_total_limit: own.save_total_limit,
            eval_steps: own.eval_steps,
            load_best: own.load_best.unwrap_or(default.load_best),
            early_stopping_patience: own.early_stopping_patience,
            early_stopping_threshold: own.early_stopping_threshold,
            report_to: own.report_to.clone(),
            logging_dir: own.logging_dir.clone(),
            resume: own.resume.clone(),
            resume_anyway: own.resume_anyway,
            adapter: args.lora.adapter.clone(),
            preview: args.data.preview,
        };
        let config = Self {
            model: args.model.to_config(),
            method,
            data,
            lora: args.lora.to_config(),
            optimizer,
            run,
            samples: own.to_samples(),
            grpo,
            memory: args.memory.to_config(),
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
        if self.model.compute_dtype == ComputeDtype::Auto {
            config.model.compute_dtype = match self.run.full {
                false => ComputeDtype::Bf16,
                // Known with the device.
                true => ComputeDtype::Auto,
            };
        }
        // That of an adapter is known when the adapter has been read.
        if self.run.adapter.is_none() {
            config.lora.dropout = Some(self.lora.dropout());
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
    pub(crate) fn check_output(&self) -> Result<(), ConfigError> {
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
        let has_ended = |result: PathBuf| {
            Err(ConfigError::Value {
                flag: "resume",
                expected: "a run that has not ended".into(),
                found: format!(
                    "{}, its result: --adapter starts a new run from an adapter, --model from a model",
                    result.display()
                ),
            })
        };
        if run.goes_on_in_its_folder() {
            let mut results = ["adapter_model.safetensors", "model.safetensors"]
                .map(|name| run.output.join(name))
                .into_iter();
            return match results.find(|result| result.exists()) {
                Some(result) => has_ended(result),
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
