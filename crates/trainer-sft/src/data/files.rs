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

/// What files are read for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    Learn,
    Measure,
}

/// The files that `paths` name to learn from, in their order; those of a folder or pattern by name.
///
/// # Errors
/// A path that is not there (with what is near it), and a folder or pattern without files.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    expand_for(paths, Aim::Learn)
}

/// As [`expand`], of files that are only measured on.
///
/// # Errors
/// As [`expand`].
pub fn expand_to_measure(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    expand_for(paths, Aim::Measure)
}

fn expand_for(paths: &[PathBuf], aim: Aim) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
        match pattern {
            _ if path.as_os_str() == STDIN => files.push(path.clone()),
            _ if path.is_dir() => files.extend(folder(path, aim)?),
            _ if path.exists() => files.push(path.clone()),
            Some(pattern) => files.extend(matches(pattern, aim)?),
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

fn matches(pattern: &str, aim: Aim) -> Result<Vec<PathBuf>, DataError> {
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
    warn_of_splits(pattern, &files, aim);
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

fn folder(folder: &Path, aim: Aim) -> Result<Vec<PathBuf>, DataError> {
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
    warn_of_splits(&folder.display().to_string(), &files, aim);
    Ok(files)
}

/// The word that the name of a file begins with, in lower case.
fn first_word(path: &Path) -> String {
    let name = name(path).to_lowercase();
    let word = name.chars().take_while(char::is_ascii_alphabetic);
    word.collect()
}

/// Files to learn from, and those to evaluate on that are read beside them.
fn held_out(files: &[PathBuf]) -> Option<[Vec<&PathBuf>; 2]> {
    let of = |words: &[&str]| {
        let found = files
            .iter()
            .filter(|file| words.contains(&first_word(file).as_str()));
        found.collect::<Vec<_>>()
    };
    let split = [of(&TRAIN), of(&HELD_OUT)];
    split.iter().all(|part| !part.is_empty()).then_some(split)
}

/// Warns of a folder or pattern whose files to evaluate on are read with those to learn from.
fn warn_of_splits(what: &str, files: &[PathBuf], aim: Aim) {
    let Some([train, others]) = held_out(files) else {
        return;
    };
    // Of validation and test data, the former.
    let first = others.iter().find(|file| first_word(file) != "test");
    let word = first_word(first.unwrap_or(&others[0]));
    let eval = others.iter().filter(|file| first_word(file) == word);
    let eval: Vec<&PathBuf> = eval.copied().collect();
    let (found, kind, apart) = match aim {
        Aim::Learn => {
            let apart = format!(
                "to keep them apart, give --data {} and, for a run, --eval-data {}",
                words_for(&train, files),
                words_for(&eval, files)
            );
            (others, "to evaluate on", apart)
        }
        Aim::Measure => {
            let apart = format!(
                "to measure on the others alone, give --eval-data {} in the place of all",
                words_for(&eval, files)
            );
            (train, "to learn from", apart)
        }
    };
    let names = found.iter().take(5).map(|path| name(path));
    let names: Vec<String> = names.collect();
    warn!(
        "{what}: {} of {} files have the names of data {kind} ({}), and are read like all others; {apart}",
        found.len(),
        files.len(),
        names.join(", "),
    );
}

/// Words of a command line that name `part` of `files` of one folder: a pattern where they are many and it matches no other.
fn words_for(part: &[&PathBuf], files: &[PathBuf]) -> String {
    let texts: Vec<String> = part.iter().map(|path| path.display().to_string()).collect();
    let each = || {
        let words: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
        words.join(" ")
    };
    let (first, rest) = match texts.split_first() {
        Some((first, rest)) if rest.len() > 1 && !first.contains(['*', '?', '[']) => (first, rest),
        _ => return each(),
    };
    let alike = |one: &mut dyn Iterator<Item = char>, other: &mut dyn Iterator<Item = char>| {
        one.zip(other)
            .take_while(|(one, other)| one == other)
            .count()
    };
    let lengths = rest.iter().map(|text| {
        let head = alike(&mut first.chars(), &mut text.chars());
        let tail = alike(&mut first.chars().rev(), &mut text.chars().rev());
        (head, tail)
    });
    let (head, tail) = lengths
        .reduce(|one, other| (one.0.min(other.0), one.1.min(other.1)))
        .unwrap_or_default();
    let head: String = first.chars().take(head).collect();
    let tail = tail.min(first.chars().count() - head.chars().count());
    let tail: String = first.chars().skip(first.chars().count() - tail).collect();
    let is_of_one_folder = !tail.contains(std::path::is_separator);
    let pattern = format!("{head}*{tail}");
    let means = Pattern::new(&pattern).is_ok_and(|pattern| {
        let found = files.iter().filter(|file| pattern.matches_path(file));
        found.count() == part.len()
    });
    match is_of_one_folder && means {
        true => quoted(&pattern),
        false => each(),
    }
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
