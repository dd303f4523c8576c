//! Which folders clients may load adapters from.

use std::fs;
use std::path::{Component, Path, PathBuf};

use lora_4bit::peft::{CONFIG_FILE, WEIGHTS_FILE};

use super::{ConfigError, LoraModule};

/// Folders, without links, in which the adapters must lie that a client names by their path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoraRoots(Vec<PathBuf>);

/// Why a path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoraRootError {
    /// It leads elsewhere, or to nothing.
    #[error(
        "`lora_path` is refused: clients may load adapters only from the folders that --lora-roots and --lora-modules name"
    )]
    Outside,
    /// It is, or goes through, a link in one of them that leads out of all.
    #[error(
        "`lora_path` is refused: it goes through a link that leads out of the folders that --lora-roots and --lora-modules name"
    )]
    LeadsOut,
    /// One of the adapter's files is a link to elsewhere.
    #[error(
        "`lora_path` is refused: its {file} is a link that leads out of the folders that --lora-roots and --lora-modules name"
    )]
    LinkOutside {
        /// The file.
        file: &'static str,
    },
    /// It would lie in one of them.
    #[error(
        "no LoRA adapter at {0}: no such folder; an adapter must be a local one, so download it first from a hub"
    )]
    Missing(String),
}

impl LoraRoots {
    /// The folders of `--lora-roots`, and those of the adapters that are loaded at start.
    ///
    /// # Errors
    /// [`ConfigError::Flag`] for a root that is no folder.
    pub(super) fn new(roots: &[PathBuf], modules: &[LoraModule]) -> Result<Self, ConfigError> {
        let mut folders = Vec::new();
        for root in roots {
            let fail = |reason: String| ConfigError::Flag {
                flag: "--lora-roots",
                message: format!("{}: {reason}", root.display()),
            };
            let folder = fs::canonicalize(root).map_err(|error| fail(error.to_string()))?;
            if !folder.is_dir() {
                return Err(fail("expected a folder, found a file".to_owned()));
            }
            folders.push(folder);
        }
        // A folder that is not there is an error of its own, when it is loaded.
        let named = modules.iter();
        folders.extend(named.filter_map(|module| fs::canonicalize(&module.path).ok()));
        Ok(Self(folders))
    }

    /// The folder that a client means, without links. A relative path begins where the server was started, or else at a root.
    ///
    /// # Errors
    /// [`LoraRootError`].
    pub fn resolve(&self, path: &str) -> Result<PathBuf, LoraRootError> {
        let (mut is_missing, mut leads_out) = (false, false);
        let here = std::path::absolute(path).ok();
        for candidate in here
            .into_iter()
            .chain(self.0.iter().map(|root| root.join(path)))
        {
            match fs::canonicalize(&candidate) {
                Ok(folder) if self.contain(&folder) => {
                    self.check_files(&folder)?;
                    return Ok(folder);
                }
                Ok(_) => leads_out |= self.would_contain(&candidate),
                Err(_) if !self.would_contain(&candidate) => {}
                Err(_) => match self.has_link_out(&candidate) {
                    true => leads_out = true,
                    false => is_missing = true,
                },
            }
        }
        Err(match (leads_out, is_missing) {
            (true, _) => LoraRootError::LeadsOut,
            (false, true) => LoraRootError::Missing(path.to_owned()),
            (false, false) => LoraRootError::Outside,
        })
    }

    fn contain(&self, path: &Path) -> bool {
        self.0.iter().any(|root| path.starts_with(root))
    }

    /// Whether a path that leads to nothing lies in a root: nothing is told of what lies elsewhere.
    fn would_contain(&self, path: &Path) -> bool {
        let climbs = path
            .components()
            .any(|component| component == Component::ParentDir);
        !climbs && self.contain(path)
    }

    /// Whether a path in a root goes through a link to elsewhere, whatever is there.
    fn has_link_out(&self, path: &Path) -> bool {
        let mut prefixes = path.ancestors().filter(|prefix| self.contain(prefix));
        prefixes.any(|prefix| {
            let Ok(target) = fs::read_link(prefix) else {
                return false;
            };
            let target = prefix.parent().unwrap_or(prefix).join(target);
            !self.contain(&without_parents(&target))
        })
    }

    fn check_files(&self, folder: &Path) -> Result<(), LoraRootError> {
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            let path = folder.join(file);
            let is_outside = match fs::canonicalize(&path) {
                Ok(real) => !self.contain(&real),
                // What is missing is named when it is read.
                Err(_) => self.has_link_out(&path),
            };
            if is_outside {
                return Err(LoraRootError::LinkOutside { file });
            }
        }
        Ok(())
    }
}

