//! The package that a person unpacks: `bin`, `share` and the licences in one folder.

use anyhow::Result;

use super::binary::Platform;
use super::package::{CHANGELOG, LICENCES, Options, Package, SHARE, data, top_file, write};
use super::tar::{Rights, Tar, gzip};
use super::zip::Zip;

/// `cargo xtask archive`.
pub(crate) fn run(flags: &[&str]) -> Result<()> {
    let options = Options::parse(flags)?;
    let package = Package::read(&options)?;
    let name = package.name();
    let files = contents(&package)?;
    let (ending, bytes) = match package.platform {
        Platform::Windows { .. } => {
            let mut zip = Zip::default();
            for (path, content, rights) in &files {
                zip.add(&format!("{name}/{path}"), content, rights.mode)?;
            }
            ("zip", zip.finish())
        }
        _ => {
            let mut tar = Tar::default();
            for (path, content, rights) in &files {
                tar.file(&format!("{name}/{path}"), content, *rights)?;
            }
            ("tar.gz", gzip(&tar.finish())?)
        }
    };
    write(&options.out.join(format!("{name}.{ending}")), &bytes)
}

fn contents(package: &Package) -> Result<Vec<(String, Vec<u8>, Rights)>> {
    let program = format!("bin/{}", package.program_name());
    let mut files = vec![(program, package.program.clone(), Rights::PROGRAM)];
    for (name, content) in data()? {
        files.push((format!("{SHARE}/{name}"), content, Rights::FILE));
    }
    for path in LICENCES.into_iter().chain([CHANGELOG]) {
        let name = path.rsplit('/').next().unwrap_or(path);
        files.push((name.to_owned(), top_file(path)?, Rights::FILE));
    }
    Ok(files)
}
