//! What a release says of its archives: checksums, a formula for Homebrew, manifests for winget, and the notes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::digest::hex;
use super::package::{CHANGELOG, top_file, version};
use super::{changelog, package};

/// A template, and the file that is made of it.
const TEMPLATES: [(&str, &str); 4] = [
    (include_str!("../../release/qwen-burn.rb"), "qwen-burn.rb"),
    (
        include_str!("../../release/winget.yaml"),
        "winget/QwenBurn.QwenBurn.yaml",
    ),
    (
        include_str!("../../release/winget.installer.yaml"),
        "winget/QwenBurn.QwenBurn.installer.yaml",
    ),
    (
        include_str!("../../release/winget.locale.en-US.yaml"),
        "winget/QwenBurn.QwenBurn.locale.en-US.yaml",
    ),
];
/// Where a release's archives are.
const RELEASES: &str = "https://github.com/qwen-burn/qwen-burn/releases/download";

/// `cargo xtask release-files`: reads the archives of a folder, and writes beside them.
pub(crate) fn run(flags: &[&str]) -> Result<()> {
    let folder = match flags {
        ["--dir", folder] => (*folder).into(),
        [] => Path::new(&crate::target_directory()?).join("dist"),
        _ => bail!("usage: cargo xtask release-files [--dir DIR]"),
    };
    let changelog = String::from_utf8(top_file(CHANGELOG)?)?;
    let names = written(&folder, &version()?, &changelog)?;
    for name in names {
        println!("{}", folder.join(name).display());
    }
    Ok(())
}

/// Writes all files, and returns their names.
fn written(folder: &Path, version: &str, changelog: &str) -> Result<Vec<String>> {
    let sums = sums(folder)?;
    let mut files = vec![
        ("notes.md".to_owned(), changelog::notes(changelog, version)?),
        ("SHA256SUMS".to_owned(), listed(&sums)),
    ];
    for (template, name) in TEMPLATES {
        let text = filled(template, version, &sums).with_context(|| name.to_owned())?;
        files.push((name.to_owned(), text));
    }
    fs::create_dir_all(folder.join("winget"))?;
    for (name, text) in &files {
        fs::write(folder.join(name), text).with_context(|| name.clone())?;
    }
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

/// Archives, wheels and images of a folder, with their checksums, by name.
fn sums(folder: &Path) -> Result<Vec<(String, String)>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut sums = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_package = [".tar.gz", ".zip", ".whl", ".tar"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if is_package {
            sums.push((name.into_owned(), hex(&fs::read(&path)?)));
        }
    }
    sums.sort();
    Ok(sums)
}

/// As `sha256sum --check` reads it.
fn listed(sums: &[(String, String)]) -> String {
    let lines = sums.iter().map(|(name, sum)| format!("{sum}  {name}\n"));
    lines.collect()
}

/// A template with the version, and with address and checksum of each archive that it names: `{{url TARGET}}` and
/// `{{sha256 TARGET}}`.
fn filled(template: &str, version: &str, sums: &[(String, String)]) -> Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (place, after) = after.split_once("}}").context("a place without an end")?;
        text += before;
        text += &match place.trim().split_once(' ') {
            None if place.trim() == "version" => version.to_owned(),
            Some(("url", target)) => {
                format!(
                    "{RELEASES}/v{version}/{}",
                    archive(target, version, sums)?.0
                )
            }
            Some(("sha256", target)) => archive(target, version, sums)?.1.clone(),
            _ => bail!("unknown place `{place}`"),
        };
        rest = after;
    }
    Ok(text + rest)
}

fn archive<'a>(
    target: &str,
    version: &str,
    sums: &'a [(String, String)],
) -> Result<&'a (String, String)> {
    let stem = format!("{}-{version}-{target}", package::PROGRAM);
    let is_it = |name: &str| name == format!("{stem}.tar.gz") || name == format!("{stem}.zip");
    let found = sums.iter().find(|(name, _)| is_it(name));
    found.with_context(|| format!("no archive {stem}.tar.gz or .zip: a release needs it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: [&str; 4] = [
        "x86_64-unknown-linux-gnu.tar.gz",
        "aarch64-unknown-linux-gnu.tar.gz",
        "aarch64-apple-darwin.tar.gz",
        "x86_64-pc-windows-msvc.zip",
    ];

    fn archives() -> Vec<(String, String)> {
        let sum = |i: usize| format!("{i}").repeat(64);
        let targets = TARGETS.iter().enumerate();
        targets
            .map(|(i, target)| (format!("qwen-burn-1.2.3-{target}"), sum(i)))
            .collect()
    }

    #[test]
    fn every_template_is_filled() {
        for (template, name) in TEMPLATES {
            let text = filled(template, "1.2.3", &archives()).unwrap();
            assert!(
                text.contains("1.2.3") && !text.contains("{{"),
                "{name}: {text}"
            );
        }
        let formula = filled(TEMPLATES[0].0, "1.2.3", &archives()).unwrap();
        let url = "releases/download/v1.2.3/qwen-burn-1.2.3-aarch64-apple-darwin.tar.gz";
        assert!(formula.contains(url), "{formula}");
        assert!(formula.contains(&"2".repeat(64)), "{formula}");
    }

    #[test]
    fn an_archive_that_is_missing_is_named() {
        let few = &archives()[..2];
        let error = filled(TEMPLATES[0].0, "1.2.3", few)
            .unwrap_err()
            .to_string();
        assert!(error.contains("aarch64-apple-darwin"), "{error}");
    }
}
