//! The training step of a GPU against the CPU's, on a random model large enough for the kernels.
#![cfg(any(feature = "cuda", feature = "wgpu"))]
#![allow(clippy::unwrap_used)]

mod buffers;
#[path = "../support/golden.rs"]
mod files;
mod golden;
#[path = "../support/gpu.rs"]
mod gpus;
mod runs;
#[path = "../support/runs.rs"]
mod short_runs;
#[path = "../support/gradients.rs"]
mod steps;
#[path = "../support/adapter.rs"]
mod support;

#[cfg(feature = "cuda")]
use burn::tensor::DeviceType;
use burn::tensor::{Device, Tensor};
use lora_4bit::ComputeDtype;
use model_qwen::{QwenConfig, QwenModel};
use trainer_sft::batch::Batch;
use trainer_sft::config::LossType;
use trainer_sft::lora::SLOT;
use trainer_sft::optimizer::AdamWConfig;
use trainer_sft::parameters::{Trainable, visit_model};
use trainer_sft::preference::{Objective, Preference};
use trainer_sft::step::Checkpointing;
use trainer_sft::trainer::{Trainer, TrainerOptions};

use self::gpus::gpu;

const VOCAB: u32 = 512;

/// What is trained, and of what.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    qk_norm: bool,
    dora: bool,
    /// Whether embedding and head are trained, too.
    modules: bool,
    /// Whether every weight is trained, and no adapter.
    full: bool,
    eight_bit: bool,
    /// Whether adapters have dropout.
    dropout: bool,
    /// Whether only some layers of those that share an input have adapters, and of different ranks.
    some: bool,
    /// Whether adapters have the smallest rank.
    rank_one: bool,
}

const PLAIN: Kind = Kind {
    qk_norm: false,
    dora: false,
    modules: false,
    full: false,
    eight_bit: false,
    dropout: false,
    some: false,
    rank_one: false,
};

/// Two layers whose sizes the kernels take: heads of 64, widths that are multiples of 64.
fn model(kind: Kind, compute: ComputeDtype, device: &Device) -> QwenModel {
    let model_type = if kind.qk_norm { "qwen3" } else { "qwen2" };
    let text = format!(
        r#"{{"model_type": "{model_type}", "vocab_size": {VOCAB}, "hidden_size": 128, "intermediate_size": 192,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "eos_token_id": 0, "torch_dtype": "float32"}}"#
    );
    let config = QwenConfig::from_json(&text, "config.json".as_ref()).unwrap();
    let mut model = QwenModel::random(config, 7, device);
    visit_model(&mut model, Trainable::Full, &mut |name, parameter| {
        if !name.contains("norm") {
            parameter.replace(|value| value.mul_scalar(4.0));
        }
    });
    // Of this rank, matrices are large enough for moments in 8 bits.
    let rank = match (kind.eight_bit, kind.rank_one) {
        (true, _) => 64,
        (_, true) => 1,
        _ => 8,
    };
    let mut adapter = support::adapter(&model, rank);
    if kind.some {
        let v = support::adapter(&model, 12).modules;
        adapter.modules.retain(|name, _| {
            let names = ["q_proj", "v_proj", "up_proj"];
            names.iter().any(|end| name.ends_with(end))
        });
        for (name, matrices) in &mut adapter.modules {
            if name.ends_with("v_proj") {
                *matrices = v[name].clone();
            }
        }
    }
    if kind.dora {
        adapter.config.use_dora = true;
        for matrices in adapter.modules.values_mut() {
            matrices.magnitude = Some(vec![0.7; matrices.out_features]);
        }
    }
    model.add_adapter(SLOT, &adapter).unwrap();
    model.set_compute_dtype(compute);
    model
}

/// A trainer of the CPU in f32, the reference.
fn reference(kind: Kind) -> Trainer {
    trainer(kind, ComputeDtype::F32, &Device::flex())
}

