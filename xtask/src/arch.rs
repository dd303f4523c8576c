//! The architecture check: what docs/architecture.md says must be true of the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{output, root};

/// Which siblings a crate may import.
const MAY_IMPORT: [(&str, &[&str]); 5] = [
    ("lora-4bit", &[]),
    ("kv-paging", &[]),
    ("model-qwen", &["lora-4bit", "kv-paging"]),
    ("trainer-sft", &["model-qwen", "lora-4bit", "kv-paging"]),
    ("server", &["model-qwen", "lora-4bit", "kv-paging"]),
];
/// A source file longer than this, tests apart, holds two things.
const MAX_LINES: usize = 500;
/// Files of kv-paging that must hold no tensor and see no device.
const TENSOR_FREE: [&str; 7] = [
    "scheduler",
    "scheduler.rs",
    "block_pool.rs",
    "block_table.rs",
    "prefix.rs",
    "batch_layout.rs",
    "step_layout.rs",
];

/// Checks everything and reports all that is wrong.
pub(crate) fn run() -> Result<()> {
    let mut wrong = Vec::new();
    imports(&mut wrong)?;
    cuda_stand_in(&mut wrong)?;
    one_build(&mut wrong)?;
    for dir in ["crates", "examples", "xtask"] {
        sources(&root().join(dir), &mut wrong)?;
    }
    if !wrong.is_empty() {
        bail!(
            "{} violations of the architecture:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
    println!(
        "dependency direction, file sizes, unsafe code, GPU instructions, tensor-free scheduler, CUDA stand-in, \
         one build for all programs: as described"
    );
    Ok(())
}

/// Dependencies between the workspace's crates, as cargo sees them; dev-dependencies included.
fn imports(wrong: &mut Vec<String>) -> Result<()> {
    let text = output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&text)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata: no packages")?;
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for (name, allowed) in MAY_IMPORT {
        let package = packages.iter().find(|p| p["name"] == name);
        let package = package.with_context(|| format!("crate {name} is gone"))?;
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter_map(|d| d["name"].as_str()) {
            if names.contains(dependency) && !allowed.contains(&dependency) {
                wrong.push(format!(
                    "{name} imports {dependency}; it may import {allowed:?}"
                ));
            }
        }
    }
    Ok(())
}

/// The stand-in replaces one exact version: when Burn moves to another, it must be looked at again.
fn cuda_stand_in(wrong: &mut Vec<String>) -> Result<()> {
    let lock = fs::read_to_string(root().join("Cargo.lock"))?;
    let version = |package: &str| {
        let start = lock.find(&format!("name = \"{package}\"\nversion = \""))?;
        lock[start..]
            .lines()
            .nth(1)?
            .split('"')
            .nth(1)
            .map(str::to_owned)
    };
    let (stand_in, cuda) = (version("cubecl-llvm"), version("cubecl-cuda"));
    if stand_in.is_none() || stand_in != cuda {
        wrong.push(format!(
            ".cargo/cubecl-llvm stands in for version {stand_in:?}, cubecl-cuda is {cuda:?}: compare \
             what cubecl-cuda names of cubecl-llvm, then give the stand-in that version"
        ));
    }
    let burn = version("burn");
    if burn.as_deref() != Some("0.22.1") {
        wrong.push(format!(
            "burn is {burn:?}; the stand-in was checked with 0.22.1"
        ));
    }
    Ok(())
}

/// The programs alone must have their dependencies with the features that these have in the workspace: otherwise cargo builds
/// Burn once more for each of the README's commands.
fn one_build(wrong: &mut Vec<String>) -> Result<()> {
    let dependencies = |which: &[&str]| -> Result<BTreeSet<String>> {
        let edges = ["-e", "normal,build", "--prefix", "none"];
        let format = ["-f", "{p} [{f}]"];
        let text = output("cargo", &[&["tree"], which, &edges[..], &format].concat())?;
        let lines = text.lines().map(|line| line.trim_end_matches(" (*)"));
        Ok(lines
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    };
    let workspace = dependencies(&["--workspace"])?;
    for program in ["server", "trainer-sft"] {
        for missing in dependencies(&["-p", program])?.difference(&workspace) {
            wrong.push(format!(
                "`-p {program}` builds {missing}, the workspace with other features: give it those"
            ));
        }
    }
    Ok(())
}

/// File sizes, unsafe code, GPU instructions and the scheduler's imports, below `dir`.
fn sources(dir: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for path in entries.iter().map(std::fs::DirEntry::path) {
        if path.is_dir() {
            sources(&path, wrong)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path)?;
            source(&path, &text, wrong);
        }
    }
    Ok(())
}

fn source(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let root = root();
    let place = path.strip_prefix(&root).unwrap_or(path);
    let parts: Vec<_> = place.iter().filter_map(|p| p.to_str()).collect();
    let place = place.display();
    let is_test = parts.contains(&"tests");
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    let lines = code.lines().count();
    if lines > MAX_LINES && !is_test {
        wrong.push(format!(
            "{place}: {lines} lines without tests, at most {MAX_LINES}"
        ));
    }
    let has_unsafe = code.lines().map(str::trim_start).any(|line| {
        let comment = line.starts_with("//");
        !comment
            && ["unsafe {", "unsafe fn", "unsafe impl"]
                .iter()
                .any(|u| line.contains(u))
    });
    let may_be_unsafe = ["kernels", "sys", "xtask"]
        .iter()
        .any(|dir| parts.contains(dir));
    if has_unsafe && !may_be_unsafe && !is_test {
        wrong.push(format!(
            "{place}: unsafe code outside src/kernels and src/sys"
        ));
    }
    let mut instructions = code.split("gpu_asm!(").skip(1);
    let is_vague = |rest: &str| {
        let end = rest.find(");").unwrap_or(rest.len());
        !["explicit_mem", "nomem", "readonly"]
            .iter()
            .any(|option| rest[..end].contains(option))
    };
    if !parts.contains(&"xtask") && instructions.any(is_vague) {
        wrong.push(format!(
            "{place}: gpu_asm! that doesn't say what memory it touches: CubeCL takes all buffers of the kernel for written then"
        ));
    }
    let tensor_free = parts.contains(&"kv-paging")
        && parts.contains(&"src")
        && TENSOR_FREE.iter().any(|name| parts.contains(name));
    if tensor_free && code.contains("burn::") {
        wrong.push(format!(
            "{place}: the scheduler and the block pool hold no tensor"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(place: &str, text: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        source(&root().join(place), text, &mut wrong);
        wrong
    }

    #[test]
    fn sources_that_break_a_rule_are_named() {
        let long = "\n".repeat(MAX_LINES + 1);
        for (place, text, expected) in [
            ("crates/server/src/a.rs", long.as_str(), "501 lines"),
            ("crates/server/src/a.rs", "unsafe { f() }", "unsafe code"),
            (
                "crates/kv-paging/src/block_pool.rs",
                "use burn::tensor::Tensor;",
                "hold no tensor",
            ),
            (
                "crates/kv-paging/src/kernels/cube/a.rs",
                "gpu_asm!(\"a\", options(nomem));\ngpu_asm!(\"b\", options(pure));",
                "what memory",
            ),
        ] {
            let wrong = wrong(place, text);
            assert_eq!(wrong.len(), 1, "{place}: {wrong:?}");
            assert!(wrong[0].starts_with(place) && wrong[0].contains(expected));
        }
    }

    #[test]
    fn sources_that_keep_the_rules_are_not() {
        let tests = format!("#[cfg(test)]\nmod tests {{{}}}", "\n".repeat(MAX_LINES));
        for (place, text) in [
            ("crates/server/src/a.rs", tests.as_str()),
            ("crates/kv-paging/src/kernels/a.rs", "unsafe { f() }"),
            ("crates/model-qwen/src/sys/a.rs", "unsafe { f() }"),
            ("crates/server/src/a.rs", "// unsafe { f() }"),
            ("crates/kv-paging/src/cache.rs", "use burn::tensor::Tensor;"),
        ] {
            assert_eq!(wrong(place, text), Vec::<String>::new());
        }
    }
}
