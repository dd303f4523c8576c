//! GRPO against TRL: same start, same answers and rewards, same losses, numbers and weights after every step.
//!
//! The files come from `xtask/golden/grpo.py`; `data/golden/grpo/meta.json` records versions and tolerances.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices};
use model_qwen::QwenModel;
use serde::Deserialize;
use serde_json::Value;
use trainer_sft::config::{
    Config, GrpoOptions, LossType, LrSchedule, Method, MethodConfig, ScaleRewards,
};
use trainer_sft::grpo::advantages::advantages;
use trainer_sft::grpo::{PolicyLoss, Rollout};
use trainer_sft::lora::{SLOT, read_adapter};
use trainer_sft::parameters::Trainable;
use trainer_sft::trainer::Trainer;

use super::{LOSS_TOLERANCE, base, cosine, golden, peft_name, read_json, tensors};

/// How far a value of an adapter may be from TRL's.
const ADAPTER_TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Group {
    prompt: Vec<u32>,
    answers: Vec<Vec<u32>>,
    rewards: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    settings: BTreeMap<String, Value>,
    steps: Vec<BTreeMap<String, f64>>,
}

/// The adapter in a file of PEFT's tensors, alpha being twice the rank.
fn adapter(name: &str, model: &QwenModel) -> LoraAdapter {
    let tensors = tensors(&golden(name));
    let matrix = |module: &str, matrix: &str| tensors[&peft_name(module, matrix)].1.clone();
    let modules = model.linears().into_iter().map(|(name, linear)| {
        let matrices = LoraMatrices {
            a: matrix(&name, "A"),
            b: matrix(&name, "B"),
            r: 4,
            in_features: linear.in_features(),
            out_features: linear.out_features(),
            magnitude: None,
        };
        (name, matrices)
    });
    LoraAdapter {
        modules: modules.collect(),
        config: LoraConfig {
            r: 4,
            lora_alpha: 8.0,
            ..LoraConfig::default()
        },
        saved: BTreeMap::new(),
    }
}

fn trainer() -> Trainer {
    let mut model = base();
    let initial = adapter("training/initial.safetensors", &model);
    model.add_adapter(SLOT, &initial).unwrap();
    let mut options = cosine(Trainable::Adapter { slot: SLOT }, 2e-3, 0, 30);
    options.schedule.kind = LrSchedule::Constant;
    options.optimizer.weight_decay = 0.0;
    Trainer::new(model, options)
}

fn config(case: &Case) -> Config {
    let number = |key: &str| case.settings.get(key).and_then(Value::as_f64);
    let text = |key: &str| case.settings.get(key).and_then(Value::as_str);
    let mut config = Config::new("unused");
    config.method = MethodConfig {
        method: Method::Grpo,
        beta: number("beta"),
        loss_type: text("loss_type").map(|name| match name {
            "grpo" => LossType::Grpo,
            "dr_grpo" => LossType::DrGrpo,
            other => panic!("{other}"),
        }),
        ..MethodConfig::default()
    };
    config.grpo = GrpoOptions {
        epsilon: number("epsilon"),
        epsilon_high: number("epsilon_high"),
        temperature: number("temperature"),
        num_iterations: number("num_iterations").map(|n| n as usize),
        max_completion_length: Some(12),
        scale_rewards: text("scale_rewards").map(|name| match name {
            "batch" => ScaleRewards::Batch,
            "none" => ScaleRewards::None,
            other => panic!("{other}"),
        }),
        ..GrpoOptions::default()
    };
    config
}

#[track_caller]
fn close(step: usize, name: &str, found: f64, expected: &BTreeMap<String, f64>) {
    let expected = expected[name];
    let tolerance = LOSS_TOLERANCE * expected.abs().max(1.0);
    assert!(
        (found - expected).abs() <= tolerance,
        "step {step}: {name} {found}, expected {expected}"
    );
}

fn check(name: &str) {
    let cases: BTreeMap<String, Case> = read_json("grpo/cases.json");
    let generations: Vec<Vec<Group>> = read_json("grpo/rollouts.json");
    let case = &cases[name];
    assert_eq!(case.steps.len(), 30);
    let config = config(case);
    let options = &config.grpo;
    let accumulation = case.settings.get("gradient_accumulation_steps");
    let accumulation = accumulation.and_then(Value::as_u64).unwrap_or(1) as usize;
    let loss = PolicyLoss::of(&config);
    let mut trainer = trainer();
    let mut rollouts = Vec::new();
    for (step, expected) in case.steps.iter().enumerate() {
        if step % options.num_iterations() == 0 {
            let groups = &generations[step / options.num_iterations()];
            let rewards = groups.iter().flat_map(|group| group.rewards.clone());
            let rewards: Vec<f64> = rewards.collect();
            let scale = options.scale_rewards.unwrap_or_default();
            let found = advantages(&rewards, 4, scale);
            close(step, "reward", found.reward, expected);
            close(step, "reward_std", found.reward_std, expected);
            let zero = found.frac_reward_zero_std;
            close(step, "frac_reward_zero_std", zero, expected);
            let answers = groups.iter();
            let answers = answers.flat_map(|g| g.answers.iter().map(|answer| (&g.prompt, answer)));
            rollouts = answers
                .zip(found.values)
                .map(|((prompt, answer), advantage)| Rollout::new(prompt, answer, advantage))
                .collect();
        }
        let batch_size = rollouts.len() / accumulation;
        let found = loss.step(&mut trainer, &mut rollouts, batch_size);
        let numbers = found.output.numbers();
        close(step, "loss", numbers.means.loss, expected);
        close(step, "grad_norm", numbers.grad_norm, expected);
        // Of more than one micro-batch TRL logs the mean of their means.
        if accumulation == 1 {
            close(step, "entropy", numbers.means.entropy, expected);
            if config.method.beta() > 0.0 {
                close(step, "kl", found.output.method_metrics["kl"], expected);
            }
            for name in ["low", "high", "region"] {
                let name = format!("clip_ratio/{name}_mean");
                close(step, &name, found.output.method_metrics[&name], expected);
            }
        }
    }
    let expected = adapter(&format!("grpo/{name}.safetensors"), trainer.model());
    let found = read_adapter(trainer.model(), SLOT, &expected.config);
    for (module, expected) in &expected.modules {
        let found = &found.modules[module];
        for (found, expected) in [(&found.a, &expected.a), (&found.b, &expected.b)] {
            for (a, b) in found.iter().zip(expected) {
                assert!(
                    (a - b).abs() < ADAPTER_TOLERANCE,
                    "{name} {module}: {a}, expected {b}"
                );
            }
        }
    }
}

#[test]
fn dapo_equals_trl() {
    check("dapo");
}

#[test]
fn grpo_with_clipping_and_divergence_equals_trl() {
    check("grpo");
}

#[test]
fn clipping_and_its_numbers_equal_trl() {
    let cases: BTreeMap<String, Case> = read_json("grpo/cases.json");
    // Both sides are clipped at some step.
    for side in ["low", "high"] {
        let name = format!("clip_ratio/{side}_mean");
        assert!(cases["clipped"].steps.iter().any(|step| step[&name] > 0.05));
    }
    check("clipped");
}

#[test]
fn dr_grpo_equals_trl() {
    check("dr_grpo");
}