fn trainer(kind: Kind, compute: ComputeDtype, device: &Device) -> Trainer {
    let trainable = match (kind.full, kind.modules) {
        (true, _) => Trainable::Full,
        (false, false) => Trainable::Adapter { slot: SLOT },
        (false, true) => Trainable::AdapterAndModules {
            slot: SLOT,
            embed_tokens: true,
            lm_head: true,
        },
    };
    let options = TrainerOptions {
        optimizer: AdamWConfig {
            eight_bit: kind.eight_bit,
            ..AdamWConfig::default()
        },
        seed: 5,
        dropout: if kind.dropout { 0.2 } else { 0.0 },
        ..TrainerOptions::constant(trainable, 2e-3, 20)
    };
    Trainer::new(model(kind, compute, device), options)
}

/// Documents of these lengths that are learnt from their fourth token on.
fn batch(lengths: &[usize]) -> Batch {
    let mut batch = Batch::default();
    for (document, &length) in (0u32..).zip(lengths) {
        let token = |i: usize| (document * 31 + i as u32 * 7 + i as u32 * i as u32) % VOCAB;
        batch.tokens.extend((0..length).map(token));
        batch.positions.extend(0..length as u32);
        let target = |i: usize| (i >= 3 && i + 1 < length).then(|| token(i + 1));
        batch.targets.extend((0..length).map(target));
        batch.lengths.push(length);
    }
    batch
}

