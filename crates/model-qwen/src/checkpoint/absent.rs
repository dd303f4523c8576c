//! Why a folder has no weights.

use std::path::Path;

use crate::links::dangling;
use crate::model_folder::{INDEX, SINGLE};

/// What explains that a folder has no weights by the names that they are looked for.
pub(super) fn hint(dir: &Path) -> String {
    for name in [SINGLE, INDEX] {
        let path = dir.join(name);
        if let Some(link) = dangling(&path) {
            return format!(" ({name} is {link})");
        }
        if path.is_dir() {
            return format!(" ({name} is a folder, not a file)");
        }
    }
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let is_adapter = |name: &&String| name.starts_with("adapter_");
    let safetensors = names.iter().filter(|name| name.ends_with(".safetensors"));
    let safetensors: Vec<&str> = safetensors
        .filter(|name| !is_adapter(name))
        .map(String::as_str)
        .collect();
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    match safetensors.as_slice() {
        [one] => {
            format!(" ({one} has another name: call it model.safetensors if it is the whole model)")
        }
        [first, .., last] => format!(
            " ({} files from {first} to {last} are shards without the index that belongs to them: fetch it, too)",
            safetensors.len()
        ),
        [] if names.iter().any(|name| name.starts_with("pytorch_model")) => {
            " (pytorch_model.bin must be converted to safetensors)".to_owned()
        }
        [] if has(".gguf") => " (GGUF files are not read)".to_owned(),
        [] if has("adapter_config.json") => {
            " (this is an adapter: name its base model, and load the adapter on it)".to_owned()
        }
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, CheckpointError};

    #[test]
    fn weights_by_other_names_are_named() {
        let hint = |names: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                std::fs::write(dir.path().join(name), "").unwrap();
            }
            match Checkpoint::open(dir.path()) {
                Err(CheckpointError::NoWeights { hint, .. }) => hint,
                _ => panic!("{names:?} are weights"),
            }
        };
        for name in ["consolidated.safetensors", "pytorch_model.safetensors"] {
            let found = hint(&[name, "config.json"]);
            assert!(
                found.starts_with(&format!(" ({name} has another name")),
                "{found}"
            );
        }
        let shards = [
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
        ];
        let found = hint(&shards);
        let expected = format!(
            "2 files from {} to {} are shards without",
            shards[1], shards[0]
        );
        assert!(found.contains(&expected), "{found}");
        let bin = hint(&["pytorch_model-00001-of-00002.bin"]);
        assert!(bin.contains("must be converted"), "{bin}");
        let adapter = hint(&["adapter_config.json", "adapter_model.safetensors"]);
        assert!(adapter.contains("this is an adapter"), "{adapter}");
        assert_eq!(hint(&["config.json"]), "");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_and_a_folder_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join(SINGLE);
        std::os::unix::fs::symlink("../../blobs/abc", &weights).unwrap();
        let error = || Checkpoint::open(dir.path()).unwrap_err().to_string();
        let expected = "(model.safetensors is a link to ../../blobs/abc, which is not there";
        assert!(error().contains(expected), "{}", error());
        std::fs::remove_file(&weights).unwrap();
        std::fs::create_dir(&weights).unwrap();
        let expected = "(model.safetensors is a folder, not a file)";
        assert!(error().contains(expected), "{}", error());
        std::fs::remove_dir(&weights).unwrap();

        let index = r#"{"weight_map": {"a": "1.safetensors"}}"#;
        std::fs::write(dir.path().join(INDEX), index).unwrap();
        std::os::unix::fs::symlink("../x", dir.path().join("1.safetensors")).unwrap();
        let expected = "1 of 1 are missing: 1.safetensors (1.safetensors is a link to ../x, which is not there";
        assert!(error().contains(expected), "{}", error());
    }
}
