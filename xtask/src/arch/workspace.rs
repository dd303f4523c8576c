//! What is true of the packages: who depends on whom, which versions, how they are built.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::output_in;

/// Which siblings a crate may import.
const MAY_IMPORT: [(&str, &[&str]); 5] = [
    ("lora-4bit", &[]),
    ("kv-paging", &[]),
    ("model-qwen", &["lora-4bit", "kv-paging"]),
    ("trainer-sft", &["model-qwen", "lora-4bit", "kv-paging"]),
    (
        "server",
        &["trainer-sft", "model-qwen", "lora-4bit", "kv-paging"],
    ),
];
/// The version of Burn with which the stand-in was checked.
const BURN: &str = "0.22.1";
/// Dependencies between the workspace's crates, as cargo sees them; dev-dependencies included.
pub(super) fn imports(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let args = ["metadata", "--format-version", "1", "--no-deps"];
    imports_of(
        &serde_json::from_str(&output_in(root, "cargo", &args)?)?,
        wrong,
    )
}

fn imports_of(metadata: &Json, wrong: &mut Vec<String>) -> Result<()> {
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
pub(super) fn cuda_stand_in(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    cuda_stand_in_of(&fs::read_to_string(root.join("Cargo.lock"))?, wrong)
}

fn cuda_stand_in_of(lock: &str, wrong: &mut Vec<String>) -> Result<()> {
    let lock: Table = toml::from_str(lock).context("Cargo.lock")?;
    let packages = lock.get("package").and_then(Value::as_array);
    let packages = packages.context("Cargo.lock: no packages")?;
    let version = |name: &str| {
        let package = packages
            .iter()
            .find(|package| package.get("name").and_then(Value::as_str) == Some(name))?;
        package.get("version")?.as_str()
    };
    let (stand_in, cuda) = (version("cubecl-llvm"), version("cubecl-cuda"));
    if stand_in.is_none() || stand_in != cuda {
        wrong.push(format!(
            ".cargo/cubecl-llvm stands in for version {stand_in:?}, cubecl-cuda is {cuda:?}: compare \
             what cubecl-cuda names of cubecl-llvm, then give the stand-in that version"
        ));
    }
    let burn = version("burn");
    if burn != Some(BURN) {
        wrong.push(format!(
            "burn is {burn:?}; the stand-in was checked with {BURN}"
        ));
    }
    Ok(())
}

/// The programs alone must have their dependencies with the features that these have in the workspace: otherwise cargo builds
/// Burn once more for each of the README's commands.
pub(super) fn one_build(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let dependencies = |which: &[&str]| {
        let edges = ["-e", "normal,build", "--prefix", "none"];
        let format = ["-f", "{p} [{f}]"];
        output_in(
            root,
            "cargo",
            &[&["tree"], which, &edges[..], &format].concat(),
        )
    };
    let workspace = dependencies(&["--workspace"])?;
    for program in ["server", "trainer-sft"] {
        one_build_of(program, &dependencies(&["-p", program])?, &workspace, wrong);
    }
    Ok(())
}

/// Compares what `cargo tree` says of a program with what it says of the workspace.
fn one_build_of(program: &str, alone: &str, workspace: &str, wrong: &mut Vec<String>) {
    let builds = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().map(|line| line.trim_end_matches(" (*)"));
        lines
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    };
    for missing in builds(alone).difference(&builds(workspace)) {
        wrong.push(format!(
            "`-p {program}` builds {missing}, the workspace with other features: give it those"
        ));
    }
}

/// The kernels of these crates are optimised in the dev profile, so that a plain `cargo run` is fast.
pub(super) fn dev_profile(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    dev_profile_of(&fs::read_to_string(root.join("Cargo.toml"))?, wrong)
}

fn dev_profile_of(manifest: &str, wrong: &mut Vec<String>) -> Result<()> {
    let manifest: Table = toml::from_str(manifest).context("Cargo.toml")?;
    let packages = manifest
        .get("profile")
        .and_then(|profiles| profiles.get("dev")?.get("package"));
    for (name, _) in MAY_IMPORT {
        let level = packages.and_then(|packages| packages.get(name)?.get("opt-level"));
        if level != Some(&Value::from(3)) {
            let found = level.map_or("nothing".to_owned(), Value::to_string);
            wrong.push(format!(
                "Cargo.toml: [profile.dev.package] {name}: opt-level must be 3, found {found}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(dependencies: [(&str, &str); 2]) -> Json {
        let package = |(name, _): (&str, &[&str])| {
            let dependencies = dependencies.iter().filter(|(from, _)| *from == name);
            let dependencies: Vec<Json> = dependencies
                .map(|(_, to)| serde_json::json!({ "name": to }))
                .collect();
            serde_json::json!({ "name": name, "dependencies": dependencies })
        };
        serde_json::json!({ "packages": MAY_IMPORT.map(package) })
    }

    #[test]
    fn dependencies_have_one_direction() {
        let mut wrong = Vec::new();
        let good = [("server", "model-qwen"), ("lora-4bit", "serde")];
        imports_of(&metadata(good), &mut wrong).unwrap();
        assert_eq!(wrong, Vec::<String>::new());
        let bad = [("lora-4bit", "kv-paging"), ("model-qwen", "server")];
        imports_of(&metadata(bad), &mut wrong).unwrap();
        assert_eq!(wrong.len(), 2);
        assert!(wrong[0].starts_with("lora-4bit imports kv-paging"));
    }

    #[test]
    fn the_stand_in_has_the_version_of_what_it_replaces() {
        let check = |stand_in, burn| {
            let package = |name, version| {
                format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n")
            };
            let lock = [
                package("burn", burn),
                package("cubecl-cuda", "0.11.3"),
                package("cubecl-llvm", stand_in),
            ];
            let mut wrong = Vec::new();
            cuda_stand_in_of(&lock.concat(), &mut wrong).unwrap();
            wrong.len()
        };
        assert_eq!(check("0.11.3", BURN), 0);
        assert_eq!(check("0.11.2", BURN), 1);
        assert_eq!(check("0.11.3", "0.23.0"), 1);
    }

    #[test]
    fn a_program_alone_has_the_features_of_the_workspace() {
        let mut wrong = Vec::new();
        let workspace = "a v1 [std]\nb v1 []\n\nb v1 [] (*)\n";
        one_build_of("server", "b v1 []\na v1 [std] (*)\n", workspace, &mut wrong);
        assert_eq!(wrong, Vec::<String>::new());
        one_build_of("server", "a v1 []\n", workspace, &mut wrong);
        assert_eq!(wrong.len(), 1);
    }

    #[test]
    fn the_dev_profile_optimises_the_kernels() {
        let check = |level: &str, profile: &str| {
            let package = |name| format!("{name} = {{ opt-level = 3 }}\n");
            let others = MAY_IMPORT[1..].iter().map(|(name, _)| package(name));
            let first = MAY_IMPORT[0].0;
            let manifest = format!(
                "[profile.{profile}.package]\n{first} = {{ {level} }}\n{}",
                others.collect::<String>()
            );
            let mut wrong = Vec::new();
            dev_profile_of(&manifest, &mut wrong).unwrap();
            wrong
        };
        assert_eq!(check("opt-level = 3", "dev"), Vec::<String>::new());
        let one = check("opt-level = 1", "dev");
        assert_eq!(one.len(), 1, "{one:?}");
        assert!(one[0].ends_with("lora-4bit: opt-level must be 3, found 1"));
        assert!(check("debug = false", "dev")[0].ends_with("found nothing"));
        assert_eq!(check("opt-level = 3", "release").len(), MAY_IMPORT.len());
    }
}
