//! Why there is no configuration.

use std::path::PathBuf;

/// What is wrong with a command line or a file of settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line is wrong, or `--help` or `--version` was asked for.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A flag's value is out of range or contradicts another one.
    #[error("{flag}: {message}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What was expected and found.
        message: String,
    },
    /// The TOML file cannot be used.
    #[error("--config {}: {message}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, key, what was expected.
        message: String,
    },
}
