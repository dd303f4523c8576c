//! The data that comes with the programs: a small model and sample data to train it on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::hub::describe;

/// The environment variable that names the folder of the bundled data.
pub const DATA_VARIABLE: &str = "QWEN_BURN_DATA";
/// What a package calls the folder.
const SHARE: &str = "share/qwen-burn";

/// Why there is no bundled data.
#[derive(Debug, thiserror::Error)]
pub enum NoBundledData {
    /// The variable names another folder.
    #[error("{DATA_VARIABLE}={}: expected a folder with model/config.json, found {found}", folder.display())]
    Variable {
        /// The folder.
        folder: PathBuf,
        /// What it holds.
        found: String,
    },
    /// It is in none of the places where it may be.
    #[error(
        "no --model given and no bundled model found; looked for model/config.json in {}: name a model folder or a hub id such \
         as Qwen/Qwen2.5-0.5B-Instruct with --model, or set {DATA_VARIABLE} to the folder `data` of qwen-burn",
        shown(looked)
    )]
    Nowhere {
        /// The places.
        looked: Vec<PathBuf>,
    },
}

fn shown(places: &[PathBuf]) -> String {
    let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
    places.join(", ")
}

/// The folder of the data that comes with the programs. It has the folder `model` and the files `train.jsonl` and
/// `eval.jsonl`. It is the one that `QWEN_BURN_DATA` names, or else `../share/qwen-burn` or `data` beside the program, or else
/// `data` of the source tree.
///
/// # Errors
/// When it isn't there; the message says where it was looked for.
pub fn bundled_data_dir() -> Result<PathBuf, NoBundledData> {
    find(std::env::var_os(DATA_VARIABLE), &programs())
}

/// The model in [`bundled_data_dir`].
///
/// # Errors
/// As [`bundled_data_dir`].
pub fn bundled_model_dir() -> Result<PathBuf, NoBundledData> {
    bundled_data_dir().map(|folder| folder.join("model"))
}

/// The program's own path, also without links: a package manager may link a program into a folder of all programs.
fn programs() -> Vec<PathBuf> {
    // The system says nothing in a container without `/proc`.
    let called = || std::env::args_os().next().map(PathBuf::from);
    let program = std::env::current_exe().ok().or_else(called);
    let Some(program) = program.filter(|path| path.is_absolute()) else {
        return Vec::new();
    };
    let resolved = program.canonicalize().ok().map(plain);
    let resolved = resolved.filter(|path| *path != program);
    [program].into_iter().chain(resolved).collect()
}

/// A resolved path of Windows without the prefix that other programs refuse.
fn plain(path: PathBuf) -> PathBuf {
    let drive = path.to_str().and_then(|text| text.strip_prefix(r"\\?\"));
    let drive = drive.filter(|rest| rest.as_bytes().get(1) == Some(&b':'));
    match drive {
        Some(rest) => PathBuf::from(rest),
        None => path,
    }
}

fn find(variable: Option<OsString>, programs: &[PathBuf]) -> Result<PathBuf, NoBundledData> {
    if let Some(folder) = variable.filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        return match holds_model(&folder) {
            true => Ok(folder),
            false => Err(NoBundledData::Variable {
                found: describe::folder(&folder),
                folder,
            }),
        };
    }
    let looked = places(programs);
    match looked.iter().find(|folder| holds_model(folder)) {
        Some(folder) => Ok(folder.clone()),
        None => Err(NoBundledData::Nowhere { looked }),
    }
}

fn holds_model(folder: &Path) -> bool {
    folder.join("model/config.json").is_file()
}

/// Where the folder may be. No path has `..` in it: an adapter's configuration may keep it.
fn places(programs: &[PathBuf]) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for folder in programs.iter().filter_map(|program| program.parent()) {
        places.extend(folder.parent().map(|prefix| prefix.join(SHARE)));
        places.push(folder.join("data"));
    }
    // A source tree that was moved after the build.
    let moved = programs
        .iter()
        .flat_map(|program| program.ancestors())
        .find(|folder| folder.join("crates/model-qwen").is_dir());
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    places.extend(moved.or(built).map(|tree| tree.join("data")));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with an empty model.
    fn data(folder: &Path) -> PathBuf {
        std::fs::create_dir_all(folder.join("model")).unwrap();
        std::fs::write(folder.join("model/config.json"), "{}").unwrap();
        folder.to_owned()
    }

    #[test]
    fn a_package_comes_before_the_source_tree_and_the_variable_before_both() {
        let tree = find(None, &[]).unwrap();
        assert_eq!(tree.file_name().unwrap(), "data");
        assert!(!tree.components().any(|part| part.as_os_str() == ".."));

        let dir = tempfile::tempdir().unwrap();
        let programs = [dir.path().join("prefix/bin/server")];
        assert_eq!(find(None, &programs).unwrap(), tree);
        let beside = data(&dir.path().join("prefix/bin/data"));
        assert_eq!(find(None, &programs).unwrap(), beside);
        let share = data(&dir.path().join("prefix/share/qwen-burn"));
        assert_eq!(find(None, &programs).unwrap(), share);
        let named = data(&dir.path().join("named"));
        assert_eq!(find(Some(named.clone().into()), &programs).unwrap(), named);
        assert_eq!(find(Some(OsString::new()), &programs).unwrap(), share);
    }

    #[test]
    fn a_source_tree_may_be_moved_after_the_build() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("crates/model-qwen")).unwrap();
        let moved = data(&dir.path().join("data"));
        let program = dir.path().join("target/debug/server");
        assert_eq!(find(None, &[program]).unwrap(), moved);
    }

    #[test]
    fn an_error_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = find(Some(dir.path().into()), &[]).unwrap_err().to_string();
        assert!(wrong.starts_with("QWEN_BURN_DATA="), "{wrong}");
        let looked = places(&["/opt/qb/bin/server".into()]);
        let nowhere = NoBundledData::Nowhere { looked }.to_string();
        for place in [
            "/opt/qb/share/qwen-burn",
            "/opt/qb/bin/data",
            "QWEN_BURN_DATA",
        ] {
            assert!(nowhere.contains(place), "{nowhere}");
        }
    }
}
