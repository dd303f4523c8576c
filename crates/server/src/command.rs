//! Which command a command line asks for: its first word, or `serve`.

use std::ffi::OsString;

use crate::batch::RunBatch;
use crate::bench::Bench;
use crate::config::{Config, ConfigError, dashes};

/// What the program is to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve a model over HTTP.
    Serve(Box<Config>),
    /// Answer a file of requests.
    RunBatch(Box<RunBatch>),
    /// Measure.
    Bench(Bench),
}

/// Commands besides `serve`, which needs no name.
const COMMANDS: [&str; 2] = ["run-batch", "bench"];

impl Command {
    /// Reads a command line, with the program's name first.
    ///
    /// # Errors
    /// [`ConfigError`]; `Usage` also carries `--help` and `--version`.
    pub fn from_command_line<I>(command_line: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let mut command_line = dashes(command_line);
        match command_line.get(1).and_then(|word| word.to_str()) {
            Some("run-batch") => {
                command_line.remove(1);
                let batch = RunBatch::from_command_line(command_line)?;
                Ok(Self::RunBatch(Box::new(batch)))
            }
            Some("bench") => {
                command_line.remove(1);
                Ok(Self::Bench(Bench::from_command_line(command_line)?))
            }
            _ => {
                let config = Config::from_dashes(command_line)?;
                misplaced(&config)?;
                Ok(Self::Serve(Box::new(config)))
            }
        }
    }
}

/// Refuses a model with the name of a command, which stands at another place than the first.
fn misplaced(config: &Config) -> Result<(), ConfigError> {
    let model = config.model.as_deref();
    match COMMANDS.iter().find(|command| model == Some(command)) {
        None => Ok(()),
        Some(command) => Err(ConfigError::Flag {
            flag: "MODEL",
            message: format!(
                "`{command}` is a command: write it first, or ./{command} for a folder of this name"
            ),
        }),
    }
}
