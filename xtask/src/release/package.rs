//! What every package holds: the program, the bundled data, the licences; and which version it is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::binary::Platform;
use crate::root;

/// The program.
pub(super) const PROGRAM: &str = "qwen-burn";
/// Where a package has the bundled data.
pub(super) const SHARE: &str = "share/qwen-burn";
/// The bundled data, below `data`.
const DATA: [&str; 8] = [
    "README.md",
    "eval.jsonl",
    "train.jsonl",
    "model/config.json",
    "model/generation_config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
];
/// What is new in each version.
pub(super) const CHANGELOG: &str = "docs/CHANGELOG.md";

pub(super) const LICENCES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];

/// One build of the program, ready to be packaged.
pub(super) struct Package {
    pub(super) version: String,
    pub(super) platform: Platform,
    pub(super) program: Vec<u8>,
    /// Whether it has CUDA.
    pub(super) cuda: bool,
}

/// What a command line says of a package.
pub(super) struct Options {
    /// Where the program is.
    bin_dir: PathBuf,
    /// Where the package is written.
    pub(super) out: PathBuf,
    cuda: bool,
    /// The target for which the program was built, if it was cross-compiled.
    target: Option<String>,
}

impl Options {
    pub(super) fn parse(flags: &[&str]) -> Result<Self> {
        let target = crate::target_directory()?;
        let mut options = Self {
            bin_dir: Path::new(&target).join("release"),
            out: Path::new(&target).join("dist"),
            cuda: false,
            target: None,
        };
        let mut flags = flags.iter();
        while let Some(flag) = flags.next() {
            let mut value = || {
                flags
                    .next()
                    .with_context(|| format!("{flag} needs a value"))
            };
            match *flag {
                "--bin-dir" => options.bin_dir = value()?.into(),
                "--out" => options.out = value()?.into(),
                "--target" => options.target = Some((*value()?).to_owned()),
                "--cuda" => options.cuda = true,
                other => anyhow::bail!(
                    "unknown flag {other}: expected --bin-dir, --out, --target or --cuda"
                ),
            }
        }
        fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
        Ok(options)
    }
}

impl Package {
    /// Reads the program, without what only a debugger needs.
    pub(super) fn read(options: &Options) -> Result<Self> {
        let path = [PROGRAM.to_owned(), format!("{PROGRAM}.exe")]
            .iter()
            .map(|name| options.bin_dir.join(name))
            .find(|path| path.is_file())
            .with_context(|| {
                let folder = options.bin_dir.display();
                format!("no {PROGRAM} in {folder}: run `cargo build --release -p server`, or name another --bin-dir")
            })?;
        let program = stripped(&path, &options.out)?;
        let platform = Platform::of(&program).with_context(|| path.display().to_string())?;
        if let Some(target) = &options.target {
            let found = platform.triple();
            ensure!(
                found == *target,
                "--target: expected {target}, found {found}"
            );
        }
        Ok(Self {
            version: version()?,
            platform,
            program,
            cuda: options.cuda,
        })
    }

    /// The program's file name.
    pub(super) fn program_name(&self) -> String {
        format!("{PROGRAM}{}", self.platform.suffix())
    }

    /// A name for files of this package.
    pub(super) fn name(&self) -> String {
        let cuda = if self.cuda { "-cuda" } else { "" };
        format!(
            "{PROGRAM}-{}-{}{cuda}",
            self.version,
            self.platform.triple()
        )
    }
}

/// A program of Linux without symbols, where this machine has `strip`; another one as it is, since it may be signed.
fn stripped(path: &Path, folder: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    if !bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    let copy = folder.join(format!(".{PROGRAM}-stripped"));
    let strip = crate::command("strip")
        .arg("-o")
        .arg(&copy)
        .arg(path)
        .output();
    let is_stripped = strip.is_ok_and(|output| output.status.success());
    let bytes = match is_stripped {
        true => fs::read(&copy).with_context(|| copy.display().to_string())?,
        false => bytes,
    };
    // It may not be there.
    let _ = fs::remove_file(&copy);
    Ok(bytes)
}

/// The bundled data: names below [`SHARE`], and content.
pub(super) fn data() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let folder = root().join("data");
    let files = DATA.iter().map(|name| {
        let path = folder.join(name);
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok((*name, content))
    });
    files.collect()
}

/// A file of the repository's top folder.
pub(super) fn top_file(name: &str) -> Result<Vec<u8>> {
    let path = root().join(name);
    fs::read(&path).with_context(|| path.display().to_string())
}

/// The version of the workspace.
pub(crate) fn version() -> Result<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let manifest: toml::Table = toml::from_str(&manifest).context("Cargo.toml")?;
    let package = manifest.get("workspace").and_then(|w| w.get("package"));
    let version = package.and_then(|package| package.get("version")?.as_str());
    Ok(version
        .context("Cargo.toml: no workspace.package.version")?
        .to_owned())
}

/// Writes a package, and says where and how large it is.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| path.display().to_string())?;
    println!("{} ({:.1} MB)", path.display(), bytes.len() as f64 / 1e6);
    Ok(())
}
