//! The trainer against TRL, PEFT, PyTorch and bitsandbytes: what the tests of the files in `data/golden` share.

#![allow(clippy::unwrap_used)]

#[path = "../support/golden.rs"]
mod files;
mod gradients;
mod grpo;
mod methods;
mod optimizers;
mod preference;
#[path = "../support/gradients.rs"]
mod steps;
mod training;

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::LoraWeights;
use model_qwen::{Quantization, QwenModel};
use serde::Deserialize;
use trainer_sft::batch::Batch;
use trainer_sft::config::LrSchedule;
use trainer_sft::optimizer::AdamWConfig;
use trainer_sft::parameters::Trainable;
use trainer_sft::schedule::{Schedule, Shape};
use trainer_sft::trainer::{Trainer, TrainerOptions};

use self::files::{Sequence, golden, load, packed, peft_name, read_json, tensors};

/// How far a loss may be from the peer's: absolute where losses are of the order of one, otherwise as each test says.
const LOSS_TOLERANCE: f64 = 1e-4;
/// How far a value of an adapter may be from the peer's; the runs of these tests are within a millionth.
const ADAPTER_TOLERANCE: f32 = 2e-5;

/// Micro-batches of each optimizer step of supervised training.
fn batches() -> Vec<Vec<Batch>> {
    let steps: Vec<Vec<Vec<Sequence>>> = read_json("training/batches.json");
    let steps = steps.iter();
    steps
        .map(|step| step.iter().map(|micro| packed(micro)).collect())
        .collect()
}

/// The tiny model that all runs start from, in f32 on the CPU.
fn base() -> QwenModel {
    let folder = golden("training/model");
    load(&folder, Quantization::None, &Device::flex())
}

/// Cosine schedule with `warmup_steps`, AdamW with a weight decay of 0.01, gradients of a norm of 1 at most.
fn cosine(
    trainable: Trainable,
    learning_rate: f64,
    warmup_steps: usize,
    total_steps: usize,
) -> TrainerOptions {
    TrainerOptions {
        schedule: Schedule {
            kind: LrSchedule::Cosine,
            warmup_steps,
            total_steps,
            shape: Shape::default(),
        },
        optimizer: AdamWConfig {
            weight_decay: 0.01,
            ..AdamWConfig::default()
        },
        ..TrainerOptions::constant(trainable, learning_rate, total_steps)
    }
}

/// What a peer logged of each step.
#[derive(Deserialize)]
struct Log {
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    /// Learning rates, where the peer logged them.
    #[serde(default)]
    lr: Vec<f64>,
}

/// Trains on `batches`, and compares each step.
fn check_log(trainer: &mut Trainer, batches: &[Vec<Batch>], log: &Log) {
    assert_eq!(batches.len(), log.loss.len());
    for (step, batches) in batches.iter().enumerate() {
        let output = trainer.step(batches);
        let numbers = output.numbers();
        let (loss, norm) = (numbers.means.loss, numbers.grad_norm);
        let expected = log.loss[step];
        assert!(
            (loss - expected).abs() < LOSS_TOLERANCE,
            "step {step}: loss {loss}, expected {expected}"
        );
        let expected = log.grad_norm[step];
        assert!(
            (norm - expected).abs() < 1e-3 * expected,
            "step {step}: norm {norm}, expected {expected}"
        );
        if let Some(rate) = log.lr.get(step) {
            assert!((output.learning_rate - rate).abs() < 1e-12, "step {step}");
        }
    }
}

/// Puts the adapter that runs start with into each of `slots`.
fn start_adapters(model: &mut QwenModel, slots: &[usize]) {
    let initial = tensors(&golden("training/initial.safetensors"));
    let device = model.device();
    let modules: Vec<String> = model.linears().into_iter().map(|(name, _)| name).collect();
    assert_eq!(modules.len() * 2, initial.len());
    for module in &modules {
        for &slot in slots {
            let tensor = |matrix| {
                let (shape, values) = initial[&peft_name(module, matrix)].clone();
                let data = TensorData::new(values, [shape[0], shape[1]]);
                Tensor::<2>::from_data(data, (&device, DType::F32))
            };
            let weights = LoraWeights::new(tensor("A"), tensor("B"), 2.0);
            let linear = model.linear_mut(module).unwrap();
            linear.set_adapter(slot, Some(weights));
        }
    }
}

/// Compares the adapter in slot 0 with a file of PEFT's, which must be far from the start.
fn check_adapter(model: &QwenModel, name: &str) {
    let initial = tensors(&golden("training/initial.safetensors"));
    let expected = tensors(&golden(name));
    let (mut worst, mut moved) = (0f32, 0f32);
    for (module, linear) in model.linears() {
        let weights = linear.adapter(0).unwrap();
        for (matrix, tensor) in [("A", &weights.a), ("B", &weights.b_t.clone().transpose())] {
            let name = peft_name(&module, matrix);
            let (_, values) = &expected[&name];
            let found: Vec<f32> = tensor.to_data().iter::<f32>().collect();
            assert_eq!(found.len(), values.len());
            worst = worst.max(largest_difference(&found, values));
            moved = moved.max(largest_difference(&initial[&name].1, values));
        }
    }
    assert!(moved > 10.0 * ADAPTER_TOLERANCE, "too short a run: {moved}");
    assert!(worst < ADAPTER_TOLERANCE, "largest difference {worst}");
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0f32, f32::max)
}
