//! Reading and writing the files of an adapter folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::{CONFIG_FILE, PeftError, WEIGHTS_FILE};

/// What Git leaves in the place of a large file begins with this.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

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
        PeftError::NoFile {
            folder: dir.to_owned(),
            file,
            hint: if is_pickle {
                ", only an adapter_model.bin, which is not read: save the adapter with safe_serialization=True"
            } else {
                ""
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
