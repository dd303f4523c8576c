//! Flags of `run-batch`, and the files that it names.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use super::{BatchOptions, Source};
use crate::config::{Config, ConfigError, Flags, refuse};
use crate::output_file::OutputFile;

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
    /// Where answers go, once the batch begins. Until then the file keeps what it has.
    pub output: Output,
}

/// Begins to write.
pub type Output = Box<dyn FnOnce() -> io::Result<Box<dyn Write + Send>> + Send>;

/// A stream whose errors say what could not be done. An interruption stays one, after which the caller tries again.
struct Named<T> {
    stream: T,
    what: String,
}

impl<T> Named<T> {
    fn named<V>(&self, result: io::Result<V>) -> io::Result<V> {
        result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.what)))
    }
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(bytes);
        self.named(read)
    }
}

impl<W: Write> Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes);
        self.named(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.stream.flush();
        self.named(flushed)
    }
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
        let flags = Flags::read_offline("run-batch", BatchArgs::command(), command_line, &[])?;
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

    /// Opens both files, so that a wrong name is known before the model is loaded. Nothing is emptied yet.
    ///
    /// # Errors
    /// If one cannot be used.
    pub fn open(&self) -> Result<BatchFiles> {
        let input = self.args.input_file.as_str();
        let (source, num_bytes, requests): (Source, _, _) = match input {
            "-" => {
                let what = "--input-file: cannot read standard input".to_owned();
                let stream = io::stdin();
                let source = BufReader::new(Named { stream, what });
                (Box::new(source), None, Identity::of_stdin())
            }
            path => {
                let file = File::open(path)
                    .with_context(|| format!("--input-file: cannot read {path}"))?;
                let metadata = file.metadata().with_context(|| path.to_owned())?;
                ensure!(!metadata.is_dir(), "--input-file: {path} is a folder");
                let num_bytes = metadata.is_file().then_some(metadata.len());
                let requests = Identity::of(&file, Path::new(path));
                let (stream, what) = (file, format!("--input-file: cannot read {path}"));
                let source = BufReader::new(Named { stream, what });
                (Box::new(source), num_bytes, requests)
            }
        };
        Ok(BatchFiles {
            source,
            num_bytes,
            output: self.create(requests.as_ref())?,
        })
    }

    /// Opens the file of answers.
    fn create(&self, requests: Option<&Identity>) -> Result<Output> {
        let shown = self.args.output_file.as_str();
        let is_input =
            |answers: Option<Identity>| answers.is_some() && answers.as_ref() == requests;
        if shown == "-" {
            ensure!(
                !is_input(Identity::of_stdout()),
                "--output-file: standard output is the file of requests"
            );
            let what = "--output-file: cannot write standard output".to_owned();
            let stream = io::stdout();
            return Ok(Box::new(|| Ok(Box::new(Named { stream, what }))));
        }
        let mut output = OutputFile::open("--output-file", shown.into(), false)?;
        ensure!(
            !is_input(Identity::of(output.file(), Path::new(shown))),
            "--output-file: {shown} is the file of requests"
        );
        ensure!(
            self.args.overwrite || !output.has_content(),
            "--output-file: {shown} exists already; name another file, or give --overwrite"
        );
        Ok(Box::new(move || {
            output.begin()?;
            Ok(Box::new(output))
        }))
    }

    /// How the batch is run: twice as many requests at once as the engine takes into a step, so that it never waits for one.
    pub fn options(&self) -> BatchOptions {
        BatchOptions {
            max_concurrency: self.config.max_num_seqs.saturating_mul(2),
            shutdown_timeout: self.config.shutdown_timeout,
        }
    }
}

/// Which file an open file is, whatever its name: device and inode.
#[cfg(unix)]
#[derive(Debug, PartialEq)]
struct Identity(u64, u64);

#[cfg(unix)]
impl Identity {
    /// `None` for what is no regular file: a terminal may be both input and output.
    fn of(file: &File, _path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some(Self(metadata.dev(), metadata.ino()))
    }

    fn of_stdin() -> Option<Self> {
        Self::of_descriptor(&io::stdin())
    }

    fn of_stdout() -> Option<Self> {
        Self::of_descriptor(&io::stdout())
    }

    fn of_descriptor(stream: &impl std::os::fd::AsFd) -> Option<Self> {
        let descriptor = stream.as_fd().try_clone_to_owned().ok()?;
        Self::of(&File::from(descriptor), Path::new(""))
    }
}

/// Which file an open file is: its path without links.
#[cfg(not(unix))]
#[derive(Debug, PartialEq)]
struct Identity(std::path::PathBuf);

#[cfg(not(unix))]
impl Identity {
    fn of(_file: &File, path: &Path) -> Option<Self> {
        path.canonicalize().ok().map(Self)
    }

    fn of_stdin() -> Option<Self> {
        None
    }

    fn of_stdout() -> Option<Self> {
        None
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_hard_link_is_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, three) = (
            dir.path().join("1"),
            dir.path().join("2"),
            dir.path().join("3"),
        );
        std::fs::write(&one, "a").unwrap();
        std::fs::write(&three, "a").unwrap();
        std::fs::hard_link(&one, &two).unwrap();
        let identity = |path: &Path| Identity::of(&File::open(path).unwrap(), path);
        assert!(identity(&one).is_some());
        assert_eq!(identity(&one), identity(&two));
        assert_ne!(identity(&one), identity(&three));
        assert_eq!(identity(Path::new("/dev/null")), None);
    }
}
