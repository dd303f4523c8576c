//! The trainer against PyTorch, PEFT and bitsandbytes: same start, same batches, same losses and weights after every step.
//!
//! The files come from `xtask/golden/training.py`; `data/golden/training/meta.json` records versions and tolerances.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::LoraWeights;
use model_qwen::{Dtype, LoadOptions, Quantization, QwenModel};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use trainer_sft::batch::Batch;
use trainer_sft::config::{Config, LrSchedule, OptimizerConfig};
use trainer_sft::optimizer::{AdamW, AdamWConfig, StepRate, clip_factor};
use trainer_sft::parameters::Trainable;
use trainer_sft::schedule::{Schedule, Shape};
use trainer_sft::step::Checkpointing;
use trainer_sft::trainer::{Trainer, TrainerOptions};

const LOSS_TOLERANCE: f64 = 1e-4;
const ADAPTER_TOLERANCE: f32 = 1e-3;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../data/golden/training")
        .join(name)
}

fn read_json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    labels: Vec<i64>,
}

/// Micro-batches of each optimizer step.
fn batches() -> Vec<Vec<Batch>> {
    let steps: Vec<Vec<Vec<Sequence>>> = read_json("batches.json");
    steps
        .iter()
        .map(|step| step.iter().map(|sequences| pack(sequences)).collect())
        .collect()
}

fn pack(sequences: &[Sequence]) -> Batch {
    let mut batch = Batch::default();
    for Sequence { tokens, labels } in sequences {
        batch.tokens.extend(tokens);
        batch.positions.extend(0..tokens.len() as u32);
        let next = labels[1..].iter().map(|&label| u32::try_from(label).ok());
        batch.targets.extend(next.chain([None]));
        batch.lengths.push(tokens.len());
    }
    batch
}

#[derive(Deserialize)]
struct Log {
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    lr: Vec<f64>,
}

fn adapter_file(name: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(golden(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        data.chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    file.iter()
        .map(|(name, view)| {
            (
                name.to_owned(),
                (view.shape().to_vec(), values(view.data())),
            )
        })
        .collect()
}

fn peft_name(module: &str, matrix: &str) -> String {
    format!("base_model.model.{module}.lora_{matrix}.weight")
}

fn load(quantization: Quantization, device: &Device) -> QwenModel {
    let options = LoadOptions {
        dtype: Dtype::F32,
        quantization,
        double_quant: true,
        int8_lm_head: false,
        embeddings_on_cpu: false,
        lm_head: true,
    };
    QwenModel::load(&golden("model"), &options, device).unwrap()
}

fn options(
    trainable: Trainable,
    learning_rate: f64,
    beta2: f64,
    total_steps: usize,
) -> TrainerOptions {
    TrainerOptions {
        trainable,
        learning_rate,
        schedule: Schedule {
            kind: LrSchedule::Cosine,
            warmup_steps: 5,
            total_steps,
            shape: Shape::default(),
        },
        optimizer: AdamWConfig {
            beta2,
            weight_decay: 0.01,
            ..AdamWConfig::default()
        },
        max_grad_norm: Some(1.0),
        checkpointing: Checkpointing::default(),
        dropout: 0.0,
        loraplus_lr_ratio: 1.0,
        neftune_noise_alpha: None,
        seed: 0,
    }
}

fn check_log(mut trainer: Trainer, batches: &[Vec<Batch>], log: &Log) -> Trainer {
    for (step, batches) in batches.iter().enumerate() {
        let output = trainer.step(batches);
        let (loss, norm) = output.read();
        assert!(
            (loss - log.loss[step]).abs() < LOSS_TOLERANCE,
            "step {step}: loss {loss}, expected {}",
            log.loss[step]
        );
        let expected = log.grad_norm[step];
        assert!(
            (norm - expected).abs() < 1e-3 * expected,
            "step {step}: norm {norm}, expected {expected}"
        );
        assert!(
            (output.learning_rate - log.lr[step]).abs() < 1e-12,
            "step {step}"
        );
    }
    trainer
}

fn check_adapter_run(name: &str, quantization: Quantization) {
    let device = Device::flex();
    let mut model = load(quantization, &device);
    let initial = adapter_file("initial.safetensors");
    let modules: Vec<String> = model.linears().into_iter().map(|(name, _)| name).collect();
    assert_eq!(modules.len() * 2, initial.len());
    for module in &modules {
        let tensor = |matrix| {
            let (shape, values) = initial[&peft_name(module, matrix)].clone();
            Tensor::<2>::from_data(
                TensorData::new(values, [shape[0], shape[1]]),
                (&device, DType::F32),
            )
        };
        let weights = LoraWeights::new(tensor("A"), tensor("B"), 2.0);
        model
            .linear_mut(module)
            .unwrap()
            .set_adapter(0, Some(weights));
    }
    let logs: BTreeMap<String, Log> = read_json("losses.json");
    let batches = batches();
    assert_eq!(batches.len(), 50);
    let trainer = Trainer::new(
        model,
        options(Trainable::Adapter { slot: 0 }, 1e-3, 0.999, 50),
    );
    let trainer = check_log(trainer, &batches, &logs[name]);

    let expected = adapter_file(&format!("{name}.safetensors"));
    let (mut worst, mut moved) = (0f32, 0f32);
    let largest = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0f32, f32::max)
    };
    for (module, linear) in trainer.model.linears() {
        let weights = linear.adapter(0).unwrap();
        for (matrix, tensor) in [("A", &weights.a), ("B", &weights.b_t.clone().transpose())] {
            let (_, values) = &expected[&peft_name(&module, matrix)];
            let found: Vec<f32> = tensor.to_data().iter::<f32>().collect();
            assert_eq!(found.len(), values.len());
            worst = worst.max(largest(&found, values));
            moved = moved.max(largest(&initial[&peft_name(&module, matrix)].1, values));
        }
    }
    assert!(
        moved > 10.0 * ADAPTER_TOLERANCE,
        "the run is too short to show anything"
    );
    assert!(worst < ADAPTER_TOLERANCE, "largest difference {worst}");
}

