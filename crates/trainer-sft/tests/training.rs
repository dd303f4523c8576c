//! What must hold for any model and batch: splitting, packing, recomputing and resuming change nothing.

#![allow(clippy::unwrap_used)]

use burn::tensor::{DType, Device, Tensor};
use kv_paging::CausalAttention;
use lora_4bit::peft::LoraAdapter;
use lora_4bit::{AdapterSelection, Dropout, Weight};
use model_qwen::{QwenConfig, QwenModel};
use trainer_sft::batch::{Batch, LoaderState};
use trainer_sft::checkpoint::{self, TrainerState};
use trainer_sft::config::{LoraOptions, LrSchedule};
use trainer_sft::even;
use trainer_sft::lora::{SLOT, new_adapter, read_adapter};
use trainer_sft::optimizer::AdamWConfig;
use trainer_sft::parameters::{GradientStore, Trainable, visit_model};
use trainer_sft::schedule::{Schedule, Shape};
use trainer_sft::step::{self, Checkpointing, Noise};
use trainer_sft::trainer::{Trainer, TrainerOptions};

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
    let adapter = adapter(&model);
    model.add_adapter(SLOT, &adapter).unwrap();
    model
}

/// An adapter on all layers whose B is not zero.
fn adapter(model: &QwenModel) -> LoraAdapter {
    let lora = LoraOptions {
        r: 3,
        alpha: 6.0,
        dropout: 0.0,
        target_modules: vec!["all-linear".into()],
        use_rslora: false,
    };
    let mut adapter = new_adapter(&lora, None, model, 11);
    for matrices in adapter.modules.values_mut() {
        matrices
            .b
            .iter_mut()
            .enumerate()
            .for_each(|(i, b)| *b = ((i * 37 % 19) as f32 - 9.0) * 0.01);
    }
    adapter
}

