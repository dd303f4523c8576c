//! What `--data` names: files, folders of files, glob patterns, and standard input.

use std::path::{Path, PathBuf};

use glob::Pattern;
use tracing::{info, warn};

use super::error::DataError;
use crate::commands::quoted;
use crate::sample_data;

/// Stands for standard input.
pub const STDIN: &str = "-";

/// Ends of names that a folder is searched for.
const ENDINGS: [&str; 5] = [".jsonl", ".json", ".ndjson", ".csv", ".tsv"];
/// Files about data, which hold none.
const ABOUT: [&str; 3] = ["dataset_info.json", "dataset_infos.json", "state.json"];
/// First words of names of files to learn from.
const TRAIN: [&str; 2] = ["train", "training"];
/// First words of names of files to evaluate on.
const HELD_OUT: [&str; 7] = [
    "test",
    "valid",
    "validation",
    "val",
    "dev",
    "eval",
    "evaluation",
];
/// Entries that a search for a missing file looks at.
const MAX_ENTRIES: usize = 20_000;

/// The files that `paths` name, in their order; those of a folder or pattern by name.
///
/// # Errors
/// A path that is not there (with what is near it), and a folder or pattern without files.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
        match pattern {
            _ if path.as_os_str() == STDIN => files.push(path.clone()),
            _ if path.is_dir() => files.extend(folder(path)?),
            _ if path.exists() => files.push(path.clone()),
            Some(pattern) => files.extend(matches(pattern)?),
            None => return Err(address(path).unwrap_or_else(|| missing(path))),
        }
    }
    let mut stdin = files.iter().filter(|file| file.as_os_str() == STDIN);
    match stdin.nth(1) {
        Some(_) => Err(DataError::NoFiles {
            what: "standard input (`-`) is given twice, and can be read once".into(),
        }),
        None => Ok(files),
    }
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let wrong = |reason: String| DataError::NoFiles {
        what: format!("the pattern `{pattern}` {reason}"),
    };
    let found = glob::glob(pattern).map_err(|error| wrong(format!("is none: {error}")))?;
    let mut files: Vec<PathBuf> = found.flatten().filter(|path| path.is_file()).collect();
    files.retain(|path| !is_hidden_from(path, pattern));
    files.sort();
    if files.is_empty() {
        return Err(wrong(format!("matches no file in {}", here().display())));
    }
    warn_of_splits(pattern, &files);
    Ok(files)
}

/// Whether a path has a hidden part that no part of the pattern means: `*` does not, as in a shell.
fn is_hidden_from(path: &Path, pattern: &str) -> bool {
    let dotted = pattern.split(std::path::is_separator);
    let dotted = dotted.filter(|part| part.starts_with('.'));
    let dotted: Vec<Pattern> = dotted.filter_map(|part| Pattern::new(part).ok()).collect();
    path.iter().any(|part| {
        let part = part.to_string_lossy();
        part.starts_with('.') && !dotted.iter().any(|own| own.matches(&part))
    })
}

