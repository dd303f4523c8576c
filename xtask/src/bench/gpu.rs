//! `bench gpu`: what the project set itself for a GPU, each measured value beside its bar.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf, absolute};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::table::{Table, Unit, median};
use crate::{root, run as command};

const USAGE: &str = "bench gpu --model DIR [--lora DIR] [--bin-dir DIR] [--device NAME] [--rounds N] \
                     [-- SERVER-FLAG...]";

/// Measured repetitions of each row in a round, after one that warms up.
const RUNS: usize = 3;
/// Flags of the server in all rows, unless others are given after `--`.
const SERVER_FLAGS: [(&str, &str); 2] = [
    ("--max-model-len", "16384"),
    ("--kv-cache-memory-bytes", "16GiB"),
];
/// Names under which the adapter is loaded.
const ADAPTERS: [&str; 8] = ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"];
/// Lines of a failed program's stderr that are shown.
const SHOWN_LINES: usize = 15;

/// What to measure.
struct Options<'a> {
    model: PathBuf,
    /// Folder of a LoRA adapter of the model.
    lora: Option<PathBuf>,
    /// Where the finished programs are; without it they are built.
    bin_dir: Option<PathBuf>,
    device: &'a str,
    rounds: usize,
    server_flags: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(flags: &[&'a str]) -> Result<Self> {
        let (mut model, mut lora, mut bin_dir) = (None, None, None);
        let (mut device, mut rounds) = ("cuda", 1);
        let end = flags.iter().position(|flag| *flag == "--");
        let (flags, rest) = flags.split_at(end.unwrap_or(flags.len()));
        for pair in flags.chunks(2) {
            let [flag, value] = *pair else {
                bail!("bench gpu: `{}` needs a value\nusage: {USAGE}", pair[0])
            };
            match flag {
                "--model" => model = Some(absolute(value)?),
                "--lora" => lora = Some(absolute(value)?),
                "--bin-dir" => bin_dir = Some(absolute(value)?),
                "--device" => device = value,
                "--rounds" => {
                    let context = || format!("--rounds: expected 1 or more, found `{value}`");
                    rounds = value.parse::<NonZeroUsize>().with_context(context)?.get();
                }
                other => bail!("bench gpu: unknown flag `{other}`\nusage: {USAGE}"),
            }
        }
        let model: PathBuf =
            model.with_context(|| format!("--model is missing\nusage: {USAGE}"))?;
        has_file("--model", &model, "config.json")?;
        if let Some(lora) = &lora {
            has_file("--lora", lora, "adapter_config.json")?;
        }
        Ok(Self {
            model,
            lora,
            bin_dir,
            device,
            rounds,
            server_flags: server_flags(rest.get(1..).unwrap_or_default()),
        })
    }
}

/// Fails if the folder of a flag doesn't have a file.
fn has_file(flag: &str, dir: &Path, file: &str) -> Result<()> {
    ensure!(
        dir.join(file).is_file(),
        "{flag}: {} has no {file}",
        dir.display()
    );
    Ok(())
}

/// [`SERVER_FLAGS`] but for those that are given, and what is given.
fn server_flags<'a>(given: &[&'a str]) -> Vec<&'a str> {
    // Flags may be written with underscores, and with `=`.
    let name = |flag: &str| flag.split('=').next().map(|name| name.replace('_', "-"));
    let is_given = |flag: &str| given.iter().any(|g| name(g).as_deref() == Some(flag));
    let defaults = SERVER_FLAGS.into_iter().filter(|(flag, _)| !is_given(flag));
    defaults
        .flat_map(|(flag, value)| [flag, value])
        .chain(given.iter().copied())
        .collect()
}

/// Measures all rows and prints the table; programs that fail only leave out their rows.
pub(crate) fn run(flags: &[&str]) -> Result<()> {
    let options = Options::parse(flags)?;
    // Asked first, because the sources may change while all this runs.
    let gpu = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    let gpu = fact("nvidia-smi", &gpu);
    let commit = fact("git", &["describe", "--always", "--dirty", "--abbrev=40"]);
    let facts = format!("GPU and driver: {gpu}\ncommit: {commit}");
    if options.bin_dir.is_none() {
        build(options.device)?;
    }
    let bench = Bench::new(options)?;
    let mut table = Table::default();
    for round in 1..=bench.options.rounds {
        println!("\n== round {round} of {}", bench.options.rounds);
        bench.round(round, &mut table)?;
    }
    println!("\n{facts}");
    println!("model: {}", bench.options.model.display());
    let shown = bench.options.server_flags.join(" ");
    println!("device: {}, server flags: {shown}\n", bench.options.device);
    print!("{table}");
    match table.num_failed() {
        0 => Ok(()),
        num => bail!("{num} values could not be measured; see above"),
    }
}