fn values(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

#[test]
fn gradients_equal_those_of_the_cpu() {
    let device = gpu();
    // bf16 has 8 bits: single values differ, the direction does not. Products in f32 may keep 10 of them.
    let cases = [
        (ComputeDtype::Bf16, 0.995, 0.05),
        (ComputeDtype::F32, 0.9999, 0.005),
    ];
    let kinds = [
        PLAIN,
        Kind {
            qk_norm: true,
            ..PLAIN
        },
        Kind {
            dora: true,
            ..PLAIN
        },
        Kind {
            modules: true,
            ..PLAIN
        },
        Kind {
            dropout: true,
            ..PLAIN
        },
        Kind {
            dropout: true,
            some: true,
            ..PLAIN
        },
        Kind {
            dora: true,
            dropout: true,
            ..PLAIN
        },
        Kind {
            dora: true,
            dropout: true,
            some: true,
            ..PLAIN
        },
        Kind {
            full: true,
            ..PLAIN
        },
        Kind {
            full: true,
            qk_norm: true,
            ..PLAIN
        },
    ];
    for (kind, (compute, least, most)) in kinds
        .into_iter()
        .flat_map(|kind| cases.map(|case| (kind, case)))
    {
        let batches = [batch(&[5, 70, 33]), batch(&[64, 1, 130])];
        let (cpu_loss, cpu) = reference(kind).gradients(&batches);
        let (gpu_loss, gpu) = trainer(kind, compute, &device).gradients(&batches);
        let (expected, found) = (values(&cpu_loss)[0], values(&gpu_loss)[0]);
        assert!(
            (found - expected).abs() < 0.01 * expected,
            "{found}, not {expected}"
        );
        assert!(cpu.names().eq(gpu.names()), "{kind:?}");
        for name in cpu.names() {
            let expected = values(cpu.get(name).unwrap());
            let found = values(gpu.get(name).unwrap());
            assert_eq!(expected.len(), found.len(), "{name}");
            let dot =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let (a, b) = (dot(&found, &found).sqrt(), dot(&expected, &expected).sqrt());
            let cosine = dot(&found, &expected) / (a * b);
            assert!(
                cosine > least,
                "{kind:?}, {compute:?}: {name}: cosine {cosine}"
            );
            let off = (a / b - 1.0).abs();
            assert!(
                off < most,
                "{kind:?}, {compute:?}: {name}: length {a}, not {b}"
            );
        }
    }
}

#[test]
fn losses_follow_those_of_the_cpu() {
    let device = gpu();
    let kinds = [
        PLAIN,
        Kind {
            eight_bit: true,
            ..PLAIN
        },
        Kind {
            dora: true,
            modules: true,
            eight_bit: true,
            ..PLAIN
        },
        Kind {
            full: true,
            ..PLAIN
        },
    ];
    for kind in kinds {
        follow(kind, &device);
    }
}

fn follow(kind: Kind, device: &Device) {
    let batches = [batch(&[40, 90, 3])];
    let (mut cpu, mut gpu) = (reference(kind), trainer(kind, ComputeDtype::Bf16, device));
    let mut first = None;
    for step in 0..20 {
        let expected = cpu.step(&batches).numbers().means.loss;
        let numbers = gpu.step(&batches).numbers();
        let found = numbers.means.loss;
        let first = *first.get_or_insert(expected);
        assert!(numbers.grad_norm.is_finite());
        assert!(
            (found - expected).abs() < 0.02 * first,
            "{kind:?}: step {step}: {found}, not {expected}"
        );
    }
    let last = gpu.evaluate(batches.clone()).unwrap();
    assert!(last < 0.8 * first.unwrap(), "{last} after {first:?}");
    let bytes = |trainer: &Trainer| trainer.optimizer().byte_moments().count();
    assert_eq!(bytes(&gpu), bytes(&cpu));
    assert_eq!(bytes(&gpu) > 0, kind.eight_bit);
    let expected = cpu.evaluate(batches).unwrap();
    assert!(
        (last - expected).abs() < 0.02 * first.unwrap(),
        "{last}, not {expected}"
    );
}

#[test]
fn compared_answers_follow_those_of_the_cpu() {
    let device = gpu();
    let batches = [batch(&[40, 90, 33, 5]), batch(&[64, 12])];
    let objective = Objective::Dpo {
        beta: 0.1,
        loss: LossType::Sigmoid,
        label_smoothing: 0.0,
    };
    let preference = Preference {
        objective,
        reference: None,
        max_length: 256,
    };
    for (compute, most) in [(ComputeDtype::F32, 0.01), (ComputeDtype::Bf16, 0.05)] {
        let [mut cpu, mut gpu] = [reference(PLAIN), trainer(PLAIN, compute, &device)]
            .map(|trainer| trainer.comparing(Some(preference.clone())));
        for step in 0..5 {
            let (expected, found) = (cpu.step(&batches), gpu.step(&batches));
            let [a, b] = [&found, &expected].map(|output| output.numbers().means.loss);
            assert!(
                (a - b).abs() < most * b.abs().max(0.1),
                "step {step}: {a}, not {b}"
            );
            let [a, b] = [&found, &expected].map(|output| output.method_metrics["logps/chosen"]);
            assert!((a - b).abs() < most * b.abs(), "step {step}: {a}, not {b}");
        }
    }
}

#[test]
fn inputs_of_layers_come_back_from_the_host() {
    let device = gpu();
    let batches = [batch(&[5, 70, 33]), batch(&[64, 1, 130])];
    let dora = Kind {
        dora: true,
        dropout: true,
        ..PLAIN
    };
    for (kind, compute, objective) in [
        (PLAIN, ComputeDtype::Bf16, None),
        (
            PLAIN,
            ComputeDtype::F32,
            Some(Objective::Dpo {
                beta: 0.1,
                loss: LossType::Sigmoid,
                label_smoothing: 0.0,
            }),
        ),
        (dora, ComputeDtype::F32, None),
    ] {
        let losses = |checkpointing| {
            let mut options = *trainer(kind, compute, &device).options();
            options.checkpointing = checkpointing;
            options.dropout = if kind.dropout { 0.1 } else { 0.0 };
            let preference = objective.map(|objective| Preference {
                objective,
                reference: None,
                max_length: 256,
            });
            let trainer = Trainer::new(model(kind, compute, &device), options);
            let mut trainer = trainer.comparing(preference);
            // The second loss shows the gradients of the first step.
            let steps = (0..2).map(|_| {
                let numbers = trainer.step(&batches).numbers();
                (numbers.means.loss, numbers.grad_norm)
            });
            steps.collect::<Vec<_>>()
        };
        let kept = losses(Checkpointing::On);
        assert_eq!(losses(Checkpointing::Offload), kept, "{compute:?}");
        // Gate and up are rounded before they are multiplied where they are kept.
        let bound = match compute {
            ComputeDtype::F32 => 1e-4,
            _ => 2e-2,
        };
        for checkpointing in [Checkpointing::Off, Checkpointing::Layers(1)] {
            for ((loss, norm), (kept_loss, kept_norm)) in losses(checkpointing).iter().zip(&kept) {
                for (found, expected) in [(loss, kept_loss), (norm, kept_norm)] {
                    let off = (found - expected).abs() / expected.abs();
                    assert!(
                        off < bound,
                        "{checkpointing:?} {compute:?}: {found} {expected}"
                    );
                }
            }
        }
    }
}

/// Two cards take the steps of one, whichever way gradients are summed. Says nothing where there are fewer.
#[cfg(feature = "cuda")]
#[test]
fn two_cards_take_the_steps_of_one() {
    use std::time::Instant;
    use trainer_sft::config::AllReduce;
    use trainer_sft::replicas::GradientSum;

    let cards = Device::enumerate(DeviceType::Cuda);
    let [first, second, ..] = &cards[..] else {
        println!("one card only: nothing is compared");
        return;
    };
    let batches = [
        batch(&[5, 70, 33]),
        batch(&[64, 1, 130]),
        batch(&[40, 90, 3]),
        batch(&[17, 60]),
        // The first card's only.
        batch(&[100]),
    ];
    let num_tokens: usize = batches.iter().map(Batch::num_tokens).sum();
    let kinds = [
        PLAIN,
        Kind {
            dora: true,
            modules: true,
            eight_bit: true,
            ..PLAIN
        },
    ];
    for (kind, choice) in kinds
        .into_iter()
        .flat_map(|kind| [AllReduce::Host, AllReduce::Auto].map(|choice| (kind, choice)))
    {
        let devices = [first.clone(), second.clone()];
        let sum = GradientSum::choose(choice, &devices).unwrap();
        let [mut one, own, replica] =
            [first, first, second].map(|device| trainer(kind, ComputeDtype::F32, device));
        let mut two = own.with_replicas(vec![replica], sum);
        let losses = |trainer: &mut Trainer| {
            let mut losses = vec![trainer.step(&batches).numbers()];
            let start = Instant::now();
            let steps: Vec<_> = (0..10).map(|_| trainer.step(&batches)).collect();
            losses.extend(steps.iter().map(|step| step.numbers()));
            (losses, start.elapsed())
        };
        let (expected, alone) = losses(&mut one);
        let (found, together) = losses(&mut two);
        for (name, time) in [("one card", alone), ("two cards", together)] {
            let speed = 10.0 * num_tokens as f64 / time.as_secs_f64();
            println!("{kind:?}, {sum:?}: {name}: {speed:.0} tokens/s");
        }
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let off = (found.means.loss - expected.means.loss).abs() / expected.means.loss;
            assert!(
                off < 2e-3,
                "{kind:?}, {sum:?}: step {step}: {found:?}, not {expected:?}"
            );
        }
        // The replicas are still the same.
        let replica = &two.replicas()[0];
        let mut pairs = [two.model(), replica.model()].map(|model| {
            let mut model = model.clone();
            let mut all = Vec::new();
            visit_model(&mut model, two.options().trainable, &mut |_, parameter| {
                all.extend(values(&parameter.value()));
            });
            all.into_iter()
        });
        let [own, other] = &mut pairs;
        assert!(own.eq(other), "{kind:?}, {sum:?}: the replicas differ");
    }
}
