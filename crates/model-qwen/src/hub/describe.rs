//! What stands where a model was expected, for error messages.

use std::fs;
use std::path::{Path, PathBuf};

use lora_4bit::peft::by_number;
use serde_json::Value;

use crate::links::dangling;
use crate::model_folder::{CONFIG, INDEX, MODULE_FILES, TEXT_FILES};

/// Folders that are looked into.
const MAX_FOLDERS: usize = 100;

/// What is at `path`, where no model is, and what may be meant.
pub(crate) fn folder(path: &Path) -> String {
    if path.is_file() {
        return file(path);
    }
    if let Some(link) = dangling(path) {
        return link;
    }
    if let Some((name, link)) = dangling_in(path) {
        return format!("{name}, which is {link}");
    }
    let Ok(entries) = fs::read_dir(path) else {
        return "no readable folder".to_owned();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut found = match names.len() {
        0 => "an empty folder".to_owned(),
        1..=8 => names.join(", "),
        more => format!("{} and {} more", names[..8].join(", "), more - 8),
    };
    if names.iter().any(|name| name == "adapter_config.json") {
        found.push_str(&adapter(path));
    } else if let Some(model) = below(path) {
        found.push_str(&format!(" (did you mean {}?)", model.display()));
    }
    found
}

/// The first file that a model folder is read from and that is a link to what is not there, by its name, and what it is.
pub(crate) fn dangling_in(dir: &Path) -> Option<(String, String)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let names = links.filter_map(|entry| entry.file_name().into_string().ok());
    let is_read = |name: &str| {
        [CONFIG, INDEX].contains(&name)
            || name.ends_with(".safetensors")
            || TEXT_FILES.contains(&name)
            || MODULE_FILES.contains(&name)
    };
    let names = names.filter(|name| is_read(name) && !name.starts_with("adapter_"));
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names.into_iter().find_map(|name| {
        let link = dangling(&dir.join(&name))?;
        Some((name, link))
    })
}

fn file(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    match extension.to_ascii_lowercase().as_str() {
        "gguf" => "a GGUF file, which is not read: give a folder with config.json and safetensors"
            .to_owned(),
        "safetensors" | "json" => "a file of a model: give its folder".to_owned(),
        _ => "a file".to_owned(),
    }
}

/// What an adapter needs.
fn adapter(path: &Path) -> String {
    let config = fs::read(path.join("adapter_config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    let base = config["base_model_name_or_path"].as_str();
    let base = base.map_or_else(String::new, |base| format!(", {base}"));
    format!(": a LoRA adapter: give the base model{base}, and the adapter beside it")
}

/// The last of the model folders up to two levels below.
fn below(path: &Path) -> Option<PathBuf> {
    let inner = |folders: Vec<PathBuf>| -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flat_map(|entries| entries.flatten().take(MAX_FOLDERS))
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .take(MAX_FOLDERS)
            .collect();
        found.sort_by_cached_key(|folder| by_number(folder));
        found
    };
    let first = inner(vec![path.to_path_buf()]);
    let second = inner(first.clone());
    let is_model = |folder: &PathBuf| folder.join("config.json").is_file();
    first.into_iter().chain(second).rfind(is_model)
}

/// What may be meant by a name that is none.
pub(super) fn hint(given: &str) -> String {
    let rest = ["https://", "http://", "hf://"]
        .iter()
        .find_map(|scheme| given.strip_prefix(scheme));
    if let Some(rest) = rest {
        let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
        return match (given.starts_with("hf://"), parts.as_slice()) {
            (true, [org, name, ..]) | (false, [_, org, name, ..]) => {
                format!("; did you mean {org}/{name}? An address is set by HF_ENDPOINT")
            }
            _ => "; an address is set by HF_ENDPOINT".to_owned(),
        };
    }
    match given.starts_with('~') {
        true => "; `~` is a shell's name of the home folder: write it without quotes".to_owned(),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_meant_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("outer/inner");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("config.json"), "{}").unwrap();
        let meant = format!("did you mean {}?", inner.display());
        assert!(
            folder(dir.path()).contains(&meant),
            "{}",
            folder(dir.path())
        );

        let config = r#"{"base_model_name_or_path": "org/base"}"#;
        let adapter = dir.path().join("adapter");
        fs::create_dir(&adapter).unwrap();
        fs::write(adapter.join("adapter_config.json"), config).unwrap();
        let said = folder(&adapter);
        assert!(
            said.contains("a LoRA adapter: give the base model, org/base"),
            "{said}"
        );

        #[cfg(unix)]
        {
            let snapshot = dir.path().join("snapshot");
            fs::create_dir(&snapshot).unwrap();
            fs::write(snapshot.join("config.json"), "{}").unwrap();
            std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("tokenizer.json")).unwrap();
            let expected = "tokenizer.json, which is a link to ../../blobs/abc, which is not there: copy the folder with \
                `cp -L`, or mount the whole models--... folder";
            assert_eq!(folder(&snapshot), expected);
            let resolve = |path: &Path| {
                let resolved = crate::hub::resolve_model(path.to_str().unwrap());
                resolved.unwrap_err().to_string()
            };
            assert!(resolve(&snapshot).ends_with(expected));
            let link = dir.path().join("link");
            std::os::unix::fs::symlink("elsewhere", &link).unwrap();
            let said = resolve(&link);
            assert!(
                said.contains("found a link to elsewhere, which is not there"),
                "{said}"
            );
        }

        let gguf = dir.path().join("m.gguf");
        fs::write(&gguf, "GGUF").unwrap();
        assert!(folder(&gguf).contains("a GGUF file"));
        for (given, expected) in [
            (
                "https://huggingface.co/Qwen/Qwen3-0.6B",
                "did you mean Qwen/Qwen3-0.6B?",
            ),
            ("hf://Qwen/Qwen3-0.6B", "did you mean Qwen/Qwen3-0.6B?"),
            ("~/model", "home folder"),
        ] {
            assert!(hint(given).contains(expected), "{given}");
        }
    }
}
