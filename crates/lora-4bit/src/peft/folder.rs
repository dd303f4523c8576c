//! Reading and writing the files of an adapter folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::PeftError;
use super::names::{CONFIG_FILE, WEIGHTS_FILE};

/// What Git leaves in the place of a large file begins with this.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The order of folders one of which may be meant, the likeliest one last: a result comes after the checkpoints on the way to it,
/// and what is numbered in the order of its numbers.
pub fn by_number(folder: &Path) -> impl Ord + use<> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number: u64 = name[kind.len()..].parse().unwrap_or_default();
    let place = folder.parent().map(Path::to_owned);
    (
        place,
        !kind.starts_with("checkpoint"),
        kind.to_owned(),
        number,
    )
}

/// The adapter's folder that may be meant by a folder around it.
pub fn adapter_below(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.map(|entry| entry.path());
    let adapters = folders.filter(|folder| folder.join(CONFIG_FILE).is_file());
    adapters.max_by_key(|folder| by_number(folder))
}

/// The content of `file` in `dir`.
pub(super) fn read_file(dir: &Path, file: &'static str) -> Result<Vec<u8>, PeftError> {
    let path = dir.join(file);
    // A pipe would wait for whoever writes into it.
    let is_plain = |path: &Path| match fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("expected a plain file")),
    };
    let content = is_plain(&path).and_then(|()| fs::read(&path)).map_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return PeftError::io("read", &path)(error);
        }
        let is_pickle = file == WEIGHTS_FILE && dir.join("adapter_model.bin").exists();
        let below = (file == CONFIG_FILE).then(|| adapter_below(dir)).flatten();
        PeftError::NoFile {
            folder: dir.to_owned(),
            file,
            hint: match below {
                _ if is_pickle => {
                    ", only an adapter_model.bin, which is not read: save the adapter with safe_serialization=True".to_owned()
                }
                Some(meant) => format!("; did you mean {}?", meant.display()),
                None => String::new(),
            },
        }
    })?;
    match content.starts_with(LFS_POINTER) {
        true => Err(PeftError::LfsPointer(path)),
        false => Ok(content),
    }
}

/// Writes a file and waits until it is on the disk.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<(), PeftError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(PeftError::io("write", path))
}

/// Moves the finished folder `staging` to `dir`, or its files if `dir` exists.
pub(super) fn publish(staging: &Path, dir: &Path) -> Result<(), PeftError> {
    if !dir.exists() {
        return fs::rename(staging, dir).map_err(PeftError::io("create", dir));
    }
    for file in [WEIGHTS_FILE, CONFIG_FILE] {
        let path = dir.join(file);
        fs::rename(staging.join(file), &path).map_err(PeftError::io("replace", &path))?;
    }
    Ok(())
}
