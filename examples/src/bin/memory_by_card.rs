//! Which batch fits on which card, for QLoRA, LoRA and full fine-tuning, and what a setting costs, by the plan of
//! `trainer-sft --dry-run`. Needs no card and no model.
//!
//! ```console
//! $ cargo run -p examples --bin memory_by_card
//! ```

#![allow(clippy::print_stdout, reason = "the tables are the result")]

use std::path::Path;

use anyhow::Result;
use burn::tensor::DType;
use lora_4bit::ComputeDtype;
use model_qwen::{GPU_MEMORY_UTILIZATION, Quantization, QwenConfig};
use serde_json::json;
use trainer_sft::config::{Config, Optim};
use trainer_sft::memory::{Machine, MemoryPlan};

/// Name; width, width of the MLP, layers, heads, heads of keys, values of a head, tokens; whether head and embeddings are one, and
/// whether heads have norms (Qwen3).
type Shape = (&'static str, [usize; 7], [bool; 2]);

const MODELS: [Shape; 8] = [
    (
        "Qwen2.5-0.5B",
        [896, 4864, 24, 14, 2, 64, 151_936],
        [true, false],
    ),
    (
        "Qwen3-0.6B",
        [1024, 3072, 28, 16, 8, 128, 151_936],
        [true, true],
    ),
    (
        "Qwen2.5-1.5B",
        [1536, 8960, 28, 12, 2, 128, 151_936],
        [true, false],
    ),
    (
        "R1-Distill-Qwen-1.5B",
        [1536, 8960, 28, 12, 2, 128, 151_936],
        [false, false],
    ),
    (
        "Qwen3-1.7B",
        [2048, 6144, 28, 16, 8, 128, 151_936],
        [true, true],
    ),
    (
        "Qwen2.5-3B",
        [2048, 11_008, 36, 16, 2, 128, 151_936],
        [true, false],
    ),
    (
        "Qwen3-4B",
        [2560, 9728, 36, 32, 8, 128, 151_936],
        [true, true],
    ),
    (
        "Qwen2.5-7B",
        [3584, 18_944, 28, 28, 4, 128, 152_064],
        [false, false],
    ),
];
/// Documents and their tokens.
const BATCHES: [[usize; 2]; 4] = [[1, 1024], [1, 2048], [4, 1024], [4, 2048]];
/// GiB of cards.
const CARDS: [u64; 4] = [6, 8, 12, 24];
/// Tokens are tried in steps of so many, up to this many steps.
const STEP: usize = 256;
const STEPS: usize = 512;

/// Changes the settings of QLoRA.
type Change = fn(&mut Config);

/// How a model is trained.
const KINDS: [(&str, Change); 3] = [
    ("QLoRA", |_| ()),
    ("LoRA, bf16", |config| {
        config.model.quantization = Some(Quantization::None);
    }),
    ("--full", |config| config.run.full = true),
];
/// Settings, and what they change.
const SETTINGS: [(&str, Change); 10] = [
    ("none", |_| ()),
    ("lora_r = 64", |config| config.lora.r = 64),
    ("use_dora", |config| config.lora.use_dora = true),
    ("lora_dropout = 0.05", |config| {
        config.lora.dropout = Some(0.05)
    }),
    ("optim = adamw_8bit", |config| {
        config.optimizer.optim = Optim::Adamw8bit;
    }),
    ("modules_to_save", save_modules),
    ("modules_to_save, adamw_8bit", |config| {
        save_modules(config);
        config.optimizer.optim = Optim::Adamw8bit;
    }),
    ("compute_dtype = f32", |config| {
        config.model.compute_dtype = ComputeDtype::F32;
    }),
    ("full", |config| config.run.full = true),
    ("full, adamw_8bit", |config| {
        config.run.full = true;
        config.optimizer.optim = Optim::Adamw8bit;
    }),
];

fn save_modules(config: &mut Config) {
    config.lora.modules_to_save = vec!["embed_tokens".into(), "lm_head".into()];
}

/// MiB of a card that a run with `tokens` at once takes.
fn mib(change: Change, model: &QwenConfig, tokens: usize) -> u64 {
    let mut config = Config::new("unused");
    change(&mut config);
    let card = Machine {
        gpu_dtype: Some(DType::BF16),
        total: None,
        free: None,
    };
    MemoryPlan::new(&config, model, &card, tokens).total() >> 20
}

fn main() -> Result<()> {
    for (name, change) in KINDS {
        let heads = BATCHES.map(|[documents, tokens]| format!("{documents} × {tokens}"));
        println!(
            "| {name}: MiB, at most | {} |\n|---|---|---|---|---|",
            heads.join(" | ")
        );
        for shape in &MODELS {
            let model = model(shape)?;
            let cells = BATCHES.map(|[documents, tokens]| {
                thousands(mib(change, &model, documents * tokens) as usize)
            });
            println!("| {} | {} |", shape.0, cells.join(" | "));
        }
        let heads = CARDS.map(|gib| format!("{gib} GB"));
        println!(
            "\n| {name}: tokens at once | {} |\n|---|---|---|---|---|",
            heads.join(" | ")
        );
        for shape in &MODELS {
            let model = model(shape)?;
            let cells = CARDS.map(|gib| tokens_at_once(change, &model, gib));
            println!("| {} | {} |", shape.0, cells.join(" | "));
        }
        println!();
    }
    println!("| setting | MiB, at most: 1.5B, 1 × 2048 |\n|---|---|");
    let model = model(&MODELS[2])?;
    for (name, change) in SETTINGS {
        println!(
            "| {name} | {} |",
            thousands(mib(change, &model, 2048) as usize)
        );
    }
    Ok(())
}

/// The most tokens that fit at once on a card of so many GiB.
fn tokens_at_once(change: Change, model: &QwenConfig, gib: u64) -> String {
    let room = ((gib << 10) as f64 * GPU_MEMORY_UTILIZATION) as u64;
    let fits = |steps: &usize| mib(change, model, steps * STEP) <= room;
    match (1..=STEPS).take_while(fits).last() {
        Some(STEPS) => format!("> {}", thousands(STEPS * STEP)),
        Some(steps) => thousands(steps * STEP),
        None => "0".to_owned(),
    }
}

/// 1,234 of 1234.
fn thousands(number: usize) -> String {
    match number / 1000 {
        0 => number.to_string(),
        more => format!("{},{:03}", thousands(more), number % 1000),
    }
}

fn model(
    &(_, [hidden, inner, layers, heads, keys, head_dim, vocab], [is_tied, has_norms]): &Shape,
) -> Result<QwenConfig> {
    let kind = if has_norms { "qwen3" } else { "qwen2" };
    let text = json!({
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "tie_word_embeddings": is_tied,
        "max_position_embeddings": 32_768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    });
    Ok(QwenConfig::from_json(
        &text.to_string(),
        Path::new("config.json"),
    )?)
}