/// A path without `..`, as it is written.
fn without_parents(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(found.pop()),
            Component::CurDir => {}
            other => found.push(other),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            fs::write(folder.join(file), "{}").unwrap();
        }
        fs::canonicalize(folder).unwrap()
    }

    fn roots(root: &Path) -> LoraRoots {
        LoraRoots::new(&[root.to_owned()], &[]).unwrap()
    }

    #[test]
    fn paths_in_a_root_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let inside = adapter(&root.join("team/sql"));
        let roots = roots(&root);
        for path in [
            root.join("team/sql"),
            root.join("team/../team/./sql/"),
            PathBuf::from("team/sql"),
            PathBuf::from("./team//sql"),
        ] {
            assert_eq!(roots.resolve(path.to_str().unwrap()).as_ref(), Ok(&inside));
        }
        let missing = root.join("no");
        for path in [missing.to_str().unwrap(), "no", "~", "file:///etc"] {
            let missing = LoraRootError::Missing(path.to_owned());
            assert_eq!(roots.resolve(path), Err(missing));
        }
    }

    #[test]
    fn what_lies_elsewhere_is_refused_whether_or_not_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        adapter(&root.join("a"));
        let outside = adapter(&dir.path().join("root-2"));
        let roots = roots(&root);
        for path in [
            outside.to_str().unwrap(),
            "/etc",
            "/etc/passwd",
            "/no/such/folder",
            "../root-2",
            "a/../../root-2",
            "a/../../no",
            "..",
            "a/../~",
        ] {
            assert_eq!(roots.resolve(path), Err(LoraRootError::Outside), "{path}");
        }
        let climbing = root.join("../root-2");
        let climbing = roots.resolve(climbing.to_str().unwrap());
        assert_eq!(climbing, Err(LoraRootError::Outside));
        assert_eq!(
            LoraRoots::default().resolve(outside.to_str().unwrap()),
            Err(LoraRootError::Outside)
        );
    }

    #[test]
    fn adapters_of_the_start_may_be_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let named = adapter(&dir.path().join("named"));
        let other = adapter(&dir.path().join("other"));
        let modules = ["named", "missing"].map(|name| LoraModule {
            name: name.to_owned(),
            path: dir.path().join(name),
        });
        let roots = LoraRoots::new(&[], &modules).unwrap();
        assert_eq!(roots.resolve(named.to_str().unwrap()), Ok(named));
        let other = roots.resolve(other.to_str().unwrap());
        assert_eq!(other, Err(LoraRootError::Outside));
        let wrong = LoraRoots::new(&[dir.path().join("no")], &[]).unwrap_err();
        assert!(wrong.to_string().starts_with("--lora-roots: "), "{wrong}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_before_they_are_judged() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let inside = adapter(&root.join("a"));
        let outside = adapter(&dir.path().join("outside"));
        symlink(&outside, root.join("out")).unwrap();
        symlink(&inside, root.join("in")).unwrap();
        symlink(&root, dir.path().join("to-root")).unwrap();
        symlink(root.join("self"), root.join("self")).unwrap();
        let linked = root.join("linked");
        fs::create_dir(&linked).unwrap();
        symlink(outside.join(WEIGHTS_FILE), linked.join(WEIGHTS_FILE)).unwrap();
        let roots = roots(&dir.path().join("to-root"));
        assert_eq!(roots.resolve("out"), Err(LoraRootError::LeadsOut));
        assert_eq!(roots.resolve("in"), Ok(inside.clone()));
        // The same whether or not something is there.
        symlink("/no/such/folder", root.join("dangling")).unwrap();
        symlink("../../no", root.join("climbing")).unwrap();
        for path in ["dangling", "climbing", "out/no", "dangling/no"] {
            assert_eq!(roots.resolve(path), Err(LoraRootError::LeadsOut), "{path}");
            let path = roots.0[0].join(path);
            let found = roots.resolve(path.to_str().unwrap());
            assert_eq!(found, Err(LoraRootError::LeadsOut), "{path:?}");
        }
        let module = LoraModule {
            name: "b".to_owned(),
            path: adapter(&dir.path().join("b")),
        };
        let two = LoraRoots::new(std::slice::from_ref(&root), &[module]).unwrap();
        assert_eq!(two.resolve("out"), Err(LoraRootError::LeadsOut));
        let through = dir.path().join("to-root/a");
        assert_eq!(roots.resolve(through.to_str().unwrap()), Ok(inside));
        assert!(matches!(
            roots.resolve("self"),
            Err(LoraRootError::Missing(_))
        ));
        let file = WEIGHTS_FILE;
        assert_eq!(
            roots.resolve("linked"),
            Err(LoraRootError::LinkOutside { file })
        );
    }
}
