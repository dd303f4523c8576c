//! The file of a result, which is opened before anything is measured.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// An open file that still has what it had before.
pub(super) struct ResultFile {
    flag: &'static str,
    path: PathBuf,
    file: File,
    appends: bool,
    /// Whether it is to be removed if nothing is written.
    is_new: bool,
}

impl ResultFile {
    /// Opens or creates what `flag` names.
    pub(super) fn open(flag: &'static str, path: PathBuf, appends: bool) -> Result<Self> {
        let context = || format!("{flag}: cannot write {}", path.display());
        let is_new = fs::symlink_metadata(&path).is_err();
        let mut options = OpenOptions::new();
        options.create(true).append(appends);
        options.write(true).truncate(false);
        let file = options.open(&path).with_context(context)?;
        Ok(Self {
            flag,
            path,
            file,
            appends,
            is_new,
        })
    }

    /// Writes a result: instead of what the file has, or on a new line behind it.
    pub(super) fn write(mut self, text: &str) -> Result<()> {
        self.write_text(text)
            .with_context(|| format!("{}: cannot write {}", self.flag, self.path.display()))?;
        self.is_new = false;
        tracing::info!(path = %self.path.display(), "result written");
        Ok(())
    }

    fn write_text(&mut self, text: &str) -> std::io::Result<()> {
        let metadata = self.file.metadata()?;
        match self.appends {
            true if metadata.len() > 0 => self.file.write_all(b"\n")?,
            // A pipe or a device cannot be emptied.
            false if metadata.is_file() => self.file.set_len(0)?,
            _ => {}
        }
        self.file.write_all(text.as_bytes())?;
        self.file.flush()
    }
}

impl Drop for ResultFile {
    fn drop(&mut self) {
        if self.is_new {
            // What is left behind is an empty file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_result_replaces_a_result() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.json");
        drop(ResultFile::open("--f", path.clone(), false).unwrap());
        assert!(!path.exists());
        let write = |text: &str, appends| {
            let file = ResultFile::open("--f", path.clone(), appends).unwrap();
            file.write(text).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(write("long text", false), "long text");
        drop(ResultFile::open("--f", path.clone(), false).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "long text");
        assert_eq!(write("short", false), "short");
        assert_eq!(write("more", true), "short\nmore");
        let error = ResultFile::open("--f", path.join("c"), false)
            .err()
            .unwrap();
        assert!(error.to_string().contains("--f: cannot write"), "{error}");
    }
}
