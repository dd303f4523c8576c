//! `server bench`: how fast a running server or an engine is, with the flags and numbers of `vllm bench`.
//!
//! `bench serve` sends requests to any server with OpenAI's API. `bench throughput` and `bench latency` start an engine of their
//! own and measure it without HTTP.

mod arrivals;
pub mod client;
mod dataset;
pub mod dataset_args;
mod drafts;
pub mod goodput;
mod latency;
mod measured;
mod metrics;
mod offline;
mod ready;
mod records;
mod report;
pub mod request;
mod serve;
pub mod serve_args;
mod serve_check;
mod serve_values;
mod table;
mod texts;
mod throughput;

use std::ffi::OsString;

use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _};

use crate::config::{ConfigError, QWEN_BURN, is_of_qwen_burn, parse, refuse};

pub use latency::{BenchLatency, LatencyArgs};
pub use measured::Measured;
pub use serve_args::ServeArgs;
pub use throughput::{BenchThroughput, ThroughputArgs};

/// What to measure.
#[derive(Clone, Debug)]
pub enum Bench {
    /// A running server.
    Serve(Box<ServeArgs>),
    /// How many requests an engine answers in a second.
    Throughput(Box<BenchThroughput>),
    /// How long an engine takes for a batch.
    Latency(Box<BenchLatency>),
}

const USAGE: &str = "\
Measures speed, with the flags and numbers of `vllm bench`.

Usage: server bench <serve|throughput|latency> [OPTIONS]

Commands:
  serve       Sends requests to a running server with OpenAI's API
  throughput  Starts an engine, and gives it all requests at once
  latency     Starts an engine, and gives it one batch again and again

`server bench COMMAND -h` shows the flags of a command.
";

impl Bench {
    /// Reads the command line behind `bench`, with the program's name first.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_command_line(mut command_line: Vec<OsString>) -> Result<Self, ConfigError> {
        let usage = match is_of_qwen_burn(&command_line) {
            true => USAGE.replace("server bench", &format!("{QWEN_BURN} bench")),
            false => USAGE.to_owned(),
        };
        let word = match command_line.len() {
            0 | 1 => OsString::new(),
            _ => command_line.remove(1),
        };
        match word.to_string_lossy().as_ref() {
            "serve" => {
                refuse(&command_line, &serve_values::REFUSED)?;
                let command = ServeArgs::command().bin_name("server bench serve");
                let args = ServeArgs::from_arg_matches(&parse(&command, &command_line)?)?;
                args.check()?;
                Ok(Self::Serve(Box::new(args)))
            }
            "throughput" => {
                let bench = BenchThroughput::from_command_line(command_line)?;
                Ok(Self::Throughput(Box::new(bench)))
            }
            "latency" => {
                let bench = BenchLatency::from_command_line(command_line)?;
                Ok(Self::Latency(Box::new(bench)))
            }
            "-h" | "--help" | "help" => {
                let command = clap::Command::new("bench").override_help(usage.clone());
                // Help is an error to clap.
                let help = command.try_get_matches_from(["bench", "--help"]).err();
                let raw = || clap::Error::raw(clap::error::ErrorKind::DisplayHelp, usage);
                Err(help.unwrap_or_else(raw).into())
            }
            "-V" | "--version" => {
                let name = match is_of_qwen_burn(&command_line) {
                    true => QWEN_BURN,
                    false => "server",
                };
                let command = clap::Command::new(name).version(env!("CARGO_PKG_VERSION"));
                // The version is an error to clap, too.
                let version = command.try_get_matches_from([name, "--version"]).err();
                let raw = || clap::Error::raw(clap::error::ErrorKind::DisplayVersion, "");
                Err(version.unwrap_or_else(raw).into())
            }
            "" => Err(ConfigError::Flag {
                flag: "bench",
                message: format!("expected serve, throughput or latency, found nothing\n\n{usage}"),
            }),
            found => Err(ConfigError::Flag {
                flag: "bench",
                message: format!(
                    "expected serve, throughput or latency, found `{found}`\n\n{usage}"
                ),
            }),
        }
    }

    /// Measures.
    ///
    /// # Errors
    /// If nothing can be measured: no server, no data, no model.
    pub async fn run(&self) -> Result<Measured> {
        match self {
            Self::Serve(args) => serve::run(args).await,
            Self::Throughput(bench) => throughput::run(bench).await,
            Self::Latency(bench) => latency::run(bench).await,
        }
    }
}