/// Builds the programs with the feature that the device needs.
fn build(device: &str) -> Result<()> {
    let mut arguments = vec!["build", "--release", "-p", "examples", "-p", "server"];
    arguments.extend([
        "--bin",
        "bench_engine",
        "--bin",
        "bench_serve",
        "--bin",
        "server",
    ]);
    let backend = device.split(':').next().unwrap_or(device);
    let features = format!("examples/{backend},server/{backend}");
    if !["auto", "cpu"].contains(&backend) {
        arguments.extend(["--features", &features]);
    }
    command("cargo", &arguments)
}

/// What a program says about the machine or the sources, which may not be there.
fn fact(program: &str, arguments: &[&str]) -> String {
    // In the current folder: a copied xtask may run where the workspace's folder does not exist.
    let output = Command::new(program).args(arguments).output();
    let output = output.ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text
        .as_deref()
        .map(str::trim)
        .filter(|text| !text.is_empty());
    text.map_or_else(
        || format!("unknown (`{program}` failed)"),
        |text| text.lines().collect::<Vec<_>>().join("; "),
    )
}

/// A folder that is removed when this is dropped.
struct TemporaryFolder(PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What can't be removed stays in the system's folder for such files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The programs and where they run.
struct Bench<'a> {
    options: Options<'a>,
    bin_dir: PathBuf,
    folder: TemporaryFolder,
}

impl<'a> Bench<'a> {
    fn new(options: Options<'a>) -> Result<Self> {
        let name = format!("xtask-bench-gpu-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let bench = Self {
            bin_dir: match &options.bin_dir {
                Some(dir) => dir.clone(),
                None => root()
                    .join(super::program("server")?)
                    .parent()
                    .context("no folder of programs")?
                    .to_owned(),
            },
            options,
            folder: TemporaryFolder(folder),
        };
        for name in ["bench_engine", "bench_serve", "server"] {
            let program = bench.program(name);
            ensure!(program.is_file(), "there is no {}", program.display());
        }
        Ok(bench)
    }

    fn program(&self, name: &str) -> PathBuf {
        let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        self.bin_dir.join(file)
    }

    /// Measures every row once. What is compared runs one after the other, because a shared machine changes its speed
    /// within minutes.
    fn round(&self, round: usize, table: &mut Table) -> Result<()> {
        use Unit::{Milliseconds, Ratio, Seconds, TokensPerSecond};

        // A folder of its own, so that the first process of a round finds no kernel that was compiled before.
        let caches = self.folder.0.join(format!("round-{round}"));
        fs::create_dir_all(&caches).with_context(|| caches.display().to_string())?;
        let runner = Runner {
            bench: self,
            caches,
        };
        let first = ("start to first token, first process", 20.0, Seconds);
        table.record(first, runner.start());
        let second = ("start to first token, second process", 4.0, Seconds);
        table.record(second, runner.start());

        let short = ["--prompt", "128", "--generate", "256"];
        let one = ("1 sequence, 128 in, 256 out", 700.0, TokensPerSecond);
        let one = table.record(one, runner.rate("1", &short, &[]));
        let http = ("1 sequence, over HTTP ÷ in process", 0.95, Ratio);
        let in_process = one.context("in process was not measured");
        table.record(
            http,
            in_process.and_then(|one| Ok(runner.http(&short)? / one)),
        );
        let nf4 = ("1 sequence, 128 in, 256 out, NF4", 900.0, TokensPerSecond);
        let quantization = ["--quantization", "nf4"];
        table.record(nf4, runner.rate("1", &short, &quantization));

        let several = ("32 sequences, 128 in, 256 out", 14_000.0, TokensPerSecond);
        let several = table.record(several, runner.rate("32", &short, &[]));
        if let Some(lora) = &self.options.lora {
            let row = ("32 sequences, 8 adapters ÷ none", 0.85, Ratio);
            let without = several.context("without adapters was not measured");
            let result = without.and_then(|rate| Ok(runner.adapters(lora, &short)? / rate));
            table.record(row, result);
        }

        let many = ("256 sequences, 256 in, 256 out", 30_000.0, TokensPerSecond);
        let long = ["--prompt", "256", "--generate", "256"];
        table.record(many, runner.rate("256", &long, &[]));
        let random = "256 sequences, 100 to 1,024 at random in and out";
        let random = (random, 22_000.0, TokensPerSecond);
        table.record(random, runner.rate("256", &["--random-lengths"], &[]));
        let first_token = ("first token of a prompt of 8,000", 120.0, Milliseconds);
        table.record(first_token, runner.first_token());
        Ok(())
    }
}

/// Runs the programs of one round.
struct Runner<'a> {
    bench: &'a Bench<'a>,
    /// Current folder of the programs, and where they and the driver keep compiled kernels.
    caches: PathBuf,
}

