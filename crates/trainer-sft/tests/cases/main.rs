//! Data and runs as people bring them: the program on the bundled model, from files to messages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod answers;
mod data;
mod ends;
mod files;
mod marks;
mod model;
mod pairs;
mod runs;
#[path = "../support/mod.rs"]
mod support;
mod tables;
mod turns;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use support::{Said, data_folder, program, text_of};

/// `--preview 99` of these lines with more flags.
#[track_caller]
fn preview(lines: &[Value], flags: &[&str]) -> Said {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.jsonl");
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&path, lines.concat()).unwrap();
    program(&[&["--data", text_of(&path), "--preview", "99"], flags].concat())
}

/// The learnt tokens of each example, brackets and separators left out.
#[track_caller]
fn learnt(said: &Said) -> Vec<String> {
    assert!(said.is_success(), "{}", said.err);
    let mut examples: Vec<String> = Vec::new();
    for line in said.out.lines() {
        if line.starts_with("── ") {
            examples.push(String::new());
            continue;
        }
        for piece in line
            .split("]|[")
            .collect::<Vec<_>>()
            .concat()
            .split('[')
            .skip(1)
        {
            let learnt = piece.split(']').next().unwrap();
            examples.last_mut().unwrap().push_str(learnt);
        }
    }
    examples.pop();
    examples
}

/// The bundled model with Qwen2.5's chat template, which writes tool calls.
fn with_tools() -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_model(folder.path());
    let golden = data_folder().join("golden/chat_template/qwen2_5.json");
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let template = golden["template"].as_str().unwrap();
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

/// The files of the bundled model; the large one is a link.
fn copy_model(folder: &Path) {
    let model = data_folder().join("model").canonicalize().unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    ] {
        fs::copy(model.join(name), folder.join(name)).unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(
        model.join("model.safetensors"),
        folder.join("model.safetensors"),
    )
    .unwrap();
    #[cfg(not(unix))]
    fs::copy(
        model.join("model.safetensors"),
        folder.join("model.safetensors"),
    )
    .unwrap();
}

/// Changes a JSON file of a model folder.
fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join(name);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(value.as_object_mut().unwrap());
    fs::write(path, value.to_string()).unwrap();
}

fn messages(turns: &[(&str, &str)]) -> Value {
    let turns = turns
        .iter()
        .map(|(role, content)| json!({"role": role, "content": content}));
    json!({"messages": turns.collect::<Vec<_>>()})
}

fn sharegpt(turns: &[(&str, &str)]) -> Value {
    let turns = turns
        .iter()
        .map(|(from, value)| json!({"from": from, "value": value}));
    json!({"conversations": turns.collect::<Vec<_>>()})
}
