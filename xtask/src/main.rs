//! `cargo xtask COMMAND`: what a developer and CI run besides cargo itself.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

mod arch;
mod bench;
mod ci;
mod docs;
mod golden;
mod installed;
mod package;
mod reach;
mod release;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci                    everything CI checks, in CI's order
  arch [--circles] [--cubes] [DIR]
                        what docs/src/architecture.md says of the code, of this checkout's or of another one; prints the
                        circles of rooms and files that are allowed, and the kernels with many arguments
  docs [--check]        writes the flag pages of docs/ from the programs' --help (or checks them)
  package               packages the crates and checks examples/outside, a program outside of the workspace, against them
  wheel | archive | image [--bin-dir DIR] [--out DIR] [--target TRIPLE] [--cuda]
                        packages the program qwen-burn that was built: as a wheel, as an archive, as a container image
  release-files [--dir DIR]
                        checksums, notes, Homebrew's formula and winget's manifests for the archives of a folder
  version               prints the version of the workspace
  installed [--bin-dir DIR]
                        installs the wheel of a build into a new environment, and tries it in an empty folder
  golden [NAME...]      rewrites data/golden with Python (torch, transformers, peft, bitsandbytes, trl)
  bench cpu --model DIR [--lora DIR] [--threads N] [--rounds N] [--llama-cpp FILE.gguf ...] [--hf PYTHON] [--peft PYTHON]
                        decode and prefill speed on the CPU, beside the peers that are named
  bench gpu --model DIR [--lora DIR] [--bin-dir DIR] [--device NAME] [--rounds N] [-- SERVER-FLAG...]
                        speed on a GPU beside the bars that the project set itself; with an adapter's folder, with eight
                        of it too; with finished programs, without building; with other flags of the server
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["ci"] => ci::run(),
        ["arch", flags @ ..] => arch::run(flags),
        ["docs"] => docs::run(false),
        ["docs", "--check"] => docs::run(true),
        ["package"] => package::run(),
        ["wheel", flags @ ..] => release::wheel(flags),
        ["archive", flags @ ..] => release::archive(flags),
        ["image", flags @ ..] => release::image(flags),
        ["version"] => release::version().map(|version| println!("{version}")),
        ["release-files", flags @ ..] => release::files(flags),
        ["installed", flags @ ..] => installed::run(flags),
        ["golden", names @ ..] => golden::run(names),
        ["bench", "cpu", flags @ ..] => bench::cpu(flags),
        ["bench", "gpu", flags @ ..] => bench::gpu::run(flags),
        _ => {
            print!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's top folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A command in the workspace's top folder.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    // What cargo tells this program of its package: dependencies that look at it would be built anew, as often as a developer
    // changes between cargo and `cargo xtask`.
    for (name, _) in std::env::vars_os() {
        let is_of_package = |prefix| name.to_string_lossy().starts_with(prefix);
        if ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .into_iter()
            .any(is_of_package)
        {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// Runs a command in the workspace's top folder and fails if it does.
fn run(program: &str, args: &[&str]) -> Result<()> {
    run_with(program, args, &[])
}

/// [`run`] with some environment variables.
fn run_with(program: &str, args: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let shown = variables
        .iter()
        .map(|(name, value)| format!("{name}={value} "));
    println!(
        "$ {}{program} {}",
        shown.collect::<String>(),
        args.join(" ")
    );
    let status = command(program)
        .args(args)
        .envs(variables.iter().copied())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("`{program} {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Where Cargo builds, as it says itself.
fn target_directory() -> Result<String> {
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    Ok(target
        .context("cargo metadata: no target_directory")?
        .to_owned())
}

/// The standard output of a command in the workspace's top folder. The command must succeed.
fn output(program: &str, args: &[&str]) -> Result<String> {
    output_in(&root(), program, args)
}

/// [`output`] in another folder.
fn output_in(dir: &Path, program: &str, args: &[&str]) -> Result<String> {
    let output = command(program)
        .current_dir(dir)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {error}", args.join(" "));
    }
    Ok(String::from_utf8(output.stdout)?)
}
