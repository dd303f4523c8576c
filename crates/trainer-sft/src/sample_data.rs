//! The sample data that comes with the program.

use std::path::PathBuf;

/// A file of the sample data.
pub(crate) fn file(name: &str) -> Option<PathBuf> {
    let path = model_qwen::bundled_data_dir().ok()?.join(name);
    path.is_file().then_some(path)
}

/// A file to learn from that is there: the sample of the repository that is the current folder, or else the one that comes
/// with the program.
pub(crate) fn example() -> Option<PathBuf> {
    let here = PathBuf::from("data/train.jsonl");
    match here.is_file() {
        true => Some(here),
        false => file("train.jsonl"),
    }
}
