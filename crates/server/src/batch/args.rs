//! Flags of `run-batch`, and the files that it names.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use super::{BatchOptions, Source};
use crate::config::{Config, ConfigError, Flags, refuse};

/// Answers a file of requests in OpenAI's batch format: one object per line with `custom_id`, `method`, `url` and `body`. The
/// model's flags are those of the server (`--help` shows all)
#[derive(Clone, Debug, Parser)]
#[command(name = "run-batch", max_term_width = 110)]
pub struct BatchArgs {
    /// File of requests, or - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub input_file: String,

    /// File of answers in the order of the requests, or - for standard output; it must not exist, or be empty
    #[arg(short, long, value_name = "FILE")]
    pub output_file: String,

    /// Replace a file of answers that exists
    #[arg(long)]
    pub overwrite: bool,
}

/// What `run-batch` is to do.
#[derive(Clone, Debug)]
pub struct RunBatch {
    /// The engine.
    pub config: Config,
    /// The files.
    pub args: BatchArgs,
}

/// Open files of a batch.
pub struct BatchFiles {
    /// Requests.
    pub source: Source,
    /// Length of the requests, if they are in a file.
    pub num_bytes: Option<u64>,
    /// Answers.
    pub output: Box<dyn Write + Send>,
}

/// Flags of `vllm run-batch` that this program does not have.
const REFUSED: [(&str, &str); 3] = [
    (
        "--output-tmp-dir",
        "answers go straight to --output-file, which is no URL",
    ),
    (
        "--enable-metrics",
        "a batch listens nowhere; its progress is in the log",
    ),
    (
        "--url",
        "a batch listens nowhere; its progress is in the log",
    ),
];

impl RunBatch {
    /// Reads the command line behind `run-batch`, with the program's name first.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_command_line(command_line: Vec<OsString>) -> Result<Self, ConfigError> {
        refuse(&command_line, &REFUSED)?;
        let flags = Flags::read_offline("run-batch", BatchArgs::command(), command_line)?;
        let args = BatchArgs::from_arg_matches(&flags.matches)?;
        no_url(
            "--input-file",
            &args.input_file,
            "download it first, or pipe it in with `-i -`",
        )?;
        no_url(
            "--output-file",
            &args.output_file,
            "write a file, and upload it afterwards",
        )?;
        let config = flags.config;
        Ok(Self { config, args })
    }

    /// Opens both files, so that a wrong name is known before the model is loaded.
    ///
    /// # Errors
    /// If one cannot be used.
    pub fn open(&self) -> Result<BatchFiles> {
        let (input, output) = (&self.args.input_file, &self.args.output_file);
        let (source, num_bytes): (Source, _) = match input.as_str() {
            "-" => (Box::new(BufReader::new(io::stdin())), None),
            path => {
                let file = File::open(path)
                    .with_context(|| format!("--input-file: cannot read {path}"))?;
                let metadata = file.metadata().with_context(|| path.to_owned())?;
                ensure!(!metadata.is_dir(), "--input-file: {path} is a folder");
                let num_bytes = metadata.is_file().then_some(metadata.len());
                (Box::new(BufReader::new(file)), num_bytes)
            }
        };
        let output: Box<dyn Write + Send> = match output.as_str() {
            "-" => Box::new(io::stdout()),
            path => Box::new(self.create(Path::new(path))?),
        };
        Ok(BatchFiles {
            source,
            num_bytes,
            output,
        })
    }

    /// A file for answers. It is emptied only if it may be.
    fn create(&self, path: &Path) -> Result<File> {
        let shown = path.display();
        let real = |path: &Path| -> Option<PathBuf> { path.canonicalize().ok() };
        let input = Path::new(&self.args.input_file);
        ensure!(
            real(path).is_none() || real(path) != real(input),
            "--output-file: {shown} is the file of requests"
        );
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("--output-file: cannot write {shown}"))?;
        let metadata = file.metadata().with_context(|| shown.to_string())?;
        if metadata.is_file() && metadata.len() > 0 {
            ensure!(
                self.args.overwrite,
                "--output-file: {shown} exists already; name another file, or give --overwrite"
            );
            file.set_len(0)
                .with_context(|| format!("--output-file: cannot empty {shown}"))?;
        }
        Ok(file)
    }

    /// How the batch is run: twice as many requests at once as the engine takes into a step, so that it never waits for one.
    pub fn options(&self) -> BatchOptions {
        BatchOptions {
            max_concurrency: self.config.max_num_seqs.saturating_mul(2),
            shutdown_timeout: self.config.shutdown_timeout,
        }
    }
}

fn no_url(flag: &'static str, value: &str, instead: &str) -> Result<(), ConfigError> {
    match value.starts_with("http://") || value.starts_with("https://") {
        false => Ok(()),
        true => Err(ConfigError::Flag {
            flag,
            message: format!("expected a path or -, found the URL {value}: {instead}"),
        }),
    }
}
