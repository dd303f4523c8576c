//! `modules.json`: the parts of a model that sentence-transformers wrote, and the folders that they lie in.

use std::path::{Component, Path};

use serde::Deserialize;

use crate::json_file::{JsonFileError, read_text};

pub(crate) const MODULES: &str = "modules.json";
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
