//! The memory that `trainer-sft merge` takes: that of one tensor, however large the base is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::text_of;

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 4096;
const LAYERS: usize = 8;
const VOCAB: usize = 32_000;

/// A base model of 330 MiB: zeros, that take no room on the disk.
fn base(folder: &Path) -> u64 {
    fs::create_dir(folder).unwrap();
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": VOCAB, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: Vec<usize>| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        };
        for name in ["q_proj", "k_proj", "v_proj"] {
            add(&format!("self_attn.{name}.bias"), vec![HIDDEN]);
        }
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}.weight"), vec![HIDDEN, HIDDEN]);
        }
        for name in ["gate_proj", "up_proj"] {
            add(&format!("mlp.{name}.weight"), vec![INTERMEDIATE, HIDDEN]);
        }
        add("mlp.down_proj.weight", vec![HIDDEN, INTERMEDIATE]);
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(&format!("{name}.weight"), vec![HIDDEN]);
        }
    }
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let info = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, info);
    }
    let mut header = Value::Object(header).to_string();
    header.extend(vec![' '; header.len().next_multiple_of(8) - header.len()]);
    let mut file = File::create_new(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    end as u64
}

/// An adapter that changes every down projection.
fn adapter(folder: &Path) {
    let modules = (0..LAYERS).map(|layer| {
        let matrices = LoraMatrices {
            a: vec![0.01; 8 * INTERMEDIATE],
            b: vec![0.5; 8 * HIDDEN],
            r: 8,
            in_features: INTERMEDIATE,
            out_features: HIDDEN,
            magnitude: None,
        };
        (format!("model.layers.{layer}.mlp.down_proj"), matrices)
    });
    let adapter = LoraAdapter {
        config: LoraConfig::default(),
        modules: modules.collect(),
        saved: BTreeMap::new(),
    };
    adapter.save(folder).unwrap();
}

/// Runs a merge. Gives the most memory that the process has had, in bytes, as last seen while it ran.
fn peak_of(arguments: &[&str]) -> u64 {
    let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
    let program = program.arg("merge").args(arguments);
    let program = program.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = program.spawn().unwrap();
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let status = loop {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success());
    peak
}

#[test]
fn a_merge_holds_a_small_part_of_the_model() {
    if !Path::new("/proc/self/status").exists() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let [model, lora, dense, small] =
        ["base", "lora", "dense", "small"].map(|name| folder.path().join(name));
    let size = base(&model);
    assert!(size > 300 << 20, "{size}");
    adapter(&lora);
    let flags = [
        "--model",
        text_of(&model),
        "--adapter",
        text_of(&lora),
        "--output",
    ];
    let peak = peak_of(&[&flags[..], &[text_of(&dense)]].concat());
    assert!(dense.join("model.safetensors").metadata().unwrap().len() > size);
    // The largest tensor has 63 MiB.
    assert!((1 << 20..130 << 20).contains(&peak), "{} MiB", peak >> 20);
    fs::remove_dir_all(&dense).unwrap();
    // In 4 bits it also holds the 4-bit weights of a file.
    let nf4 = [text_of(&small), "--quantization", "nf4"];
    let peak = peak_of(&[&flags[..], &nf4].concat());
    assert!((1 << 20..200 << 20).contains(&peak), "{} MiB", peak >> 20);
}
