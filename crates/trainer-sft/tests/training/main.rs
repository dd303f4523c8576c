//! What must hold for any model and batch: splitting, packing, recomputing and resuming change nothing.

#![allow(clippy::unwrap_used)]

mod gradients;
mod replicas;
mod runs;

#[path = "../support/adapter.rs"]
mod support;

use burn::tensor::{Device, Tensor};
use model_qwen::{QwenConfig, QwenModel};
use trainer_sft::batch::Batch;
use trainer_sft::lora::SLOT;
use trainer_sft::optimizer::AdamWConfig;
use trainer_sft::parameters::{Trainable, visit_model};
use trainer_sft::step::Checkpointing;
use trainer_sft::trainer::TrainerOptions;

const VOCAB: u32 = 97;

fn config(tied: bool, qk_norm: bool) -> QwenConfig {
    let model_type = if qk_norm { "qwen3" } else { "qwen2" };
    let text = format!(
        r#"{{"model_type": "{model_type}", "vocab_size": {VOCAB}, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": {tied}, "eos_token_id": 0, "torch_dtype": "float32"}}"#
    );
    QwenConfig::from_json(&text, "config.json".as_ref()).unwrap()
}

/// A random model whose weights are large enough for every gradient to matter.
fn model(tied: bool, qk_norm: bool) -> QwenModel {
    let mut model = QwenModel::random(config(tied, qk_norm), 7, &Device::flex());
    visit_model(&mut model, Trainable::Full, &mut |name, parameter| {
        if !name.contains("norm") {
            parameter.replace(|value| value.mul_scalar(6.0));
        }
    });
    model
}

/// As [`model`], with an adapter whose B is not zero.
fn model_with_adapter() -> QwenModel {
    let mut model = model(true, false);
    let adapter = support::adapter(&model, 3);
    model.add_adapter(SLOT, &adapter).unwrap();
    model
}

/// As [`model_with_adapter`], with DoRA.
fn model_with_dora() -> QwenModel {
    let mut model = model(true, false);
    let mut adapter = support::adapter(&model, 3);
    adapter.config.use_dora = true;
    for matrices in adapter.modules.values_mut() {
        matrices.magnitude = Some(vec![0.7; matrices.out_features]);
    }
    model.add_adapter(SLOT, &adapter).unwrap();
    model
}

fn options(trainable: Trainable) -> TrainerOptions {
    TrainerOptions {
        seed: 5,
        ..TrainerOptions::constant(trainable, 1e-2, 10)
    }
}

/// One document of `length` tokens that is learnt from position `prompt` on.
fn document(seed: u32, length: u32, prompt: u32) -> Batch {
    let tokens: Vec<u32> = (0..length)
        .map(|i| (seed * 31 + i * i * 7 + i * seed) % VOCAB)
        .collect();
    let next = |i: u32| (i + 1 < length && i + 1 >= prompt).then(|| tokens[i as usize + 1]);
    Batch {
        targets: (0..length).map(next).collect(),
        positions: (0..length).collect(),
        lengths: vec![length as usize],
        tokens,
        ..Batch::default()
    }
}

fn documents() -> Vec<Batch> {
    [
        (1, 5, 2),
        (2, 17, 9),
        (3, 2, 1),
        (4, 11, 3),
        (5, 23, 20),
        (6, 8, 1),
        (7, 3, 2),
        (8, 13, 6),
    ]
    .map(|(seed, length, prompt)| document(seed, length, prompt))
    .to_vec()
}

fn pack(documents: &[Batch]) -> Batch {
    documents
        .iter()
        .fold(Batch::default(), |mut packed, document| {
            packed.tokens.extend(&document.tokens);
            packed.positions.extend(&document.positions);
            packed.targets.extend(&document.targets);
            packed.lengths.extend(&document.lengths);
            packed
        })
}

fn values(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let scale = expected
        .iter()
        .fold(1e-3f32, |max, value| max.max(value.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{name}[{i}]: {a}, expected {b}"
        );
    }
}
