//! What CI checks, cheap things first.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::reach::{is_ci, must_reach};
use crate::{arch, docs, installed, package, run as command, run_with as command_with};

/// One check, with the time it took.
fn run_step(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    println!("\n== {name}");
    step()?;
    println!(
        "== {name}: passed in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Runs all of CI; the first failure ends it.
pub(crate) fn run() -> Result<()> {
    run_step("format", || command("cargo", &["fmt", "--all", "--check"]))?;
    run_step("typos", || command("typos", &["--config", "typos.toml"]))?;
    run_step("architecture", || arch::run(&[]))?;
    run_step("licences, bans, sources", || {
        command(
            "cargo",
            &[
                "deny",
                "--all-features",
                "check",
                "bans",
                "licenses",
                "sources",
            ],
        )
    })?;
    run_step("advisories", advisories)?;
    // The README's own command.
    run_step("tests", || command("cargo", &["test", "--workspace"]))?;
    run_step("changed inputs", changed_inputs)?;
    run_step("clients of the server", clients)?;
    run_step("a router in front of servers", router)?;
    run_step("the page in a browser", page)?;
    run_step("the program as it is installed", || installed::run(&[]))?;
    run_step("flag pages", || docs::run(true))?;
    run_step("clippy", || {
        let clippy = ["clippy", "--workspace", "--all-targets"];
        command("cargo", &[&clippy[..], &["--", "-D", "warnings"]].concat())
    })?;
    run_step("rustdoc", || {
        command("cargo", &["doc", "--workspace", "--no-deps"])
    })?;
    run_step("macOS", macos)?;
    run_step("libraries without the hub", || {
        let libraries = ["-p", "server", "-p", "trainer-sft", "--lib"];
        command(
            "cargo",
            &[&["check", "--no-default-features"], &libraries[..]].concat(),
        )
    })?;
    run_step("packages, and a program that uses them", package::run)?;
    run_step("compiler of CUDA kernels", || {
        // It is no member of the workspace, whose build without CUDA has no use for it.
        let manifest = ["--manifest-path", ".cargo/cubecl-llvm/Cargo.toml"];
        let folder = ["--target-dir", "target/cubecl-llvm"];
        command("cargo", &[&["test"], &manifest[..], &folder].concat())
    })?;
    run_step("GPU kernels on the CPU", gpu_tests)?;
    run_step("CUDA build", || {
        command(
            "cargo",
            &[
                "check",
                "-p",
                "server",
                "-p",
                "trainer-sft",
                "--features",
                "cuda",
            ],
        )
    })
}

/// Known faults of dependencies, where the database of RustSec can be reached.
fn advisories() -> Result<()> {
    if let Err(error) = command("cargo", &["deny", "fetch", "db"]) {
        ensure!(
            !must_reach("github.com"),
            "github.com can be reached, but {error:#}"
        );
        println!("left out: the database of advisories is out of reach");
        return Ok(());
    }
    command("cargo", &["deny", "--all-features", "check", "advisories"])
}

/// Seconds for each of the twenty targets of changed inputs.
const FUZZ_SECONDS: &str = "60";

/// What changes inputs at random, other ones each day unless FUZZ_SEED says which. Five targets run at a time, which takes five minutes.
fn changed_inputs() -> Result<()> {
    let days = SystemTime::UNIX_EPOCH.elapsed()?.as_secs() / (24 * 60 * 60);
    let of_today = days.to_string();
    let own =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (seconds, seed) = (
        own("FUZZ_SECONDS", FUZZ_SECONDS),
        own("FUZZ_SEED", &of_today),
    );
    let variables = |threads| {
        [
            ("FUZZ_SECONDS", &*seconds),
            ("FUZZ_SEED", &*seed),
            ("RUST_TEST_THREADS", threads),
        ]
    };
    // The whole workspace, so that the programs of the tests before are used again.
    let of = |targets: &[&'static str]| [&["test", "--workspace"], targets].concat();
    let files = Beside::start(
        "changed-files",
        "cargo",
        &of(&["--test", "hostile"]),
        &variables("3"),
    )?;
    let bodies = command_with("cargo", &of(&["--test", "fuzz"]), &variables("2"));
    let rest = of(&["--lib", "--test", "data", "hostile"]);
    let bodies = bodies.and_then(|()| command_with("cargo", &rest, &variables("2")));
    let files = files.end();
    bodies.and(files)
}

/// Published clients against the server that the tests have built, where a Python has them.
fn clients() -> Result<()> {
    with_server(
        "clients/bundled-requirements.txt",
        &["crates/server/tests/clients/bundled.py"],
    )
}

/// vLLM's router in front of servers that the tests have built, where a Python has it.
fn router() -> Result<()> {
    with_server(
        "clients/bundled-requirements.txt",
        &["crates/server/tests/clients/router.py"],
    )
}

/// The server's page in a headless Chromium, where there is one.
fn page() -> Result<()> {
    let excuse = excuse("BROWSER_OUT_OF_REACH");
    let mut script = vec!["crates/server/tests/browser/page.py"];
    if let Some(reason) = &excuse {
        script.extend(["--or-leave-out", reason]);
    }
    with_server("browser/requirements.txt", &script)
}

/// Why a tool that is missing may be left out. `.ci/run` sets the variable where it cannot reach what it would install.
fn excuse(variable: &str) -> Option<String> {
    excuse_of(std::env::var(variable).ok(), is_ci())
}

/// In CI a tool is only left out for a reason.
fn excuse_of(reason: Option<String>, is_ci: bool) -> Option<String> {
    reason.or_else(|| (!is_ci).then(|| "this is not CI".to_owned()))
}

/// A Python script that gets the server that the tests have built.
fn with_server(requirements: &str, script: &[&str]) -> Result<()> {
    let Ok(python) = std::env::var("CLIENTS_PYTHON") else {
        let missing =
            format!("CLIENTS_PYTHON names no Python with crates/server/tests/{requirements}");
        let Some(reason) = excuse("CLIENTS_OUT_OF_REACH") else {
            bail!("{missing}");
        };
        println!("left out: {missing} ({reason})");
        return Ok(());
    };
    let target = crate::target_directory()?;
    let server = format!("{target}/debug/server{}", std::env::consts::EXE_SUFFIX);
    command(&python, &[script, &[&server]].concat())
}

/// Whether the program compiles for macOS, where the standard library of that target is there or can be had.
fn macos() -> Result<()> {
    const TARGET: &str = "aarch64-apple-darwin";
    // Elsewhere the variables below would reach programs of the build, too.
    if !cfg!(target_os = "linux") {
        println!("left out: the check for {TARGET} needs Linux");
        return Ok(());
    }
    // A toolchain need not be rustup's.
    if let Err(error) = command("rustup", &["target", "add", TARGET]) {
        println!("left out: no standard library for {TARGET}: {error:#}");
        return Ok(());
    }
    let check = [
        "check",
        "-p",
        "server",
        "--bin",
        "qwen-burn",
        "--target",
        TARGET,
    ];
    // Nothing is linked, so that C sources of dependencies need no compiler for macOS.
    let variables = [
        ("CC_aarch64_apple_darwin", "true"),
        ("AR_aarch64_apple_darwin", "true"),
    ];
    command_with("cargo", &check, &variables)
}

/// The tests of the GPU kernels on Mesa's Vulkan device, which runs on the CPU.
fn gpu_tests() -> Result<()> {
    // CubeCL leaves these operations out on a CPU's device, although they work there.
    let variables = [
        ("ASSUME_PLANE_OPERATIONS", "1"),
        ("XDG_RUNTIME_DIR", "/tmp"),
        // The fuzz target of `server` has already run for a minute.
        ("FUZZ_SECONDS", "2"),
    ];
    let packages = [
        "lora-4bit",
        "kv-paging",
        "model-qwen",
        "server",
        "trainer-sft",
    ];
    let mut test = vec!["test", "--features", "server/wgpu,trainer-sft/wgpu"];
    test.extend(packages.iter().flat_map(|package| ["-p", package]));
    let of = |targets: &[&[&'static str]]| [&test[..], &targets.concat()].concat();
    let targets = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().flat_map(|name| ["--test", name]).collect()
    };
    let engine = targets(&["gpu_dry_run", "gpu_engine", "gpu_job", "gpu_step"]);
    let kernels = [&["--lib"], &targets(&["gpu", "attention", "gpu_grpo"])[..]].concat();
    command_with(
        "cargo",
        &of(&[&engine, &kernels, &["--no-run"]]),
        &variables,
    )?;
    // A program keeps one core busy while it compiles a kernel: two of them share two cores well.
    let kernels = Beside::start("gpu-kernels", "cargo", &of(&[&kernels]), &variables)?;
    let engine = command_with("cargo", &of(&[&engine]), &variables);
    let kernels = kernels.end();
    engine.and(kernels)
}

/// A command that runs beside others. What it prints comes when it has ended.
struct Beside {
    name: &'static str,
    process: Child,
    printed: PathBuf,
}

impl Beside {
    fn start(
        name: &'static str,
        program: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let printed = PathBuf::from(crate::target_directory()?).join(format!("ci-{name}.txt"));
        println!("== {name}: begun, see {}", printed.display());
        let file = File::create(&printed).with_context(|| printed.display().to_string())?;
        let process = crate::command(program)
            .args(arguments)
            .envs(variables.iter().copied())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self {
            name,
            process,
            printed,
        })
    }

    /// Waits for its end, and prints what it has printed.
    fn end(mut self) -> Result<()> {
        let status = self.process.wait()?;
        let printed = fs::read_to_string(&self.printed);
        let printed = printed.with_context(|| self.printed.display().to_string())?;
        println!("\n== {}: what it printed\n{printed}", self.name);
        ensure!(status.success(), "{}: {status}", self.name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_ci_nothing_is_left_out_without_a_reason() {
        assert_eq!(excuse_of(None, true), None);
        let reason = || Some("out of reach".to_owned());
        assert_eq!(excuse_of(reason(), true), reason());
        assert!(excuse_of(None, false).is_some());
    }
}