fn folder(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = std::fs::read_dir(folder).map_err(|error| DataError::Io {
        path: folder.into(),
        error,
    })?;
    let mut all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    all.retain(|path| !name(path).starts_with('.'));
    all.sort();
    let is_data = |path: &PathBuf| {
        let name = name(path).to_lowercase();
        let plain = unpacked(&name);
        let is_about = ABOUT.contains(&plain);
        path.is_file() && !is_about && ENDINGS.iter().any(|ending| plain.ends_with(ending))
    };
    let (files, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(is_data);
    let names = |paths: &[PathBuf]| {
        let shown = paths.iter().take(5).map(|path| match path.is_dir() {
            true => format!("{}/", name(path)),
            false => name(path),
        });
        let mut shown: Vec<String> = shown.collect();
        if paths.len() > shown.len() {
            shown.push(format!("and {} more", paths.len() - shown.len()));
        }
        shown.join(", ")
    };
    if files.is_empty() {
        let found = match rest.is_empty() {
            true => "nothing".to_owned(),
            false => names(&rest),
        };
        return Err(DataError::NoFiles {
            what: format!(
                "the folder {}: expected files ending in {} (also with .gz or .zst), found {found}",
                folder.display(),
                ENDINGS.join(", ")
            ),
        });
    }
    if !rest.is_empty() {
        info!("{}: not read: {}", folder.display(), names(&rest));
    }
    warn_of_splits(&folder.display().to_string(), &files);
    Ok(files)
}

/// The word that the name of a file begins with, in lower case.
fn first_word(path: &Path) -> String {
    let name = name(path).to_lowercase();
    let word = name.chars().take_while(char::is_ascii_alphabetic);
    word.collect()
}

/// Files to evaluate on that are read beside those to learn from.
fn held_out(files: &[PathBuf]) -> Option<(&PathBuf, Vec<&PathBuf>)> {
    let is = |path: &Path, words: &[&str]| words.contains(&first_word(path).as_str());
    let train = files.iter().find(|file| is(file, &TRAIN))?;
    let others = files.iter().filter(|file| is(file, &HELD_OUT));
    let others: Vec<&PathBuf> = others.collect();
    (!others.is_empty()).then_some((train, others))
}

/// Warns of a folder or pattern whose files to evaluate on are read with those to learn from.
fn warn_of_splits(what: &str, files: &[PathBuf]) {
    let Some((train, others)) = held_out(files) else {
        return;
    };
    let shown = others.iter().take(5).map(|path| name(path));
    let names: Vec<String> = shown.collect();
    // Of validation and test data, the former.
    let eval = others.iter().find(|file| first_word(file) != "test");
    warn!(
        "{what}: {} of {} files have the names of data to evaluate on ({}), and are read like all others; to keep them apart, \
         give --data {} --eval-data {}",
        others.len(),
        files.len(),
        names.join(", "),
        quoted(&train.display().to_string()),
        quoted(&eval.unwrap_or(&others[0]).display().to_string()),
    );
}

/// A name in lower case without the ending of what the file is packed in, `.gz` or `.zst`.
pub(super) fn unpacked(name: &str) -> &str {
    let plain = name.strip_suffix(".gz").or(name.strip_suffix(".zst"));
    plain.unwrap_or(name)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn here() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| ".".into())
}

/// Data of another machine, which is not fetched.
fn address(path: &Path) -> Option<DataError> {
    let text = path.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    let is_scheme = !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric());
    is_scheme.then(|| DataError::NoFiles {
        what: format!(
            "expected files or folders of this machine, found {text}: download the data first"
        ),
    })
}

/// What to do about a path that looks like the name of a data set on the Hub, such as `tatsu-lab/alpaca`.
fn of_the_hub(path: &Path) -> String {
    let parts: Vec<_> = path.iter().collect();
    match parts.len() == 2 && path.is_relative() && path.extension().is_none() {
        true => format!(
            "; a data set of the Hub has to be downloaded first, for example with `hf download --repo-type dataset {}`",
            path.display()
        ),
        false => String::new(),
    }
}

/// Where the sample data is, for a path of the repository that stands in a README.
fn of_the_sample(path: &Path) -> Option<String> {
    let sample = sample_data::file(path.strip_prefix("data").ok()?.to_str()?)?;
    Some(format!(
        "; the sample that comes with the program is {}",
        sample.display()
    ))
}

/// Says where a path was looked up, and which files may be meant.
fn missing(path: &Path) -> DataError {
    let base = match path.is_absolute() {
        true => path.parent().unwrap_or(path).to_path_buf(),
        false => here(),
    };
    let mut near = Vec::new();
    let mut left = MAX_ENTRIES;
    // The nearest folder above that exists, and at most three levels below it.
    let start = base.ancestors().find(|folder| folder.is_dir());
    if let Some(start) = start {
        search(start, &name(path), 3, &mut left, &mut near);
    }
    near.sort();
    let shown = near.iter().take(3).map(|(_, found)| {
        let relative = found.strip_prefix(here()).unwrap_or(found);
        format!("`{}`", relative.display())
    });
    let shown: Vec<String> = shown.collect();
    DataError::NoFile {
        path: path.into(),
        folder: base,
        near: match shown.is_empty() {
            true => of_the_sample(path).unwrap_or_else(|| of_the_hub(path)),
            false => format!("; did you mean {}?", shown.join(" or ")),
        },
    }
}

/// Collects files of this name, and of almost this name, with how far they are off.
fn search(
    folder: &Path,
    wanted: &str,
    depth: usize,
    left: &mut usize,
    near: &mut Vec<(usize, PathBuf)>,
) {
    let skipped = |name: &str| name.starts_with('.') || ["target", "node_modules"].contains(&name);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        *left = left.saturating_sub(1);
        if *left == 0 {
            return;
        }
        let path = entry.path();
        let found = name(&path);
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            if depth > 0 && !skipped(&found) {
                search(&path, wanted, depth - 1, left, near);
            }
            continue;
        }
        let stem = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let edits = strsim::damerau_levenshtein(&found, wanted);
        if edits <= 2 || stem(&found) == stem(wanted) {
            near.push((edits, path));
        }
    }
}
