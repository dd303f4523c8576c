//! Results that appear whole or not at all: written beside their place, and renamed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ToolError;
use super::error::io_error;
use crate::space;

/// What is being written at the moment.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is being written: for a program that ends at once.
pub fn discard_unfinished() {
    unfinished().drain(..).for_each(|path| remove(&path));
}

/// Half a result is none.
fn remove(path: &Path) {
    let _ = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// A file or folder that is being written under another name. It is removed again unless it is published.
#[derive(Debug)]
pub(super) struct Staging {
    output: PathBuf,
    path: PathBuf,
    is_published: bool,
}

impl Staging {
    /// A new folder beside `output`, which must not exist, on a disk with room for `needed` bytes.
    pub(super) fn folder(output: &Path, needed: u64) -> Result<Self, ToolError> {
        let staging = Self::new(output, needed)?;
        fs::create_dir(&staging.path).map_err(io_error(&staging.path))?;
        Ok(staging)
    }

    /// A file beside `output`, which must not exist, on a disk with room for `needed` bytes. It is not made yet.
    pub(super) fn file(output: &Path, needed: u64) -> Result<Self, ToolError> {
        Self::new(output, needed)
    }

    fn new(output: &Path, needed: u64) -> Result<Self, ToolError> {
        check_new(output)?;
        let Some(name) = output.file_name() else {
            return Err(ToolError::Flag {
                flag: "output",
                expected: "a path whose last part is a name".to_owned(),
                found: output.display().to_string(),
            });
        };
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        if let Some([needed, free]) = space::lacking(parent, needed) {
            return Err(ToolError::Space {
                folder: parent.to_owned(),
                needed,
                free,
            });
        }
        let name = name.to_string_lossy();
        let path = parent.join(format!(".{name}.{}.part", std::process::id()));
        unfinished().push(path.clone());
        Ok(Self {
            output: output.to_owned(),
            path,
            is_published: false,
        })
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives what is in this folder under `name` the name of the result. All else in it is removed with `self`.
    pub(super) fn publish_inner(&self, name: &str) -> Result<(), ToolError> {
        check_new(&self.output)?;
        fs::rename(self.path.join(name), &self.output).map_err(io_error(&self.output))
    }

    /// Gives the result its name.
    pub(super) fn publish(mut self) -> Result<(), ToolError> {
        // A link is refused where something exists by now; a rename would replace it.
        let is_file = self.path.is_file();
        let linked = match is_file {
            true => fs::hard_link(&self.path, &self.output),
            false => Err(io::ErrorKind::Unsupported.into()),
        };
        match linked {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ToolError::Exists {
                    path: self.output.clone(),
                });
            }
            Err(_) => check_new(&self.output)?,
        }
        fs::rename(&self.path, &self.output).map_err(io_error(&self.output))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        unfinished().retain(|path| *path != self.path);
        if !self.is_published {
            // Of a file with two names, one goes.
            remove(&self.path);
        }
    }
}

/// Refuses a path at which there is something.
pub(super) fn check_new(output: &Path) -> Result<(), ToolError> {
    match fs::symlink_metadata(output) {
        Ok(_) => Err(ToolError::Exists {
            path: output.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(output)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("a/b/model.gguf");
        let staging = Staging::file(&output, 0).unwrap();
        fs::write(staging.path(), "half").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(output.parent().unwrap()).unwrap().count(), 0);
        let staging = Staging::file(&output, 0).unwrap();
        fs::write(staging.path(), "whole").unwrap();
        staging.publish().unwrap();
        assert_eq!(fs::read_dir(output.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&output).unwrap(), "whole");
        let error = Staging::folder(&output, 0).unwrap_err().to_string();
        assert!(error.contains("nothing is overwritten"), "{error}");
    }

    #[test]
    fn what_came_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model.gguf");
        let staging = Staging::file(&output, 0).unwrap();
        fs::write(staging.path(), "new").unwrap();
        fs::write(&output, "old").unwrap();
        assert!(matches!(staging.publish(), Err(ToolError::Exists { .. })));
        assert_eq!(fs::read_to_string(&output).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn too_little_room_is_said_in_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let error = Staging::folder(&folder.path().join("x"), u64::MAX).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(" MiB of room, found "), "{error}");
    }
}
