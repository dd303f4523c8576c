//! What a release says of its archives: checksums, a formula for Homebrew, manifests for winget, and the notes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

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
/// A target for which a release has packages.
struct Target {
    triple: &'static str,
    /// How its archives end.
    ending: &'static str,
    /// How the platform in the name of its wheels begins and ends.
    platform: (&'static str, &'static str),
    /// Whether there are packages with CUDA, too.
    cuda: bool,
}

/// What `.github/workflows/release.yml` builds.
const TARGETS: [Target; 4] = [
    Target {
        triple: "x86_64-unknown-linux-gnu",
        ending: "tar.gz",
        platform: ("manylinux_", "_x86_64"),
        cuda: true,
    },
    Target {
        triple: "aarch64-unknown-linux-gnu",
        ending: "tar.gz",
        platform: ("manylinux_", "_aarch64"),
        cuda: false,
    },
    Target {
        triple: "aarch64-apple-darwin",
        ending: "tar.gz",
        platform: ("macosx_", "_arm64"),
        cuda: false,
    },
    Target {
        triple: "x86_64-pc-windows-msvc",
        ending: "zip",
        platform: ("win_amd64", ""),
        cuda: true,
    },
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
    let missing = missing(version, &sums);
    ensure!(
        missing.is_empty(),
        "{}: a release needs {}",
        folder.display(),
        missing.join(", ")
    );
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

/// Archives and wheels of a release that are not there.
fn missing(version: &str, sums: &[(String, String)]) -> Vec<String> {
    let has = |start: &str, end: &str| {
        let is_it = |name: &str| {
            let rest = name.strip_prefix(start);
            rest.is_some_and(|rest| rest.ends_with(end))
        };
        sums.iter().any(|(name, _)| is_it(name))
    };
    let mut missing = Vec::new();
    for target in &TARGETS {
        for cuda in [false, true] {
            if cuda && !target.cuda {
                continue;
            }
            let (of_archive, of_wheel) = match cuda {
                true => ("-cuda", "_cuda"),
                false => ("", ""),
            };
            let (triple, ending) = (target.triple, target.ending);
            let archive = format!(
                "{}-{version}-{triple}{of_archive}.{ending}",
                package::PROGRAM
            );
            if !has(&archive, "") {
                missing.push(archive);
            }
            let (start, end) = target.platform;
            let start = format!("qwen_burn{of_wheel}-{version}-py3-none-{start}");
            let end = format!("{end}.whl");
            if !has(&start, &end) {
                missing.push(format!("{start}…{end}"));
            }
        }
    }
    missing
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
    use serde_json::Value;

    use super::*;
    use crate::release::binary::Platform;

    fn archives() -> Vec<(String, String)> {
        let targets = TARGETS.iter().enumerate();
        let archives = targets.map(|(i, Target { triple, ending, .. })| {
            let name = format!("qwen-burn-1.2.3-{triple}.{ending}");
            (name, format!("{i}f").repeat(32))
        });
        archives.collect()
    }

    #[test]
    fn a_release_without_one_of_its_packages_is_refused() {
        const OTHERS: [&str; 8] = [
            "qwen-burn-1.2.3-x86_64-unknown-linux-gnu-cuda.tar.gz",
            "qwen-burn-1.2.3-x86_64-pc-windows-msvc-cuda.zip",
            "qwen_burn-1.2.3-py3-none-manylinux_2_28_x86_64.whl",
            "qwen_burn_cuda-1.2.3-py3-none-manylinux_2_28_x86_64.whl",
            "qwen_burn-1.2.3-py3-none-manylinux_2_28_aarch64.whl",
            "qwen_burn-1.2.3-py3-none-macosx_11_0_arm64.whl",
            "qwen_burn-1.2.3-py3-none-win_amd64.whl",
            "qwen_burn_cuda-1.2.3-py3-none-win_amd64.whl",
        ];
        let changelog = "## 1.2.3\n\n- a\n";
        let folder = tempfile::tempdir().unwrap();
        let mut names: Vec<String> = archives().into_iter().map(|(name, _)| name).collect();
        names.extend(OTHERS.map(str::to_owned));
        for name in &names {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let files = written(folder.path(), "1.2.3", changelog).unwrap();
        assert_eq!(files.len(), 2 + TEMPLATES.len());
        // Another version's packages are no packages of this one.
        let later = changelog.replace("1.2.3", "1.2.4");
        assert!(written(folder.path(), "1.2.4", &later).is_err());
        for name in &names {
            let path = folder.path().join(name);
            fs::remove_file(&path).unwrap();
            let error = written(folder.path(), "1.2.3", changelog).unwrap_err();
            let error = error.to_string();
            let (_, missing) = error.split_once("needs ").unwrap();
            let (start, end) = missing.split_once('…').unwrap_or((missing, ""));
            assert!(name.starts_with(start) && name.ends_with(end), "{error}");
            fs::write(&path, name).unwrap();
        }
    }

    #[test]
    fn the_workflow_builds_the_packages_that_a_release_needs() {
        let path = crate::root().join(".github/workflows/release.yml");
        let text = fs::read_to_string(path).unwrap();
        let workflow: Value = serde_norway::from_str(&text).unwrap();
        let matrix = |job: &str| -> Vec<(String, bool)> {
            let rows = &workflow["jobs"][job]["strategy"]["matrix"]["include"];
            let row = |row: &Value| {
                let target = row["target"].as_str().unwrap().to_owned();
                (target, row["cuda"].as_bool().unwrap())
            };
            let mut rows: Vec<_> = rows.as_array().unwrap().iter().map(row).collect();
            rows.sort();
            rows
        };
        let of_target = |target: &Target| {
            let with_cuda = target.cuda.then(|| (target.triple.to_owned(), true));
            [(target.triple.to_owned(), false)]
                .into_iter()
                .chain(with_cuda)
        };
        let mut expected: Vec<_> = TARGETS.iter().flat_map(of_target).collect();
        expected.sort();
        assert_eq!(matrix("build"), expected);
        // Images are made of archives for Linux.
        expected.retain(|(target, _)| target.contains("-linux-"));
        assert_eq!(matrix("images"), expected);
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
        assert!(formula.contains(&"2f".repeat(32)), "{formula}");
    }

    /// The keys that are required are those of microsoft/winget-cli, `schemas/JSON/manifests/v1.6.0`.
    #[test]
    fn manifests_of_winget_have_what_winget_requires() {
        let parsed = |kind: &str| -> Value {
            let schema = format!("winget-manifest.{kind}.1.6.0.schema.json");
            let (template, _) = TEMPLATES
                .into_iter()
                .find(|(template, _)| template.contains(&schema))
                .unwrap();
            let text = filled(template, "1.2.3", &archives()).unwrap();
            serde_norway::from_str(&text).unwrap()
        };
        for (kind, own) in [
            ("version", &["DefaultLocale"][..]),
            ("installer", &["Installers"]),
            (
                "defaultLocale",
                &[
                    "PackageLocale",
                    "Publisher",
                    "PackageName",
                    "License",
                    "ShortDescription",
                ],
            ),
        ] {
            let manifest = parsed(kind);
            assert_eq!(manifest["PackageIdentifier"], "QwenBurn.QwenBurn");
            assert_eq!(manifest["PackageVersion"], "1.2.3");
            assert_eq!(manifest["ManifestType"], kind);
            assert_eq!(manifest["ManifestVersion"], "1.6.0");
            for key in own {
                assert!(!manifest[key].is_null(), "{kind}: {key}");
            }
        }
        let locale = &parsed("version")["DefaultLocale"];
        assert_eq!(parsed("defaultLocale")["PackageLocale"], *locale);

        let manifest = parsed("installer");
        let kind = (
            &manifest["InstallerType"],
            &manifest["NestedInstallerType"],
            &manifest["Installers"][0]["Architecture"],
        );
        assert_eq!(kind, (&"zip".into(), &"portable".into(), &"x64".into()));
        let installer = &manifest["Installers"][0];
        let package = package::Package {
            version: "1.2.3".to_owned(),
            platform: Platform::Windows { arch: "amd64" },
            program: Vec::new(),
            cuda: false,
        };
        let url = installer["InstallerUrl"].as_str().unwrap();
        let end = format!("/{}.zip", package.name());
        assert!(url.starts_with("https://") && url.ends_with(&end), "{url}");
        let sum = installer["InstallerSha256"].as_str().unwrap();
        assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()));
        // Where the archive has it.
        let path = format!("{}/bin/{}", package.name(), package.program_name());
        assert_eq!(
            manifest["NestedInstallerFiles"][0]["RelativeFilePath"],
            path.replace('/', "\\")
        );
    }

    #[test]
    fn each_block_of_the_formula_has_an_end() {
        let formula = filled(TEMPLATES[0].0, "1.2.3", &archives()).unwrap();
        let lines = || formula.lines().map(str::trim);
        let opens = |line: &str| {
            line.ends_with(" do") || line.starts_with("class ") || line.starts_with("def ")
        };
        let num_open = lines().filter(|line| opens(line)).count();
        assert_eq!(num_open, lines().filter(|line| *line == "end").count());
        // Each address is followed by its sum.
        let lines: Vec<&str> = lines().collect();
        let urls = lines.windows(2).filter(|pair| pair[0].starts_with("url "));
        let urls: Vec<_> = urls.collect();
        assert_eq!(urls.len(), 3);
        assert!(urls.iter().all(|pair| pair[1].starts_with("sha256 \"")));
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
