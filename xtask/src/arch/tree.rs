//! The Rust files of a checkout, and the crates that they make up.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::modules::{Crate, note_files};
use super::source::Source;

/// The Rust files of a checkout.
pub(super) struct Tree {
    /// By their place below the top folder, with `/`. Files of tests are not among them.
    pub(super) files: BTreeMap<String, Source>,
    /// Libraries, programs and examples; no tests.
    pub(super) crates: Vec<Crate>,
    /// Files that no crate has.
    pub(super) lost: Vec<String>,
}

impl Tree {
    /// Reads the checkout in `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut texts = Vec::new();
        for folder in ["crates", "examples", "xtask"] {
            read(&root.join(folder), folder, &mut texts)?;
        }
        Self::new(texts)
    }

    /// Files with these places and texts.
    pub(super) fn new(texts: Vec<(String, String)>) -> Result<Self> {
        let parse = |(place, text): (String, String)| {
            let source = Source::parse(&text).with_context(|| place.clone())?;
            Ok((place, source))
        };
        let files = texts.into_iter().map(parse);
        let mut files = files.collect::<Result<BTreeMap<_, _>>>()?;
        // Whether a file is one of a test, for all files that a crate has.
        let mut known = BTreeMap::new();
        let mut roots = Vec::new();
        for place in files.keys() {
            if let Some(kind) = kind_of(place) {
                let mut note = |file: &str, is_test| {
                    *known.entry(file.to_owned()).or_insert(true) &= is_test;
                };
                note_files((place, true), &files, kind == Kind::Test, &mut note);
                if kind == Kind::Code {
                    roots.push(place.clone());
                }
            }
        }
        let lost = files.keys().filter(|place| !known.contains_key(*place));
        let lost = lost.cloned().collect();
        files.retain(|place, _| !known.get(place).is_some_and(|&is_test| is_test));
        let crates = roots.iter().map(|root| Crate::new(root, &files)).collect();
        Ok(Self {
            files,
            crates,
            lost,
        })
    }

    /// Files with these places and texts, for tests.
    #[cfg(test)]
    pub(super) fn of(texts: &[(&str, &str)]) -> Self {
        let texts = texts.iter();
        let texts = texts.map(|&(place, text)| (place.to_owned(), text.to_owned()));
        Self::new(texts.collect()).unwrap()
    }
}

/// What the file at the root of a crate makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Test,
}

/// The kind of the crate whose root the file is.
fn kind_of(place: &str) -> Option<Kind> {
    match in_package(place)?.as_slice() {
        ["build.rs"] | ["src", "lib.rs" | "main.rs"] => Some(Kind::Code),
        ["src", "bin", _] | ["src", "bin", _, "main.rs"] => Some(Kind::Code),
        ["examples" | "benches", _] | ["examples" | "benches", _, "main.rs"] => Some(Kind::Code),
        ["tests", _] | ["tests", _, "main.rs"] => Some(Kind::Test),
        _ => None,
    }
    .filter(|_| place.ends_with(".rs"))
}

/// Folders of a package with files of Rust.
const FOLDERS: [&str; 4] = ["src", "tests", "examples", "benches"];

/// The parts of a place below the folder of its package. A package may lie in the folder of another one.
fn in_package(place: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = place.split('/').collect();
    let (["crates", _, rest @ ..] | [_, rest @ ..]) = parts.as_slice() else {
        return None;
    };
    let start = rest.iter().position(|part| FOLDERS.contains(part));
    Some(rest[start.unwrap_or(0)..].to_vec())
}

/// The folders and the file below `src` of a package; the last without `.rs`.
pub(super) fn in_src(place: &str) -> Option<Vec<&str>> {
    match in_package(place.strip_suffix(".rs")?)?.as_slice() {
        ["src", rest @ ..] => Some(rest.to_vec()),
        _ => None,
    }
}

fn read(folder: &Path, place: &str, texts: &mut Vec<(String, String)>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let place = format!("{place}/{name}");
        if path.is_dir() {
            if name != "target" {
                read(&path, &place, texts)?;
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).with_context(|| place.clone())?;
            texts.push((place, text));
        }
    }
    Ok(())
}

/// Files that no crate has are compiled by none.
pub(super) fn check(tree: &Tree, wrong: &mut Vec<String>) {
    let lost = tree.lost.iter();
    wrong.extend(lost.map(|place| format!("{place}: no module declares this file")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_tests_are_none_of_the_code() {
        let tree = Tree::of(&[
            (
                "crates/a/src/lib.rs",
                "mod b;\n#[cfg(test)]\nmod tests;\nmod c { mod d; }",
            ),
            ("crates/a/src/b.rs", "#[cfg(test)] mod tests;"),
            ("crates/a/src/b/tests.rs", "mod more;"),
            ("crates/a/src/b/tests/more.rs", ""),
            ("crates/a/src/tests.rs", ""),
            ("crates/a/src/c/d/mod.rs", "mod e;"),
            ("crates/a/src/c/d/e.rs", ""),
            (
                "crates/a/tests/t/main.rs",
                "#[path = \"../support/mod.rs\"] mod support;",
            ),
            ("crates/a/tests/support/mod.rs", ""),
            ("crates/a/examples/x.rs", ""),
            ("examples/other/src/main.rs", ""),
        ]);
        let code: Vec<_> = tree.files.keys().map(String::as_str).collect();
        let expected = [
            "crates/a/examples/x.rs",
            "crates/a/src/b.rs",
            "crates/a/src/c/d/e.rs",
            "crates/a/src/c/d/mod.rs",
            "crates/a/src/lib.rs",
            "examples/other/src/main.rs",
        ];
        assert_eq!(code, expected);
        assert!(tree.lost.is_empty());
    }

    #[test]
    fn lost_files_are_named() {
        let files = [
            ("crates/a/src/lib.rs", "mod b;"),
            ("crates/a/src/b.rs", ""),
            ("crates/a/src/c.rs", ""),
        ];
        let mut wrong = Vec::new();
        check(&Tree::of(&files), &mut wrong);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("crates/a/src/c.rs"));
    }
}
