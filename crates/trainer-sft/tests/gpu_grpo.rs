//! GRPO on a GPU: what is drawn, what a step computes, and that the next answers come from what was learnt.
#![cfg(any(feature = "cuda", feature = "wgpu"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/gpu.rs"]
mod gpus;
#[path = "support/adapter.rs"]
mod support;

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use lora_4bit::ComputeDtype;
use lora_4bit::peft::{LoraAdapter, LoraConfig};
use model_qwen::{QwenConfig, QwenModel, SamplingParams};
use serde_json::{Value, json};
use trainer_sft::Training;
use trainer_sft::config::{Config, LossType, Method};
use trainer_sft::generation::{Completion, Generator, Request};
use trainer_sft::grpo::{PolicyLoss, Rollout};
use trainer_sft::lora::{SLOT, read_adapter};
use trainer_sft::parameters::{Trainable, visit_model};
use trainer_sft::trainer::{Trainer, TrainerOptions};

use self::gpus::gpu;

const VOCAB: u32 = 512;
const PROMPTS: [&[u32]; 3] = [&[5, 6, 7, 8], &[100, 3, 50], &[9, 9, 400, 31, 2, 77]];

/// Tests take turns on it: what one of them reads is no part of the graph that another one records.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two layers whose sizes the kernels take, with an adapter of rank 8 in f32.
fn model(device: &Device) -> QwenModel {
    let text = format!(
        r#"{{"model_type": "qwen2", "vocab_size": {VOCAB}, "hidden_size": 128, "intermediate_size": 192,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "eos_token_id": 0, "torch_dtype": "float32"}}"#
    );
    let config = QwenConfig::from_json(&text, "config.json".as_ref()).unwrap();
    let mut model = QwenModel::random(config, 7, device);
    visit_model(&mut model, Trainable::Full, &mut |name, parameter| {
        if !name.contains("norm") {
            parameter.replace(|value| value.mul_scalar(6.0));
        }
    });
    let adapter = support::adapter(&model, 8);
    model.add_adapter(SLOT, &adapter).unwrap();
    model.set_compute_dtype(ComputeDtype::F32);
    model
}

fn trainer(device: &Device, learning_rate: f64) -> Trainer {
    let trainable = Trainable::Adapter { slot: SLOT };
    let options = TrainerOptions::constant(trainable, learning_rate, 20);
    Trainer::new(model(device), options)
}

/// The likeliest answers to [`PROMPTS`], by the adapter as it is now.
fn answers(model: &mut QwenModel, max_tokens: usize) -> Vec<Completion> {
    let generator = Generator {
        slot: Some(SLOT),
        stop_token_ids: vec![0],
    };
    let request = |prompt: &&[u32]| Request {
        prompt: prompt.to_vec(),
        sampling: SamplingParams::greedy(),
        max_tokens,
    };
    let requests: Vec<Request> = PROMPTS.iter().map(request).collect();
    let listen = &mut |_, _| ControlFlow::Continue(());
    generator.generate(model, &requests, listen).unwrap()
}

fn loss() -> PolicyLoss {
    PolicyLoss {
        loss_type: LossType::Dapo,
        epsilons: (0.02, 0.03),
        beta: 0.04,
        temperature: 0.9,
        max_completion_length: 12,
    }
}

/// Two answers to each prompt, of which one was better.
fn rollouts() -> Vec<Rollout> {
    let answer = |seed: u32, len: u32| -> Vec<u32> {
        (0..len).map(|i| (seed * 37 + i * 11 + 1) % VOCAB).collect()
    };
    let groups = (0u32..).zip(PROMPTS);
    let groups = groups.flat_map(|(index, prompt)| {
        let [better, worse] = [(1.0, 2 * index), (-0.8, 2 * index + 1)]
            .map(|(advantage, seed)| Rollout::new(prompt, &answer(seed, 5 + seed), advantage));
        [better, worse]
    });
    groups.collect()
}

fn adapter_of(trainer: &Trainer) -> LoraAdapter {
    let config = LoraConfig {
        r: 8,
        lora_alpha: 16.0,
        ..LoraConfig::default()
    };
    read_adapter(trainer.model(), SLOT, &config)
}

#[track_caller]
fn close(name: &str, found: f64, expected: f64, tolerance: f64) {
    let bound = tolerance * expected.abs().max(1.0);
    assert!(
        (found - expected).abs() <= bound,
        "{name}: {found}, on the CPU {expected}"
    );
}

#[test]
fn likeliest_answers_are_those_of_the_cpu() {
    let _turn = turn();
    let expected = answers(&mut model(&Device::flex()), 10);
    let found = answers(&mut model(&gpu()), 10);
    assert_eq!(found, expected);
    assert!(expected[0].tokens != expected[1].tokens);
}

