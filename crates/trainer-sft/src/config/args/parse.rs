//! Command line and file → [`Args`] → [`Config`].

use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory, Parser};

use super::Args;
use super::hints::{nearest, with_hyphens, with_nearest_flag};
use crate::config::{Config, ConfigError};

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
        if let Some(path) = args.config.take() {
            args = args.over(Self::from_file(&path)?);
        }
        Ok(Config::from_args(args)?)
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
