//! `modules.json`: the parts of a model that sentence-transformers wrote, and the folders that they lie in.

use std::fs;
use std::io;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::json_file::{JsonFileError, read_text};

pub(crate) const MODULES: &str = "modules.json";
/// What sentence-transformers writes beside [`MODULES`].
const NEIGHBOURS: [&str; 3] = [
    MODULES,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// One part.
#[derive(Deserialize)]
pub(crate) struct Module {
    /// Its folder within the model's; empty for the model itself.
    #[serde(default)]
    pub(crate) path: String,
    /// The class that computes it.
    pub(crate) r#type: String,
}

/// The parts that a folder names; `None` without the file.
pub(crate) fn read_modules(dir: &Path) -> Result<Option<Vec<Module>>, JsonFileError> {
    let path = dir.join(MODULES);
    if !path.exists() {
        return Ok(None);
    }
    let unreadable = |reason| JsonFileError::File {
        path: path.clone(),
        reason,
    };
    let text = read_text(&path).map_err(unreadable)?;
    let modules = serde_json::from_str(&text);
    modules
        .map(Some)
        .map_err(|error| unreadable(format!("expected a list of modules: {error}")))
}

/// The folders of the parts, as far as these lie in the model's own: the file may come from anywhere.
pub(crate) fn module_folders(dir: &Path) -> Vec<String> {
    let modules = read_modules(dir).ok().flatten().unwrap_or_default();
    let paths = modules.into_iter().map(|module| module.path);
    paths.filter(|path| is_inside(path)).collect()
}

fn is_inside(path: &str) -> bool {
    let plain = |part| matches!(part, Component::Normal(_));
    !path.is_empty() && !path.contains([':', '?', '#', '%', '\\']) && {
        Path::new(path).components().all(plain)
    }
}

/// Copies `modules.json` with its neighbours and the folders that it names, unless they are there.
///
/// # Errors
/// When a file, which it names, cannot be read or written.
pub fn copy_modules(input: &Path, output: &Path) -> io::Result<()> {
    for name in NEIGHBOURS {
        copy(&input.join(name), &output.join(name))?;
    }
    for folder in module_folders(input) {
        copy(&input.join(&folder), &output.join(&folder))?;
    }
    Ok(())
}

/// Copies a file, or a folder with what it holds; the copies get the permissions of new files.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).map_err(named(to))?;
        for entry in fs::read_dir(from).map_err(named(from))? {
            let path = entry.map_err(named(from))?.path();
            copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    } else if from.is_file() && !to.exists() {
        let bytes = fs::read(from).map_err(named(from))?;
        fs::write(to, bytes).map_err(named(to))?;
    }
    Ok(())
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_modules_are_copied_unless_they_lie_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        for folder in [input.join("1_Pooling"), output.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        let modules = r#"[{"path": "", "type": "a"}, {"path": "1_Pooling", "type": "b"}, {"path": "2_Normalize", "type": "c"},
            {"path": "../secret", "type": "d"}, {"path": "/etc", "type": "e"}]"#;
        fs::write(input.join(MODULES), modules).unwrap();
        fs::write(input.join("1_Pooling/config.json"), "{}").unwrap();
        assert_eq!(module_folders(&input), ["1_Pooling", "2_Normalize"]);
        copy_modules(&input, &output).unwrap();
        assert!(output.join(MODULES).is_file());
        assert!(output.join("1_Pooling/config.json").is_file());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