impl Runner<'_> {
    /// Seconds from the start of a process to its first token.
    fn start(&self) -> Result<f64> {
        let least = ["--prompt", "16", "--generate", "1", "--runs", "1"];
        let seconds = self.engine(&least, &[], "first token after ")?;
        Ok(seconds[0])
    }

    /// Output tokens per second of sequences that run together.
    fn rate(&self, num: &str, work: &[&str], flags: &[&str]) -> Result<f64> {
        let runs = RUNS.to_string();
        let arguments = [&["--sequences", num, "--runs", &runs], work].concat();
        let prefix = format!("{num} sequences: median ");
        Ok(self.engine(&arguments, flags, &prefix)?[0])
    }

    /// Output tokens per second of 32 sequences over which the adapters are spread.
    fn adapters(&self, lora: &Path, work: &[&str]) -> Result<f64> {
        let modules = ADAPTERS.map(|name| format!("{name}={}", lora.display()));
        let num = ADAPTERS.len().to_string();
        let mut flags = vec!["--enable-lora", "--max-loras", &num, "--lora-modules"];
        flags.extend(modules.iter().map(String::as_str));
        let adapters = ADAPTERS.iter().flat_map(|name| ["--adapter", *name]);
        let work: Vec<&str> = work.iter().copied().chain(adapters).collect();
        self.rate("32", &work, &flags)
    }

    /// Milliseconds until the first token of a prompt of 8,000.
    fn first_token(&self) -> Result<f64> {
        let runs = RUNS.to_string();
        let least = ["--prompt", "16", "--generate", "1", "--runs", &runs];
        let arguments = [&least[..], &["--first-token-of", "8000"]].concat();
        let all = self.engine(&arguments, &[], "first token of 8000: ")?;
        // The first one warms up.
        median(all.into_iter().skip(1)).context("bench_engine measured no first token")
    }

    /// Runs `bench_engine`; the numbers after `prefix` in what it prints, at least one.
    fn engine(&self, arguments: &[&str], flags: &[&str], prefix: &str) -> Result<Vec<f64>> {
        let options = &self.bench.options;
        let mut command = self.command("bench_engine", arguments);
        command.args(["--", "--device", options.device, "--model"]);
        command.arg(&options.model);
        command.args(&options.server_flags).args(flags);
        numbers(&mut command, prefix)
    }

    /// Output tokens per second of one sequence that is streamed over HTTP.
    fn http(&self, work: &[&str]) -> Result<f64> {
        let options = &self.bench.options;
        let mut command = self.command("bench_serve", work);
        command.args(["--whole", &RUNS.to_string(), "--device", options.device]);
        command.arg("--server").arg(self.bench.program("server"));
        command.arg("--model").arg(&options.model);
        command.arg("--").args(&options.server_flags);
        Ok(numbers(&mut command, "whole requests: median ")?[0])
    }

    /// A program in this round's folder.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bench.program(program));
        command.args(arguments).current_dir(&self.caches);
        // The last lines of a failed program are then its message.
        command.env("RUST_BACKTRACE", "0");
        // Compiled kernels and Burn's cache are below the first, the CUDA driver's cache is in the third.
        command.env_remove("CUDA_KERNEL_CACHE");
        for name in ["XDG_CACHE_HOME", "HOME", "CUDA_CACHE_PATH"] {
            command.env(name, &self.caches);
        }
        command
    }
}

/// Runs a program; the numbers after `prefix` in what it prints, at least one.
fn numbers(command: &mut Command, prefix: &str) -> Result<Vec<f64>> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(std::ffi::OsStr::to_string_lossy).collect();
    println!("$ {}", words.join(" "));
    let program = words[0].clone().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}\n{}", output.status, last_lines(&stderr));
    }
    let stdout = String::from_utf8(output.stdout)?;
    let mut numbers = Vec::new();
    for line in stdout.lines() {
        let Some(rest) = line.strip_prefix(prefix) else {
            continue;
        };
        println!("  {line}");
        let number = rest.split(' ').next().and_then(|word| word.parse().ok());
        numbers.push(number.with_context(|| format!("no number in `{line}`"))?);
    }
    ensure!(
        !numbers.is_empty(),
        "{program} printed no line with `{prefix}`"
    );
    Ok(numbers)
}

/// The last lines of a program's stderr.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_flags_replace_those_of_all_rows() {
        assert_eq!(
            server_flags(&[]),
            [
                "--max-model-len",
                "16384",
                "--kv-cache-memory-bytes",
                "16GiB"
            ]
        );
        assert_eq!(
            server_flags(&["--max_model_len=8k", "--seed", "1"]),
            [
                "--kv-cache-memory-bytes",
                "16GiB",
                "--max_model_len=8k",
                "--seed",
                "1"
            ]
        );
    }
}
