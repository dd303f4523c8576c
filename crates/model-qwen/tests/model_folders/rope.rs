//! RoPE against transformers (`xtask/golden/rope.py`).

use burn::tensor::Tensor;
use kv_paging::CausalAttention;
use lora_4bit::AdapterSelection;
use model_qwen::rotary::RotaryFrequencies;
use model_qwen::{QwenConfig, QwenModel};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

use crate::Folder;

#[derive(Deserialize)]
struct Frequencies {
    name: String,
    config: Value,
    inv_freq: Vec<f64>,
    scale: f64,
}

#[derive(Deserialize)]
struct Scores {
    text: String,
    num_tokens: usize,
    cases: Vec<Score>,
}

#[derive(Deserialize)]
struct Score {
    name: String,
    edit: Map<String, Value>,
    logprobs: f64,
}

fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden/rope");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[track_caller]
fn assert_close(name: &str, found: f32, expected: f64) {
    let difference = (f64::from(found) - expected).abs();
    assert!(
        difference <= 1e-6 * expected.abs(),
        "{name}: {found}, expected {expected}"
    );
}

#[test]
fn frequencies_are_those_of_transformers() {
    let cases: Vec<Frequencies> = serde_json::from_str(&golden("frequencies.json")).unwrap();
    assert!(cases.len() > 20, "{}", cases.len());
    for case in cases {
        let text = case.config.to_string();
        let config = QwenConfig::from_json(&text, Path::new("config.json")).unwrap();
        let found = RotaryFrequencies::new(&config);
        assert_eq!(found.inv_freq().len(), case.inv_freq.len(), "{}", case.name);
        for (&found, &expected) in found.inv_freq().iter().zip(&case.inv_freq) {
            assert_close(&case.name, found, expected);
        }
        assert_close(&case.name, found.scale(), case.scale);
        // As this crate writes the file.
        let written = config.to_json().to_string();
        let written = QwenConfig::from_json(&written, Path::new("config.json")).unwrap();
        let written = RotaryFrequencies::new(&written);
        assert_eq!(written.inv_freq(), found.inv_freq(), "{}", case.name);
        assert_eq!(written.scale(), found.scale(), "{}", case.name);
    }
}

/// The summed log-probabilities of all tokens but the first.
fn score(model: &QwenModel, tokens: &[u32]) -> f64 {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut attention = CausalAttention::new(&[tokens.len()]);
    let hidden = model.forward(tokens, &positions, &AdapterSelection::Base, &mut attention);
    let logits: Tensor<2> = model.logits(hidden); // [tokens, vocab]
    let logits: Vec<f32> = logits.into_data().try_into_vec().unwrap();
    let rows = logits
        .chunks_exact(model.config.vocab_size)
        .zip(&tokens[1..]);
    rows.map(|(row, &next)| {
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
        f64::from(row[next as usize] - largest) - sum.ln()
    })
    .sum()
}

fn edited(edit: &Map<String, Value>) -> Folder {
    let folder = Folder::new();
    folder.edit("config.json", |json| {
        let removed = edit.get("remove").and_then(Value::as_array).cloned();
        for key in removed.into_iter().flatten() {
            json.remove(key.as_str().unwrap());
        }
        let set = edit.iter().filter(|(key, _)| *key != "remove");
        json.extend(set.map(|(key, value)| (key.clone(), value.clone())));
    });
    folder
}

#[test]
fn the_bundled_model_scores_a_text_as_in_transformers() {
    let golden: Scores = serde_json::from_str(&golden("scores.json")).unwrap();
    let mut scores = std::collections::BTreeMap::new();
    for case in &golden.cases {
        let folder = edited(&case.edit);
        let tokens = folder.tokenizer().encode(&golden.text, true).unwrap();
        assert_eq!(tokens.len(), golden.num_tokens);
        let model = folder.load().unwrap();
        let found = score(&model, &tokens);
        let name = &case.name;
        assert!(
            (found - case.logprobs).abs() < 0.01,
            "{name}: {found}, expected {}",
            case.logprobs
        );
        scores.insert(name.as_str(), (found, model.config.context_length()));
    }
    // A card's YaRN is the same whether the limit was extended before or not.
    assert_eq!(scores["card"], scores["extended"]);
    assert_eq!(scores["card"].1, 4096);
    assert_eq!(scores["both places"], scores["extended"]);
    let effect = scores["plain"].0 - scores["card"].0;
    assert!(effect.abs() > 1.0, "the settings have an effect: {effect}");

    // `attn_factor`, which transformers doesn't know, is a factor of the magnitude of YaRN, as in vLLM.
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
        "attn_factor": 1.0 / (0.1 * 4f64.ln() + 1.0)});
    let edit = json!({"max_position_embeddings": 4096, "rope_scaling": yarn});
    let folder = edited(edit.as_object().unwrap());
    let tokens = folder.tokenizer().encode(&golden.text, true).unwrap();
    let found = score(&folder.load().unwrap(), &tokens);
    assert!((found - scores["attention 1"].0).abs() < 1e-3, "{found}");
}
