//! The trainer against PyTorch, PEFT and bitsandbytes: same start, same batches, same losses and weights after every step.
//!
//! The files come from `xtask/golden/training.py`; `data/golden/training/meta.json` records versions and tolerances.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
use model_qwen::{Quantization, QwenModel};
use serde::Deserialize;
use trainer_sft::config::{Config, LrSchedule, OptimizerConfig};
use trainer_sft::optimizer::{AdamW, AdamWConfig, StepRate, clip_factor};
use trainer_sft::parameters::Trainable;
use trainer_sft::schedule::{Schedule, Shape};
use trainer_sft::trainer::{Trainer, TrainerOptions};

use super::{
    Log, base, batches, check_adapter, check_log, cosine, golden, load, read_json, start_adapters,
};

const STEPS: usize = 50;

fn logs() -> BTreeMap<String, Log> {
    read_json("training/losses.json")
}

/// Trains on the batches of `log`, whose learning rates are compared, too.
fn train(model: QwenModel, options: TrainerOptions, log: &Log) -> Trainer {
    let mut trainer = Trainer::new(model, options);
    assert_eq!(log.lr.len(), log.loss.len());
    check_log(&mut trainer, &batches()[..log.loss.len()], log);
    trainer
}

fn check_adapter_run(name: &str, quantization: Quantization) {
    let mut model = load(&golden("training/model"), quantization, &Device::flex());
    start_adapters(&mut model, &[0]);
    let log = &logs()[name];
    assert_eq!(log.loss.len(), STEPS);
    let options = cosine(Trainable::Adapter { slot: 0 }, 1e-3, 5, STEPS);
    let trainer = train(model, options, log);
    check_adapter(trainer.model(), &format!("training/{name}.safetensors"));
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
    let log = &logs()["full"];
    let mut options = cosine(Trainable::Full, 3e-3, 5, log.loss.len());
    options.optimizer.beta2 = 0.95;
    train(base(), options, log);
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
    let golden: Vec<Golden> = read_json("training/schedules.json");
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
    let golden: Golden = read_json("training/optimizer.json");
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
