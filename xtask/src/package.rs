//! The crates as others get them: packaged, unpacked, and used by a program that is no part of the workspace.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{output, root, run as command};

/// What is packaged, and what [`OUTSIDE`] uses.
const CRATES: [&str; 5] = [
    "kv-paging",
    "lora-4bit",
    "model-qwen",
    "trainer-sft",
    "server",
];
/// The program, with a manifest that names the crates as crates.io has them.
const OUTSIDE: &str = "examples/outside";

/// Packages the crates and checks the program against them, on the CPU, and what it would build with CUDA.
pub(crate) fn run() -> Result<()> {
    let packages = CRATES.iter().flat_map(|name| ["-p", name]);
    let mut arguments = vec!["package", "--no-verify", "--allow-dirty"];
    arguments.extend(packages);
    command("cargo", &arguments)?;
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    let packages =
        Path::new(target.context("cargo metadata: no target_directory")?).join("package");
    let folders = CRATES
        .iter()
        .map(|name| unpacked(name, &metadata, &packages))
        .collect::<Result<Vec<_>>>()?;
    let manifest = outside(&packages.join("outside"), &folders)?;
    let manifest = manifest.to_str().context("a path that is not UTF-8")?;

    // Burn is the one that the workspace has built: same profile, same versions, same features.
    command("cargo", &["check", "--manifest-path", manifest])?;
    let tree = ["tree", "--manifest-path", manifest, "--features", "cuda"];
    let of_stand_in = ["-i", "cubecl-llvm", "--depth", "0"];
    let found = output("cargo", &[&tree[..], &of_stand_in].concat())?;
    if !found.contains(".cargo/cubecl-llvm") {
        bail!("with `cuda`, {OUTSIDE} builds {found}, expected the stand-in of .cargo/cubecl-llvm");
    }
    Ok(())
}

/// The folder into which a package was unpacked; it replaces an older one.
fn unpacked(name: &str, metadata: &Value, packages: &Path) -> Result<PathBuf> {
    let all = metadata["packages"].as_array().into_iter().flatten();
    let version = all
        .filter(|package| package["name"] == name)
        .find_map(|package| package["version"].as_str())
        .with_context(|| format!("cargo metadata: no version of {name}"))?;
    let folder = packages.join(format!("{name}-{version}"));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let archive = packages.join(format!("{name}-{version}.crate"));
    let [archive, into] = [&archive, packages].map(|path| path.display().to_string());
    // With the time of today: Cargo would take a changed file with the archive's constant time for the one it has built.
    command("tar", &["-xzmf", &archive, "-C", &into])?;
    Ok(folder)
}

/// Copies the program and lets its manifest find the packages, and the stand-in, where they are; the manifest's path.
fn outside(folder: &Path, packages: &[PathBuf]) -> Result<PathBuf> {
    let original = root().join(OUTSIDE);
    fs::create_dir_all(folder.join("src"))?;
    for file in ["src/main.rs", "Cargo.toml"] {
        fs::copy(original.join(file), folder.join(file)).with_context(|| file.to_owned())?;
    }
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;

    let workspace = fs::read_to_string(root().join("Cargo.toml"))?;
    let path = folder.join("Cargo.toml");
    let mut manifest = fs::read_to_string(&path)?;
    write!(
        manifest,
        "\n{}\n[patch.crates-io]\n",
        dev_profile(&workspace)?
    )?;
    let stand_in = root().canonicalize()?.join(".cargo/cubecl-llvm");
    writeln!(manifest, "cubecl-llvm = {{ path = {stand_in:?} }}")?;
    for (name, package) in CRATES.iter().zip(packages) {
        writeln!(manifest, "{name} = {{ path = {package:?} }}")?;
    }
    fs::write(&path, manifest)?;
    Ok(path)
}

/// The workspace's dev profile as a manifest has it: with it the check finds what the workspace has built.
fn dev_profile(workspace: &str) -> Result<String> {
    let workspace: toml::Table = toml::from_str(workspace).context("Cargo.toml")?;
    let dev = workspace
        .get("profile")
        .and_then(|profiles| profiles.get("dev"));
    let dev = dev.context("Cargo.toml: no [profile.dev]")?.clone();
    let profiles = toml::Table::from_iter([("dev".to_owned(), dev)]);
    let manifest = toml::Table::from_iter([("profile".to_owned(), profiles.into())]);
    Ok(toml::to_string(&manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dev_profile_is_copied_whole() {
        let workspace = "[profile.dev]\nopt-level = 0\n[profile.dev.package]\na = { opt-level = 3 }\n\n\
                         [profile.release]\nopt-level = 3\n";
        let copy: toml::Table = toml::from_str(&dev_profile(workspace).unwrap()).unwrap();
        let whole: toml::Table = toml::from_str(workspace).unwrap();
        assert_eq!(copy["profile"]["dev"], whole["profile"]["dev"]);
        assert!(copy["profile"].get("release").is_none());
        assert!(dev_profile("[profile.release]\n").is_err());
    }
}
