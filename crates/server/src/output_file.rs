//! A file that is opened before there is anything to write, and keeps until then what it has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// An open file, whose errors name its flag and its path.
#[derive(Debug)]
pub(crate) struct OutputFile {
    flag: &'static str,
    path: PathBuf,
    file: File,
    appends: bool,
    /// Whether it is to be removed if nothing is written.
    is_new: bool,
}

impl OutputFile {
    /// Opens or creates what `flag` names.
    pub(crate) fn open(flag: &'static str, path: PathBuf, appends: bool) -> Result<Self> {
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

    /// The file itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether it has something.
    pub(crate) fn has_content(&self) -> bool {
        let metadata = self.file.metadata();
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
    }

    /// Removes what the file has, or begins a new line behind it. From now on it stays.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.is_new = false;
        match (self.has_content(), self.appends) {
            (false, _) => Ok(()),
            (true, true) => self.write_all(b"\n"),
            (true, false) => {
                let emptied = self.file.set_len(0);
                emptied.map_err(|error| self.named("cannot empty", &error))
            }
        }
    }

    /// Writes a result: instead of what the file has, or on a new line behind it. Without it, a new file is removed.
    pub(crate) fn write_result(mut self, text: &str) -> Result<()> {
        let is_new = self.is_new;
        let written = self.begin();
        let written = written.and_then(|()| self.write_all(text.as_bytes()));
        if let Err(error) = written.and_then(|()| self.flush()) {
            self.is_new = is_new;
            return Err(error.into());
        }
        tracing::info!(path = %self.path.display(), "result written");
        Ok(())
    }

    fn named(&self, what: &str, error: &io::Error) -> io::Error {
        let (flag, path) = (self.flag, self.path.display());
        io::Error::new(error.kind(), format!("{flag}: {what} {path}: {error}"))
    }
}

/// An interruption stays one, after which the caller tries again.
impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        written.map_err(|error| self.named("cannot write", &error))
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.file.flush();
        flushed.map_err(|error| self.named("cannot write", &error))
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.is_new {
            // What is left behind is an empty file, or a part of a result.
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
        drop(OutputFile::open("--f", path.clone(), false).unwrap());
        assert!(!path.exists());
        let write = |text: &str, appends| {
            let file = OutputFile::open("--f", path.clone(), appends).unwrap();
            file.write_result(text).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(write("long text", false), "long text");
        drop(OutputFile::open("--f", path.clone(), false).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "long text");
        assert_eq!(write("short", false), "short");
        assert_eq!(write("more", true), "short\nmore");
        let error = OutputFile::open("--f", path.join("c"), false).unwrap_err();
        assert!(error.to_string().contains("--f: cannot write"), "{error}");
    }

    #[test]
    fn what_has_begun_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.jsonl");
        let mut file = OutputFile::open("--f", path.clone(), false).unwrap();
        assert!(!file.has_content());
        file.begin().unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::write(&path, "old").unwrap();
        let mut file = OutputFile::open("--f", path.clone(), false).unwrap();
        assert!(file.has_content());
        file.begin().unwrap();
        file.write_all(b"new lines").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new lines");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_error_names_flag_and_path() {
        let file = OutputFile::open("--f", "/dev/full".into(), false).unwrap();
        let error = file.write_result("x").unwrap_err().to_string();
        assert!(
            error.starts_with("--f: cannot write /dev/full: "),
            "{error}"
        );
    }
}
