//! The commands after training, on the bundled model and on tiny ones: merge, inspect, export and eval.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod chat;
mod check;
mod check_methods;
mod eval;
mod export;
mod gguf_file;
mod init;
mod inspect;
mod merge;
mod merge_memory;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, TargetModules};
use safetensors::SafeTensors;
use serde_json::Value;

use support::{data_folder, program, text_of};

/// Runs the program, which must succeed.
#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let said = program(arguments);
    assert!(said.is_success(), "{}{}", said.out, said.err);
    said.out
}

/// Runs the program, which must fail with a message that has all of `parts`.
#[track_caller]
fn fail(arguments: &[&str], parts: &[&str]) {
    end_with(1, arguments, parts);
}

/// Runs the program, whose command line must be refused with a message that has all of `parts`.
#[track_caller]
fn refuse(arguments: &[&str], parts: &[&str]) {
    end_with(2, arguments, parts);
}

#[track_caller]
fn end_with(code: i32, arguments: &[&str], parts: &[&str]) {
    let said = program(arguments);
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
    assert!(!said.err.contains("panicked"), "{}", said.err);
    for part in parts {
        assert!(
            said.err.contains(part),
            "expected {part:?} in: {}",
            said.err
        );
    }
}

/// Tensors of a safetensors file: dtype, shape and bytes.
fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let dtype = view.dtype().to_string();
            let tensor = (dtype, view.shape().to_vec(), view.data().to_vec());
            (name.to_owned(), tensor)
        })
        .collect()
}

fn bf16s(bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    pairs
        .map(|x| f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16))
        .collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    let fours = bytes.as_chunks::<4>().0.iter();
    fours.map(|x| f32::from_le_bytes(*x)).collect()
}

/// An adapter of the bundled model that changes what it says.
fn adapter(folder: &Path) -> PathBuf {
    let mut state = 1u32;
    let mut random = move |scale: f32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * scale
    };
    let mut modules = BTreeMap::new();
    for layer in 0..8 {
        for (name, in_features, out_features) in [
            ("self_attn.q_proj", 320, 320),
            ("self_attn.v_proj", 320, 64),
            ("mlp.down_proj", 896, 320),
        ] {
            let matrices = LoraMatrices {
                a: (0..4 * in_features).map(|_| random(0.2)).collect(),
                b: (0..4 * out_features).map(|_| random(0.2)).collect(),
                r: 4,
                in_features,
                out_features,
                magnitude: None,
            };
            modules.insert(format!("model.layers.{layer}.{name}"), matrices);
        }
    }
    let config = LoraConfig {
        r: 4,
        lora_alpha: 6.0,
        use_rslora: true,
        target_modules: TargetModules::List(
            ["q_proj", "v_proj", "down_proj"].map(Into::into).to_vec(),
        ),
        base_model_name_or_path: Some(text_of(&data_folder().join("model")).to_owned()),
        ..LoraConfig::default()
    };
    let path = folder.join("adapter");
    let adapter = LoraAdapter {
        config,
        modules,
        saved: BTreeMap::new(),
    };
    adapter.save(&path).unwrap();
    path
}

/// Edits a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A copy of a folder's files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}