/// Two steps on the same answers: the second one has ratios, and clips.
#[test]
fn steps_are_those_of_the_cpu() {
    let _turn = turn();
    let [mut on_cpu, mut on_gpu] = [Device::flex(), gpu()].map(|device| trainer(&device, 2e-3));
    let [mut for_cpu, mut for_gpu] = [rollouts(), rollouts()];
    let mut has_clipped = false;
    for step in 0..3 {
        let expected = loss().step(&mut on_cpu, &mut for_cpu, 4).output;
        let found = loss().step(&mut on_gpu, &mut for_gpu, 4).output;
        let (numbers, of_cpu) = (found.numbers(), expected.numbers());
        let name = |what: &str| format!("step {step}: {what}");
        close(&name("loss"), numbers.means.loss, of_cpu.means.loss, 5e-3);
        close(
            &name("entropy"),
            numbers.means.entropy,
            of_cpu.means.entropy,
            5e-3,
        );
        close(&name("norm"), numbers.grad_norm, of_cpu.grad_norm, 2e-2);
        for (what, value) in &expected.method_metrics {
            // A token at the bound may be on either side of it.
            close(&name(what), found.method_metrics[what], *value, 3e-2);
        }
        has_clipped |= expected.method_metrics["clip_ratio/region_mean"] > 0.0;
    }
    assert!(has_clipped);
    for (a, b) in for_gpu.iter().zip(&for_cpu) {
        assert_eq!(a.tokens, b.tokens);
        for (found, expected) in [(&a.old, &b.old), (&a.reference, &b.reference)] {
            let pairs = found
                .as_ref()
                .unwrap()
                .iter()
                .zip(expected.as_ref().unwrap());
            for (found, expected) in pairs {
                close(
                    "log-probability",
                    f64::from(*found),
                    f64::from(*expected),
                    2e-2,
                );
            }
        }
    }
    // The change of the weights has the direction of the CPU's.
    let start = adapter_of(&trainer(&Device::flex(), 2e-3));
    let (found, expected) = (adapter_of(&on_gpu), adapter_of(&on_cpu));
    let (mut dot, mut squares) = (0.0, [0.0; 2]);
    for (name, expected) in &expected.modules {
        let (found, start) = (&found.modules[name], &start.modules[name]);
        for (found, (expected, start)) in found.b.iter().zip(expected.b.iter().zip(&start.b)) {
            let [a, b] = [found, expected].map(|value| f64::from(value - start));
            dot += a * b;
            squares[0] += a * a;
            squares[1] += b * b;
        }
    }
    let cosine = dot / (squares[0] * squares[1]).sqrt();
    assert!(cosine > 0.98, "{cosine}");
}

/// What the device has stacked of an adapter must be that of the last step.
#[test]
fn a_step_changes_what_is_written_next() {
    let _turn = turn();
    let device = gpu();
    let mut trainer = trainer(&device, 1e-2);
    let before = answers(trainer.model_mut(), 8);
    let mut rollouts = rollouts();
    for _ in 0..3 {
        let free = PolicyLoss {
            epsilons: (10.0, 10.0),
            beta: 0.0,
            ..loss()
        };
        free.step(&mut trainer, &mut rollouts, 6);
    }
    let after = answers(trainer.model_mut(), 8);
    assert_ne!(before, after);
    // A model that was never trained, with the adapter as it is now.
    let mut fresh = model(&device);
    fresh.add_adapter(SLOT, &adapter_of(&trainer)).unwrap();
    assert_eq!(answers(&mut fresh, 8), after);
}

/// The run itself does what the test above does by hand: its answers are drawn with what the steps before have learnt.
#[test]
fn a_run_draws_its_answers_with_what_it_has_learnt() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.txt");
    std::fs::write(&prompts, "Who are you?\n").unwrap();
    let mut config = Config::new(dir.path().join("a"));
    config.method.method = Method::Grpo;
    config.lora.r = 4;
    config.run.batch_size = 8;
    config.run.max_steps = Some(3);
    config.optimizer.learning_rate = Some(2e-2);
    config.optimizer.warmup_steps = Some(0);
    config.grpo.num_generations = Some(4);
    config.grpo.max_completion_length = Some(8);
    config.grpo.rewards = vec!["length:1-3".into()];
    config.samples.prompts = Some(prompts);
    config.samples.max_tokens = Some(8);
    let records = (0..4).map(|i| json!({"prompt": format!("Who is {i}?")}));
    let training = Training::new(&config).device(&gpu());
    let summary = training.records(records).run().unwrap();
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(summary.output.join(name)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    let samples = lines("samples.jsonl");
    let [first, last] = &samples[..] else {
        panic!("{samples:?}");
    };
    assert_ne!(first["completion"], last["completion"]);
    assert_eq!(lines("metrics.jsonl").len(), 3);
}
