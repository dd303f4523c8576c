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
    ("server", &["model-qwen", "lora-4bit", "kv-paging"]),
];
/// The version of Burn with which the stand-in was checked.
const BURN: &str = "0.22.1";
/// Keys of a profile that change neither what a program computes nor how fast.
const MAY_DIFFER: [&str; 5] = ["debug", "split-debuginfo", "strip", "incremental", "rpath"];

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

/// The dev profile must build what the release profile builds, so that a plain `cargo run` is the fast one.
pub(super) fn profiles(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    profiles_of(&fs::read_to_string(root.join("Cargo.toml"))?, wrong)
}

fn profiles_of(manifest: &str, wrong: &mut Vec<String>) -> Result<()> {
    let manifest: Table = toml::from_str(manifest).context("Cargo.toml")?;
    let profile = |name: &str, defaults: [(&str, Value); 3]| {
        let profile = manifest.get("profile")?.get(name)?.as_table()?;
        let mut profile: Table = profile.clone();
        for (key, value) in defaults {
            profile.entry(key).or_insert(value);
        }
        profile.retain(|key, _| !MAY_DIFFER.contains(&key));
        profile.contains_key("package").then_some(profile)
    };
    let defaults = |opt_level: i64, checks: bool| {
        [
            ("opt-level", Value::from(opt_level)),
            ("debug-assertions", Value::from(checks)),
            ("overflow-checks", Value::from(checks)),
        ]
    };
    let dev = profile("dev", defaults(0, true));
    let release = profile("release", defaults(3, false));
    // Profiles without packages of their own are two: one builds fast, one runs fast.
    let (Some(dev), Some(release)) = (dev, release) else {
        return Ok(());
    };
    differences("", &dev, &release, wrong);
    Ok(())
}

/// Names each key on which two profiles don't agree. `package` and the packages in it are looked into.
fn differences(place: &str, dev: &Table, release: &Table, wrong: &mut Vec<String>) {
    let keys: BTreeSet<&String> = dev.keys().chain(release.keys()).collect();
    for key in keys {
        if MAY_DIFFER.contains(&key.as_str()) {
            continue;
        }
        let (dev, release) = (dev.get(key), release.get(key));
        if dev == release {
            continue;
        }
        if let (Some(Value::Table(dev)), Some(Value::Table(release))) = (dev, release) {
            differences(&format!("{place}{key}."), dev, release, wrong);
            continue;
        }
        let shown = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
        let (dev, release) = (shown(dev), shown(release));
        wrong.push(format!(
            "Cargo.toml: {place}{key} is {dev} in the dev profile, {release} in the release profile"
        ));
    }
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
    fn profiles_with_packages_agree() {
        let check = |dev: &str, release: &str| {
            let mut wrong = Vec::new();
            let manifest = format!("[profile.dev]\n{dev}\n[profile.release]\n{release}");
            profiles_of(&manifest, &mut wrong).unwrap();
            wrong
        };
        let package = "package.a = { opt-level = 3 }\nopt-level = 1\n";
        let unchecked = "debug-assertions = false\noverflow-checks = false\n";
        let dev = format!("{package}{unchecked}debug = false\nincremental = false");
        assert_eq!(check(&dev, package), Vec::<String>::new());
        assert_eq!(
            check("opt-level = 0", "opt-level = 3"),
            Vec::<String>::new()
        );
        for (release, expected) in [
            ("package.a = { opt-level = 3 }".to_owned(), "opt-level is 1"),
            (
                format!("{package}overflow-checks = true"),
                "overflow-checks is false",
            ),
            (format!("{package}lto = true"), "lto is nothing"),
            (
                "package.a = { opt-level = 2 }\nopt-level = 1".to_owned(),
                "package.a.opt-level is 3",
            ),
            (
                format!("{package}package.b = {{ opt-level = 3 }}"),
                "package.b is nothing",
            ),
        ] {
            let wrong = check(&dev, &release);
            assert_eq!(wrong.len(), 1, "{release}: {wrong:?}");
            assert!(wrong[0].contains(expected), "{wrong:?}");
        }
        // Only the dev profile checks by itself.
        assert_eq!(check(package, package).len(), 2);
    }
}
