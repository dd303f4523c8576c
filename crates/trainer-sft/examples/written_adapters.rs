//! Trains an adapter of every form on the bundled model, and writes beside each what the model computes with it, for
//! `xtask/golden/peft_loads.py`.

#![allow(clippy::print_stdout, reason = "the folders are the result")]

use std::path::Path;

use anyhow::Context as _;
use burn::tensor::Device;
use kv_paging::CausalAttention;
use lora_4bit::peft::LoraAdapter;
use lora_4bit::{AdapterSelection, ComputeDtype};
use model_qwen::{Dtype, LoadOptions, Quantization, QwenModel, bundled_model_dir};
use safetensors::tensor::{Dtype as Stored, TensorView, serialize_to_file};
use serde_json::json;
use trainer_sft::Training;
use trainer_sft::config::{Config, InitLora};
use trainer_sft::lora::{SLOT, put_adapter};

type Change = fn(&mut Config);

const FORMS: [(&str, Change); 6] = [
    ("plain", |_| ()),
    ("dora", |config| config.lora.use_dora = true),
    ("modules_to_save", |config| {
        config.lora.modules_to_save = vec!["embed_tokens".into(), "lm_head".into()];
    }),
    ("pissa", |config| {
        config.lora.init = InitLora::Pissa { iterations: None };
    }),
    ("olora", |config| config.lora.init = InitLora::Olora),
    ("rslora", |config| config.lora.use_rslora = true),
];

/// Token ids of the bundled model.
const TOKENS: [u32; 12] = [1, 301, 77, 1500, 4096, 12, 8000, 640, 2, 1, 333, 999];

fn main() -> anyhow::Result<()> {
    let folder = std::env::args()
        .nth(1)
        .context("usage: written_adapters FOLDER")?;
    for (name, change) in FORMS {
        let mut config = Config::new(Path::new(&folder).join(name));
        config.model.quantization = Some(Quantization::None);
        config.lora.r = 4;
        config.optimizer.learning_rate = Some(5e-3);
        config.run.max_steps = Some(4);
        change(&mut config);
        let record = |i: usize| json!({"prompt": format!("Who is {i}?"), "completion": "I am the captain of this ship."});
        let training = Training::new(&config).device(&Device::flex());
        let summary = training.records((0..8).map(record)).run()?;
        write_logits(&summary.output)?;
        println!("{}", summary.output.display());
    }
    Ok(())
}

/// Writes `logits.safetensors`: `input_ids [1, tokens]`, and `logits [1, tokens, vocab]` of the bundled model with the adapter, in f32.
fn write_logits(adapter: &Path) -> anyhow::Result<()> {
    let options = LoadOptions {
        dtype: Dtype::F32,
        ..LoadOptions::default()
    };
    let mut model = QwenModel::load(&bundled_model_dir()?, &options, &Device::flex())?;
    model.set_compute_dtype(ComputeDtype::F32);
    put_adapter(&mut model, SLOT, LoraAdapter::load(adapter)?)?;
    let positions: Vec<u32> = (0..TOKENS.len() as u32).collect();
    let mut attention = CausalAttention::new(&[TOKENS.len()]);
    let selection = AdapterSelection::all(SLOT);
    let hidden = model.forward(&TOKENS, &positions, &selection, &mut attention);
    let logits = model.logits(hidden); // [tokens, vocab]
    let [tokens, vocab] = logits.dims();
    let values: Vec<u8> = logits
        .into_data()
        .iter::<f32>()
        .flat_map(f32::to_le_bytes)
        .collect();
    let ids: Vec<u8> = TOKENS
        .iter()
        .flat_map(|id| i64::from(*id).to_le_bytes())
        .collect();
    let tensors = [
        (
            "input_ids",
            TensorView::new(Stored::I64, vec![1, tokens], &ids)?,
        ),
        (
            "logits",
            TensorView::new(Stored::F32, vec![1, tokens, vocab], &values)?,
        ),
    ];
    Ok(serialize_to_file(
        tensors,
        None,
        &adapter.join("logits.safetensors"),
    )?)
}
