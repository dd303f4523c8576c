//! Files that appear whole or not at all, and the folders that hold them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Folder of uploaded files.
const FILES: &str = "files";
/// Folder of jobs.
pub(super) const JOBS: &str = "jobs";

/// `--finetuning-dir`, which belongs to one server at a time.
#[derive(Debug)]
pub(super) struct Folders {
    path: PathBuf,
    /// Keeps other servers out until this one ends.
    _lock: Option<File>,
}

impl Folders {
    /// Makes the folders where they are not there.
    ///
    /// # Errors
    /// When they cannot be made, or another server uses them.
    pub(super) fn claim(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            let text = format!("--finetuning-dir {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        };
        for folder in [FILES, JOBS] {
            fs::create_dir_all(path.join(folder)).map_err(named)?;
        }
        let path = path.canonicalize().map_err(named)?;
        let lock = File::create(path.join("lock")).map_err(named)?;
        let lock = match lock.try_lock() {
            Ok(()) => Some(lock),
            Err(TryLockError::WouldBlock) => {
                return Err(named(io::Error::other(
                    "another server uses it: choose another folder",
                )));
            }
            // A file system without locks.
            Err(TryLockError::Error(_)) => None,
        };
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn files(&self) -> PathBuf {
        self.path.join(FILES)
    }

    pub(super) fn jobs(&self) -> PathBuf {
        self.path.join(JOBS)
    }
}

/// Writes a file that is there whole, or as it was before.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    let part = path.with_file_name(name);
    let mut file = File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)
}

/// [`write`] of a value as JSON.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write(path, &text)
}

/// Reads a value as JSON.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let bytes = fs::read(path).map_err(named)?;
    serde_json::from_slice(&bytes).map_err(|error| named(error.into()))
}

/// The folders in `path`, without those that a server has not finished; these are removed.
pub(super) fn entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') {
            entries.push(entry);
        } else if let Err(error) = match entry.is_dir() {
            true => fs::remove_dir_all(&entry),
            false => fs::remove_file(&entry),
        } {
            tracing::warn!(path = %entry.display(), %error, "cannot be removed");
        }
    }
    Ok(entries)
}

/// Removes a folder in two steps, of which the first makes it disappear.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let gone = folder.with_file_name(format!(".removed-{name}"));
    fs::rename(folder, &gone)?;
    fs::remove_dir_all(&gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folders::claim(dir.path()).unwrap();
        let error = Folders::claim(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another server uses it"), "{error}");
        drop(first);
        Folders::claim(dir.path()).unwrap();
    }

    #[test]
    fn what_is_not_finished_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["file-1", ".part-2", "file-3"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        remove(&dir.path().join("file-3")).unwrap();
        let entries = entries(dir.path()).unwrap();
        assert_eq!(entries, [dir.path().join("file-1")]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &[1, 2]).unwrap();
        write_json(&path, &[3]).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), [3]);
        write(&path, b"{").unwrap();
        let error = read_json::<Vec<u8>>(&path).unwrap_err().to_string();
        assert!(error.contains("a.json"), "{error}");
    }
}