#[test]
fn lora_trains_as_peft() {
    check_adapter_run("plain", Quantization::None);
}

#[test]
fn qlora_trains_as_peft_with_bitsandbytes() {
    check_adapter_run("nf4", Quantization::Nf4);
}

#[test]
fn full_training_follows_pytorch() {
    let model = load(Quantization::None, &Device::flex());
    let logs: BTreeMap<String, Log> = read_json("losses.json");
    let log = &logs["full"];
    let steps = log.loss.len();
    let trainer = Trainer::new(model, options(Trainable::Full, 3e-3, 0.95, steps));
    check_log(trainer, &batches()[..steps], log);
}

#[test]
fn schedules_are_those_of_transformers() {
    #[derive(Deserialize)]
    struct Golden {
        schedule: LrSchedule,
        warmup: usize,
        total: usize,
        min_lr: Option<f64>,
        min_lr_rate: Option<f64>,
        lr_power: Option<f64>,
        lr_decay_steps: Option<usize>,
        factors: Vec<f64>,
    }
    let golden: Vec<Golden> = read_json("schedules.json");
    assert_eq!(golden.len(), 23);
    for Golden {
        schedule,
        warmup,
        total,
        min_lr,
        min_lr_rate,
        lr_power,
        lr_decay_steps,
        factors,
    } in golden
    {
        let mut config = Config::new("");
        config.optimizer = OptimizerConfig {
            learning_rate: Some(2e-4),
            lr_schedule: schedule,
            // 1e-7 is the default of polynomial, here as there.
            min_lr: min_lr.filter(|rate| *rate != 1e-7),
            min_lr_rate,
            lr_power,
            lr_decay_steps,
            ..OptimizerConfig::default()
        };
        let ours = Schedule {
            kind: schedule,
            warmup_steps: warmup,
            total_steps: total,
            shape: Shape::of(&config),
        };
        for (step, factor) in factors.iter().enumerate() {
            let found = ours.factor(step);
            assert!(
                (found - factor).abs() < 1e-12,
                "{schedule:?} {warmup}/{total} step {step}: {found}, {factor}"
            );
        }
    }
}

#[test]
fn adamw_and_clipping_are_those_of_torch() {
    #[derive(Deserialize)]
    struct Golden {
        lr: f64,
        weight_decay: f64,
        max_norm: f64,
        start: Vec<f32>,
        grads: Vec<Vec<f32>>,
        norms: Vec<f32>,
        values: Vec<Vec<f32>>,
    }
    let golden: Golden = read_json("optimizer.json");
    let device = Device::flex();
    let tensor = |values: &[f32]| {
        Tensor::<1>::from_data(
            TensorData::new(values.to_vec(), [values.len()]),
            (&device, DType::F32),
        )
    };
    let mut optimizer = AdamW::new(AdamWConfig {
        weight_decay: golden.weight_decay,
        ..AdamWConfig::default()
    });
    let rate = StepRate {
        learning_rate: golden.lr,
        decay: true,
    };
    let mut value = tensor(&golden.start);
    for (step, gradient) in golden.grads.iter().enumerate() {
        let gradient = tensor(gradient);
        let norm = (gradient.clone() * gradient.clone()).sum().sqrt();
        assert!(
            (norm.clone().into_scalar::<f32>() - golden.norms[step]).abs()
                < 1e-5 * golden.norms[step]
        );
        optimizer.begin_step();
        value = optimizer.update(
            "p",
            value,
            gradient,
            Some(&clip_factor(norm, golden.max_norm)),
            rate,
        );
        for (found, expected) in value.to_data().iter::<f32>().zip(&golden.values[step]) {
            assert!(
                (found - expected).abs() < 1e-6,
                "step {step}: {found}, expected {expected}"
            );
        }
    }
}
