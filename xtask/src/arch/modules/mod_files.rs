//! The files of modules.

use std::collections::BTreeMap;

use super::super::source::{ModFile, Source};

impl ModFile {
    /// The files of a module that `file` declares, and whether files of children stand next to each.
    pub(super) fn files(
        &self,
        file: &str,
        is_root: bool,
        exists: impl Fn(&str) -> bool,
    ) -> Vec<(String, bool)> {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        let beside = |path: &str| normal(&format!("{folder}/{path}"));
        let mut below = match is_root || name == "mod.rs" {
            true => folder.to_owned(),
            false => format!("{folder}/{}", name.trim_end_matches(".rs")),
        };
        for part in self.inside.iter().chain([&self.name]) {
            below = format!("{below}/{part}");
        }
        let of_name = [
            (format!("{below}.rs"), false),
            (format!("{below}/mod.rs"), true),
        ];
        let mut files = match &self.path {
            Some(path) => vec![(beside(path), true)],
            None => of_name.to_vec(),
        };
        files.extend(self.other_path.iter().map(|path| (beside(path), true)));
        files.retain(|(file, _)| exists(file));
        files
    }
}

/// The path without `..`.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Calls `note` with a file and the files of the modules below it, and whether each is one of a test. `is_root` is as in
/// `Crate::load`.
pub(in super::super) fn note_files(
    (file, is_root): (&str, bool),
    files: &BTreeMap<String, Source>,
    is_test: bool,
    note: &mut impl FnMut(&str, bool),
) {
    note(file, is_test);
    for declared in &files[file].mods {
        let is_test = is_test || declared.is_test;
        for (child, is_root) in declared.files(file, is_root, |file| files.contains_key(file)) {
            note_files((&child, is_root), files, is_test, note);
        }
    }
}
