//! Command line and file → [`Args`] → [`Config`].

use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory, Parser};

use model_qwen::Quantization;

use super::Args;
use super::hints::{nearest, with_hyphens, with_nearest_flag};
use crate::config::{Config, ConfigError, Method, SETTINGS, run_of};

/// What the command line asked for instead of a run, or why it is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// `--help`, `--version`, or a command line that clap refuses; prints and exits through [`clap::Error::exit`].
    #[error(transparent)]
    Clap(#[from] clap::Error),
    /// A value that cannot be honoured.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Args {
    /// Parses a command line (the first item is the program), merges its `--config` file, and validates.
    ///
    /// # Errors
    /// Unknown flags (with the nearest known one), unreadable or unknown settings in the file, and invalid values.
    pub fn parse_config<I, T>(command_line: I) -> Result<Config, ArgsError>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString>,
    {
        let words = command_line
            .into_iter()
            .map(|word| with_hyphens(word.into()));
        let mut args = Self::try_parse_from(words).map_err(with_nearest_flag)?;
        if args.no_double_quant {
            args.double_quant = Some(false);
        }
        let given = args.clone();
        if let Some(path) = args.config.take() {
            args = args.over(Self::from_file(&path)?);
        }
        let args = args.resumed()?;
        given.check_effect(&args)?;
        Ok(Config::from_args(args)?)
    }

    /// These settings over those of the run to go on with, where there is one.
    ///
    /// # Errors
    /// When the settings of that run cannot be read.
    pub fn resumed(self) -> Result<Self, ConfigError> {
        let Some(resume) = &self.resume else {
            return Ok(self);
        };
        let path = run_of(resume).join(SETTINGS);
        if !path.is_file() {
            return Ok(self);
        }
        let run = Self {
            // The run that started from it has gone on since.
            adapter: None,
            ..Self::from_file(&path)?
        };
        Ok(self.over(run))
    }

    /// Checks settings that came from elsewhere than a command line, such as a request. With `has_records` the data are records in
    /// memory.
    ///
    /// # Errors
    /// The first setting that is out of range, missing, without effect, or excluded by another one.
    pub fn into_config(self, has_records: bool) -> Result<Config, ConfigError> {
        self.check_effect(&self)?;
        Config::from_settings(self, has_records)
    }

    /// Refuses these flags where another setting of the run, a flag or one of a file, makes them ineffective.
    pub(crate) fn check_effect(&self, run: &Self) -> Result<(), ConfigError> {
        let full = run.full == Some(true);
        let dense = full || run.quantization == Some(Quantization::None);
        let new_adapter = "--full trains the model itself and makes no adapter";
        let in_f32 = "--full trains in f32";
        let own = run.adapter.is_some();
        let own_form = "the adapter of --adapter keeps its rank, alpha and layers";
        let no_blocks = "the weights are not in 4-bit blocks";
        let grpo = run.method == Some(Method::Grpo);
        let no_examples =
            "--method grpo learns from its own answers, of up to --max-completion-length tokens";
        for (flag, is_given, is_idle, why) in [
            ("lora-r", self.lora_r.is_some(), full, new_adapter),
            ("lora-alpha", self.lora_alpha.is_some(), full, new_adapter),
            (
                "lora-dropout",
                self.lora_dropout.is_some(),
                full,
                new_adapter,
            ),
            (
                "target-modules",
                !self.target_modules.is_empty(),
                full,
                new_adapter,
            ),
            ("use-rslora", self.use_rslora.is_some(), full, new_adapter),
            ("use-dora", self.use_dora.is_some(), full, new_adapter),
            (
                "init-lora-weights",
                self.init_lora_weights.is_some(),
                full,
                new_adapter,
            ),
            (
                "modules-to-save",
                !self.modules_to_save.is_empty(),
                full,
                new_adapter,
            ),
            ("lora-r", self.lora_r.is_some(), own, own_form),
            ("lora-alpha", self.lora_alpha.is_some(), own, own_form),
            (
                "target-modules",
                !self.target_modules.is_empty(),
                own,
                own_form,
            ),
            ("use-rslora", self.use_rslora.is_some(), own, own_form),
            ("use-dora", self.use_dora.is_some(), own, own_form),
            (
                "init-lora-weights",
                self.init_lora_weights.is_some(),
                own,
                own_form,
            ),
            (
                "modules-to-save",
                !self.modules_to_save.is_empty(),
                own,
                own_form,
            ),
            (
                "double-quant",
                self.double_quant == Some(true),
                dense,
                no_blocks,
            ),
            ("no-double-quant", self.no_double_quant, dense, no_blocks),
            ("max-length", self.max_length.is_some(), grpo, no_examples),
            ("train-on", self.train_on.is_some(), grpo, no_examples),
            ("thinking", self.thinking.is_some(), grpo, no_examples),
            ("dtype", self.dtype.is_some(), full, in_f32),
            ("compute-dtype", self.compute_dtype.is_some(), full, in_f32),
        ] {
            if is_given && is_idle {
                let text = format!("--{flag} would have no effect: {why}; leave it out");
                return Err(ConfigError::Conflict(text));
            }
        }
        Ok(())
    }

    /// Reads the settings in a TOML file.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or has a key that is no setting (the nearest one is named).
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let failed = |reason: String| ConfigError::File {
            path: path.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let names = Self::command()
            .get_arguments()
            .map(|arg| arg.get_id().to_string())
            .collect::<Vec<_>>();
        toml::from_str(&text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let mut reason = format!("line {line}: {}", error.message());
            if let Some(unknown) = error
                .message()
                .strip_prefix("unknown field `")
                .and_then(|rest| rest.split('`').next())
            {
                reason = format!("line {line}: unknown setting `{unknown}`");
                if let Some(near) =
                    nearest(&unknown.replace('-', "_"), names.iter().map(String::as_str))
                {
                    reason.push_str(&format!("; the nearest one is `{near}`"));
                }
            }
            failed(reason)
        })
    }
}
