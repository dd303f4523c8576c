//! What CI checks, cheap things first.

use std::time::Instant;

use anyhow::Result;

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
    run_step("tests", || command("cargo", &["test", "--workspace"]))?;
    run_step("clients of the server", clients)?;
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
    if command("cargo", &["deny", "fetch", "db"]).is_err() {
        println!("left out: the database of advisories is out of reach");
        return Ok(());
    }
    command("cargo", &["deny", "--all-features", "check", "advisories"])
}

/// Published clients against the server that the tests have built, where a Python has them.
fn clients() -> Result<()> {
    with_server(
        "clients/bundled-requirements.txt",
        &["crates/server/tests/clients/bundled.py"],
    )
}

/// The server's page in a headless Chromium, where there is one.
fn page() -> Result<()> {
    with_server(
        "browser/requirements.txt",
        &["crates/server/tests/browser/page.py", "--or-leave-out"],
    )
}

/// A Python script that gets the server that the tests have built.
fn with_server(requirements: &str, script: &[&str]) -> Result<()> {
    let Ok(python) = std::env::var("CLIENTS_PYTHON") else {
        println!(
            "left out: CLIENTS_PYTHON names no Python with crates/server/tests/{requirements}"
        );
        return Ok(());
    };
    let target = crate::target_directory()?;
    let server = format!("{target}/debug/server{}", std::env::consts::EXE_SUFFIX);
    command(&python, &[script, &[&server]].concat())
}

/// The tests of the GPU kernels on Mesa's Vulkan device, which runs on the CPU.
fn gpu_tests() -> Result<()> {
    // CubeCL leaves these operations out on a CPU's device, although they work there.
    let variables = [
        ("ASSUME_PLANE_OPERATIONS", "1"),
        ("XDG_RUNTIME_DIR", "/tmp"),
    ];
    let packages = [
        "lora-4bit",
        "kv-paging",
        "model-qwen",
        "server",
        "trainer-sft",
    ];
    let mut arguments = vec!["test", "--features", "server/wgpu,trainer-sft/wgpu"];
    arguments.extend(packages.iter().flat_map(|package| ["-p", package]));
    arguments.extend([
        "--lib",
        "--test",
        "gpu",
        "--test",
        "attention",
        "--test",
        "gpu_engine",
        "--test",
        "gpu_grpo",
        "--test",
        "gpu_step",
    ]);
    command_with("cargo", &arguments, &variables)
}