fn options(trainable: Trainable) -> TrainerOptions {
    TrainerOptions {
        trainable,
        learning_rate: 1e-2,
        schedule: Schedule {
            kind: LrSchedule::Constant,
            warmup_steps: 0,
            total_steps: 10,
            shape: Shape::default(),
        },
        optimizer: AdamWConfig::default(),
        max_grad_norm: Some(1.0),
        checkpointing: Checkpointing::default(),
        dropout: 0.0,
        loraplus_lr_ratio: 1.0,
        neftune_noise_alpha: None,
        seed: 5,
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

#[test]
fn accumulation_and_packing_change_nothing() {
    for trainable in [Trainable::Adapter { slot: SLOT }, Trainable::Full] {
        let trainer = Trainer::new(model_with_adapter(), options(trainable));
        let documents = documents();
        let (packed_loss, mut packed) = trainer.gradients(&[pack(&documents)]);
        let (split_loss, split) = trainer.gradients(&documents);
        let (a, b) = (
            packed_loss.into_scalar::<f32>(),
            split_loss.into_scalar::<f32>(),
        );
        assert!((a - b).abs() < 1e-5, "{a} {b}");
        let names: Vec<String> = split.names().map(str::to_owned).collect();
        assert!(names.len() > 3 * 7);
        for name in names {
            let packed = packed.remove(&name).unwrap();
            assert_close(
                &name,
                &values(split.get(&name).unwrap()),
                &values(&packed),
                1e-5,
            );
        }
    }
}

#[test]
fn padding_for_devices_without_a_kernel_changes_nothing() {
    let batch = pack(&documents());
    for min_tokens in [0, 64, 100_000] {
        let padded = even::pad(&batch, min_tokens);
        assert!(padded.iter().all(|batch| {
            batch
                .lengths
                .iter()
                .all(|&length| length == batch.lengths[0])
        }));
        assert_eq!(
            padded.iter().map(Batch::num_targets).sum::<usize>(),
            batch.num_targets()
        );
        let trainer = Trainer::new(model_with_adapter(), options(Trainable::Full));
        let (loss, mut expected) = trainer.gradients(std::slice::from_ref(&batch));
        let (padded_loss, found) = trainer.gradients(&padded);
        assert!((loss.into_scalar::<f32>() - padded_loss.into_scalar::<f32>()).abs() < 1e-5);
        for name in found.names().map(str::to_owned).collect::<Vec<_>>() {
            let expected = expected.remove(&name).unwrap();
            assert_close(
                &name,
                &values(found.get(&name).unwrap()),
                &values(&expected),
                1e-5,
            );
        }
    }
}

#[test]
fn accumulated_steps_reach_the_same_adapter() {
    let mut accumulated = Trainer::new(
        model_with_adapter(),
        options(Trainable::Adapter { slot: SLOT }),
    );
    let mut at_once = Trainer::new(
        model_with_adapter(),
        options(Trainable::Adapter { slot: SLOT }),
    );
    for _ in 0..3 {
        accumulated.step(&documents());
        at_once.step(&[pack(&documents())]);
    }
    for ((name, a), (_, b)) in accumulated
        .model
        .linears()
        .into_iter()
        .zip(at_once.model.linears())
    {
        let flat = |tensor: &Tensor<2>| tensor.to_data().iter::<f32>().collect::<Vec<_>>();
        let (a, b) = (a.adapter(SLOT).unwrap(), b.adapter(SLOT).unwrap());
        assert_close(&name, &flat(&a.a), &flat(&b.a), 1e-4);
        assert_close(&name, &flat(&a.b_t), &flat(&b.b_t), 1e-4);
    }
}

/// The same loss with one autodiff graph over the whole model.
fn whole_graph(
    trainable: Trainable,
    mut model: QwenModel,
    batch: &Batch,
) -> (f32, Vec<(String, Vec<f32>)>) {
    visit_model(&mut model, trainable, &mut |_, parameter| {
        parameter.make_leaf()
    });
    if trainable == Trainable::Full && model.config.tie_word_embeddings {
        model.lm_head.weight = Weight::Dense(model.embed_tokens.clone());
    }
    let adapters = AdapterSelection::All {
        slot: SLOT,
        dropout: None,
    };
    let mut attention = CausalAttention::new(&batch.lengths);
    let hidden = model.forward(&batch.tokens, &batch.positions, &adapters, &mut attention);
    let logits = model.logits(hidden); // [tokens, vocab]
    let log_probabilities = burn::tensor::activation::log_softmax(logits, 1);
    let mut chosen = vec![0f32; batch.tokens.len() * VOCAB as usize];
    for (row, target) in batch.targets.iter().enumerate() {
        if let Some(token) = target {
            chosen[row * VOCAB as usize + *token as usize] = -1.0 / batch.num_targets() as f32;
        }
    }
    let chosen = burn::tensor::TensorData::new(chosen, [batch.tokens.len(), VOCAB as usize]);
    let chosen = Tensor::<2>::from_data(chosen, (&Device::flex(), DType::F32)).autodiff();
    let loss = (log_probabilities * chosen).sum();
    let mut gradients = loss.backward();
    let mut found = Vec::new();
    visit_model(&mut model, trainable, &mut |name, parameter| {
        let gradient = parameter.take_gradient(&mut gradients);
        found.push((
            name.to_owned(),
            values(&gradient.unwrap_or_else(|| panic!("{name} has no gradient"))),
        ));
    });
    (loss.inner().into_scalar::<f32>(), found)
}

/// The step of GPUs, on the CPU by the twins of its operations.
#[test]
fn the_explicit_step_equals_the_graphs() {
    for (qk_norm, p) in [(false, 0.0), (true, 0.0), (true, 0.25)] {
        let mut model = model(qk_norm, qk_norm);
        let adapter = adapter(&model);
        model.add_adapter(SLOT, &adapter).unwrap();
        let batch = pack(&documents());
        let trainable = Trainable::Adapter { slot: SLOT };
        let dropout = (p > 0.0).then_some(Dropout { p, seed: 3 });
        let adapters = AdapterSelection::All {
            slot: SLOT,
            dropout,
        };
        let (mut expected, mut found) = (GradientStore::default(), GradientStore::default());
        let noise = qk_norm.then_some(Noise {
            alpha: 5.0,
            seed: 1,
            stream: 0,
        });
        let how = (trainable, &adapters, Checkpointing::On, noise);
        // The masks of dropout depend on the number of rows: this one needs no padding.
        let batch = if p > 0.0 { document(3, 64, 5) } else { batch };
        let loss = step::forward_backward(&model, &batch, how, 0.5, &mut expected);
        let slot = (SLOT, dropout);
        let kept = if qk_norm {
            Checkpointing::Off
        } else {
            Checkpointing::On
        };
        let explicit =
            step::explicit::forward_backward(&model, &batch, slot, (kept, noise), 0.5, &mut found);
        assert_close("loss", &values(&explicit), &values(&loss), 1e-5);
        assert!(expected.names().eq(found.names()));
        for name in expected.names() {
            let (a, b) = (found.get(name).unwrap(), expected.get(name).unwrap());
            assert_close(name, &values(a), &values(b), 1e-4);
        }
        if dropout.is_none() && noise.is_none() {
            let evaluated = step::explicit::forward(&model, &batch, SLOT);
            assert_close("evaluated", &values(&evaluated), &values(&loss), 1e-5);
        }
    }
}

#[test]
fn layer_by_layer_gradients_equal_one_graph() {
    let batch = pack(&documents());
    let cases = [
        (Trainable::Adapter { slot: SLOT }, model_with_adapter()),
        (Trainable::Full, model(true, false)),
        (Trainable::Full, model(false, true)),
    ];
    for (trainable, model) in cases {
        let (expected_loss, expected) = whole_graph(trainable, model.clone(), &batch);
        let (loss, mut store) =
            Trainer::new(model, options(trainable)).gradients(std::slice::from_ref(&batch));
        assert!((loss.into_scalar::<f32>() - expected_loss).abs() < 1e-5);
        for (name, expected) in expected {
            let found = store
                .remove(&name)
                .unwrap_or_else(|| panic!("{name} has no gradient"));
            assert_close(&name, &values(&found), &expected, 1e-4);
        }
        assert_eq!(store.names().count(), 0);
    }
}

fn gradients_with(
    model: QwenModel,
    checkpointing: Checkpointing,
) -> (f32, Vec<(String, Vec<f32>)>) {
    let settings = TrainerOptions {
        checkpointing,
        ..options(Trainable::Adapter { slot: SLOT })
    };
    let (loss, store) = Trainer::new(model, settings).gradients(&[pack(&documents())]);
    let gradients = store
        .names()
        .map(|name| (name.to_owned(), values(store.get(name).unwrap())))
        .collect();
    (loss.into_scalar::<f32>(), gradients)
}

#[test]
fn kept_activations_give_the_gradients_of_recomputed_ones() {
    let recomputed = gradients_with(model_with_adapter(), Checkpointing::On);
    assert_eq!(recomputed.1.len(), 2 * 7 * 3);
    for checkpointing in [Checkpointing::Off, Checkpointing::Auto] {
        let kept = gradients_with(model_with_adapter(), checkpointing);
        assert_eq!(kept, recomputed, "{checkpointing:?}");
    }
}

#[test]
fn bf16_factors_change_gradients_by_their_rounding_only() {
    let exact = gradients_with(model_with_adapter(), Checkpointing::Off);
    let mut model = model_with_adapter();
    model.set_compute_dtype(lora_4bit::ComputeDtype::Bf16);
    let rounded = gradients_with(model, Checkpointing::Off);
    assert!((exact.0 - rounded.0).abs() < 0.02 * exact.0);
    for ((name, exact), (_, rounded)) in exact.1.iter().zip(&rounded.1) {
        assert_close(name, rounded, exact, 0.1);
    }
}

#[test]
fn training_lowers_the_loss_and_evaluation_agrees_with_it() {
    for (trainable, model) in [
        (Trainable::Adapter { slot: SLOT }, model_with_adapter()),
        (Trainable::Full, model(true, true)),
    ] {
        let mut trainer = Trainer::new(model, options(trainable));
        let batches = documents();
        let before = trainer.evaluate(batches.clone()).unwrap();
        let (first, norm) = trainer.step(&batches).read();
        assert!((before - first).abs() < 1e-4, "{before} {first}");
        assert!(norm > 0.0);
        for _ in 0..9 {
            trainer.step(&batches);
        }
        let after = trainer.evaluate(batches).unwrap();
        assert!(after < before - 0.2, "{before} → {after}");
    }
}

#[test]
fn a_batch_without_targets_trains_nothing() {
    let mut trainer = Trainer::new(
        model_with_adapter(),
        options(Trainable::Adapter { slot: SLOT }),
    );
    let mut batch = document(1, 6, 2);
    batch.targets.fill(None);
    assert!(trainer.evaluate([batch.clone()]).is_none());
    let before = read_all(&trainer);
    let (loss, norm) = trainer.step(&[batch]).read();
    assert_eq!((loss, norm), (0.0, 0.0));
    assert_eq!(before, read_all(&trainer));
}

fn read_all(trainer: &Trainer) -> Vec<u8> {
    let lora = lora_4bit::peft::LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        ..Default::default()
    };
    read_adapter(&trainer.model, SLOT, &lora)
        .to_bytes()
        .unwrap()
        .1
}

#[test]
fn resumed_training_is_the_same_bit_for_bit() {
    let settings = TrainerOptions {
        dropout: 0.2,
        loraplus_lr_ratio: 4.0,
        neftune_noise_alpha: Some(5.0),
        ..options(Trainable::Adapter { slot: SLOT })
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("checkpoint-2");
    let lora = lora_4bit::peft::LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        ..Default::default()
    };

    let mut whole = Trainer::new(model_with_adapter(), settings);
    for step in 0..4 {
        if step == 2 {
            let state = TrainerState {
                step: 2,
                total_steps: 4,
                seed: 5,
                loader: LoaderState {
                    epoch: 1,
                    index: 3,
                    block: None,
                },
                ..TrainerState::default()
            };
            let written = checkpoint::save(&dir, &state, whole.optimizer(), |folder| {
                assert_ne!(folder, dir);
                read_adapter(&whole.model, SLOT, &lora)
                    .save(folder)
                    .unwrap();
                Ok(())
            });
            written.unwrap();
        }
        whole.step(&documents());
    }

    let mut model = model(true, false);
    model
        .add_adapter(SLOT, &lora_4bit::peft::LoraAdapter::load(&dir).unwrap())
        .unwrap();
    let (state, optimizer) = checkpoint::load(&dir, settings.optimizer, &Device::flex()).unwrap();
    assert_eq!((state.loader.epoch, state.loader.index), (1, 3));
    let mut resumed = Trainer::resume(model, settings, optimizer);
    assert_eq!(resumed.num_steps(), 2);
    for _ in 2..4 {
        resumed.step(&documents());
    }
    assert!(
        read_all(&whole) == read_all(&resumed),
        "the adapters differ"
    );
}

/// The parameters before and after a step, by name.
fn stepped(settings: TrainerOptions) -> Vec<(String, Vec<f32>, Vec<f32>)> {
    let read = |trainer: &mut Trainer| {
        let mut all = Vec::new();
        visit_model(&mut trainer.model, settings.trainable, &mut |name, p| {
            all.push((name.to_owned(), values(&p.value())));
        });
        all
    };
    let mut trainer = Trainer::new(model_with_adapter(), settings);
    let before = read(&mut trainer);
    trainer.step(&documents());
    let after = read(&mut trainer).into_iter();
    let both = before.into_iter().zip(after);
    both.map(|((name, before), (_, after))| (name, before, after))
        .collect()
}

#[test]
fn lora_plus_multiplies_the_rate_of_b_only() {
    let plain = TrainerOptions {
        learning_rate: 1e-4,
        ..options(Trainable::Adapter { slot: SLOT })
    };
    let faster = TrainerOptions {
        loraplus_lr_ratio: 8.0,
        ..plain
    };
    let mut num_b = 0;
    for ((name, before, after), (_, _, fast)) in stepped(plain).into_iter().zip(stepped(faster)) {
        let is_b = name.ends_with(".lora_B_t");
        num_b += usize::from(is_b);
        let ratio = if is_b { 8.0 } else { 1.0 };
        let difference = |to: &[f32], factor: f32| -> Vec<f32> {
            let pairs = before.iter().zip(to);
            pairs.map(|(from, to)| (to - from) * factor).collect()
        };
        assert_close(
            &name,
            &difference(&fast, 1.0),
            &difference(&after, ratio),
            1e-3,
        );
    }
    assert_eq!(num_b, 21);
}

#[test]
fn noise_is_for_training_only_and_new_in_each_step() {
    let settings = options(Trainable::Adapter { slot: SLOT });
    let noisy = TrainerOptions {
        neftune_noise_alpha: Some(20.0),
        learning_rate: 0.0,
        ..settings
    };
    let still = TrainerOptions {
        learning_rate: 0.0,
        ..settings
    };
    let [mut noisy, mut still] =
        [noisy, still].map(|options| Trainer::new(model_with_adapter(), options));
    assert_eq!(noisy.evaluate(documents()), still.evaluate(documents()));
    let mut losses = [0.0; 3];
    for loss in &mut losses {
        *loss = noisy.step(&documents()).read().0;
    }
    let without = still.step(&documents()).read().0;
    assert!(losses[0] != without && losses[0] != losses[1] && losses[1] != losses[2]);
    assert_eq!(noisy.evaluate(documents()), still.evaluate(documents()));
}

#[test]
fn broken_checkpoints_are_refused_with_their_path() {
    let dir = tempfile::tempdir().unwrap();
    let load = || checkpoint::load(dir.path(), AdamWConfig::default(), &Device::flex());
    let message = load().unwrap_err().to_string();
    assert!(message.contains("trainer_state.json"), "{message}");
    std::fs::write(dir.path().join("trainer_state.json"), r#"{"step": 1}"#).unwrap();
    assert!(load().unwrap_err().to_string().contains("total_steps"));
    let state = r#"{"step": 1, "total_steps": 2, "seed": 3, "loader": {"epoch": 0, "index": 0}}"#;
    std::fs::write(dir.path().join("trainer_state.json"), state).unwrap();
    std::fs::write(dir.path().join("optimizer.safetensors"), b"nonsense").unwrap();
    assert!(
        load()
            .unwrap_err()
            .to_string()
            .contains("optimizer.safetensors")
    );
}
