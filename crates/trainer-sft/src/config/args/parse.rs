//! Command line and file → [`Args`] → [`Config`].

use std::ffi::OsString;

use clap::{CommandFactory as _, FromArgMatches as _};

use serde_json::Value;

use super::Args;
use super::hints::{with_nearest_flag, with_negative_numbers};
use super::words::plain_words;
use crate::config::{Config, ConfigError, SETTINGS, find_checkpoint, run_of};

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
        let mut command = with_negative_numbers(Self::command());
        let words = plain_words(command_line.into_iter().map(Into::into), &command);
        let matches = command.try_get_matches_from_mut(words);
        let args = matches.and_then(|matches| Self::from_arg_matches(&matches));
        let args = args.map_err(|error| with_nearest_flag(error, &command))?;
        let given = args.clone();
        let config = Config::from_args(&args.with_files()?);
        Ok(config.map_err(|error| given.with_file(error))?)
    }

    /// An error with the `--config` file that has the setting which is refused, where no flag of these has it.
    pub(crate) fn with_file(&self, error: ConfigError) -> ConfigError {
        let (ConfigError::Value { flag, .. }, Some(path)) = (&error, &self.config) else {
            return error;
        };
        let key = flag.replace('-', "_");
        let file = Self::from_file(path).ok();
        match !self.has(&key) && file.is_some_and(|file| file.has(&key)) {
            true => ConfigError::File {
                path: path.display().to_string(),
                reason: error.to_string(),
            },
            false => error,
        }
    }

    /// Whether a setting is given.
    fn has(&self, key: &str) -> bool {
        let settings = serde_json::to_value(self).unwrap_or_default();
        match settings.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Array(values)) => !values.is_empty(),
            Some(_) => true,
        }
    }

    /// These settings with those of the `--config` file and of the run to go on with.
    ///
    /// # Errors
    /// A file with unreadable or unknown settings, a `--resume` that is no run, and a flag that another setting makes ineffective.
    pub(crate) fn with_files(mut self) -> Result<Self, ConfigError> {
        if self.model.no_double_quant {
            self.model.double_quant = Some(false);
        }
        self.check_twice()?;
        let given = self.clone();
        let mut args = self;
        if let Some(path) = args.config.take() {
            let file = Self::from_file(&path).map_err(of_flag)?;
            file.check_twice().map_err(|error| ConfigError::File {
                path: path.display().to_string(),
                reason: error.to_string(),
            })?;
            args = args.over(file);
        }
        let args = args.resumed()?;
        given.check_effect(&args)?;
        Ok(args)
    }

    /// These settings over those of the run to go on with, where there is one.
    ///
    /// # Errors
    /// A `--resume` that is no run, and settings of that run that cannot be read.
    pub fn resumed(self) -> Result<Self, ConfigError> {
        let Some(resume) = &self.output.resume else {
            return Ok(self);
        };
        find_checkpoint(resume)?;
        let path = run_of(resume).join(SETTINGS);
        if !path.is_file() {
            return Ok(self);
        }
        let mut run = Self::from_file(&path)?;
        // The run that started from it has gone on since.
        run.lora.adapter = None;
        Ok(self.over(run))
    }

    /// Checks settings that came from elsewhere than a command line, such as a request. With `has_records` the data are records in
    /// memory.
    ///
    /// # Errors
    /// The first setting that is out of range, missing, without effect, or excluded by another one.
    pub fn to_config(&self, has_records: bool) -> Result<Config, ConfigError> {
        self.check_effect(self)?;
        Config::from_settings(self, has_records)
    }
}

/// An error of a file with the flag that names the file.
fn of_flag(error: ConfigError) -> ConfigError {
    match error {
        ConfigError::File { path, reason } => ConfigError::File {
            path: format!("--config {path}"),
            reason,
        },
        error => error,
    }
}
