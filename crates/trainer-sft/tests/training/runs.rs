//! Steps that follow each other: accumulation, resuming, LoRA+, noise, checkpoints.

use trainer_sft::batch::LoaderState;
use trainer_sft::checkpoint::{self, TrainerState};
use trainer_sft::lora::read_adapter;
use trainer_sft::optimizer::MIN_VALUES;
use trainer_sft::trainer::Trainer;

use super::*;

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
        .model()
        .linears()
        .into_iter()
        .zip(at_once.model().linears())
    {
        let flat = |tensor: &Tensor<2>| tensor.to_data().iter::<f32>().collect::<Vec<_>>();
        let (a, b) = (a.adapter(SLOT).unwrap(), b.adapter(SLOT).unwrap());
        assert_close(&name, &flat(&a.a), &flat(&b.a), 1e-4);
        assert_close(&name, &flat(&a.b_t), &flat(&b.b_t), 1e-4);
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
        let numbers = trainer.step(&batches).numbers();
        let first = numbers.means.loss;
        assert!((before - first).abs() < 1e-4, "{before} {first}");
        assert!(numbers.grad_norm > 0.0);
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
    let numbers = trainer.step(&[batch]).numbers();
    assert_eq!((numbers.means.loss, numbers.grad_norm), (0.0, 0.0));
    assert_eq!(before, read_all(&trainer));
}

fn read_all(trainer: &Trainer) -> Vec<u8> {
    let lora = lora_4bit::peft::LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        ..Default::default()
    };
    let mut adapter = read_adapter(trainer.model(), SLOT, &lora);
    adapter.config.r = adapter.modules.values().map(|m| m.r).max().unwrap();
    adapter.config.use_dora = adapter.modules.values().any(|m| m.magnitude.is_some());
    adapter.to_bytes().unwrap().1
}

#[test]
fn resumed_training_is_the_same_bit_for_bit() {
    resume(model_with_adapter(), 3, options_of_resume());
}

/// A rank that is large enough for parameters whose moments are in 8 bits.
#[test]
fn resumed_training_with_moments_in_8_bits_is_the_same_bit_for_bit() {
    let r = MIN_VALUES.div_ceil(32);
    let mut start = model(true, false);
    let adapter = support::adapter(&start, r);
    start.add_adapter(SLOT, &adapter).unwrap();
    let mut settings = options_of_resume();
    settings.optimizer.eight_bit = true;
    resume(start, r, settings);
}

#[test]
fn resumed_training_with_dora_is_the_same_bit_for_bit() {
    resume(model_with_dora(), 3, options_of_resume());
}

fn options_of_resume() -> TrainerOptions {
    TrainerOptions {
        dropout: 0.2,
        loraplus_lr_ratio: 4.0,
        neftune_noise_alpha: Some(5.0),
        ..options(Trainable::Adapter { slot: SLOT })
    }
}

fn resume(start: QwenModel, r: usize, settings: TrainerOptions) {
    let mut linears = start.linears().into_iter();
    let use_dora =
        linears.any(|(_, linear)| linear.adapter(SLOT).is_some_and(|a| a.dora.is_some()));
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("checkpoint-2");
    let lora = lora_4bit::peft::LoraConfig {
        r,
        lora_alpha: 2.0 * r as f64,
        use_dora,
        ..Default::default()
    };

    let mut whole = Trainer::new(start, settings);
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
                read_adapter(whole.model(), SLOT, &lora)
                    .save(folder)
                    .unwrap();
                Ok(())
            });
            written.unwrap();
            assert_eq!(
                whole.optimizer().byte_moments().next().is_none(),
                !settings.optimizer.eight_bit
            );
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
        visit_model(
            &mut trainer.model().clone(),
            settings.trainable,
            &mut |name, p| {
                all.push((name.to_owned(), values(&p.value())));
            },
        );
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
        *loss = noisy.step(&documents()).numbers().means.loss;
    }
    let without = still.step(&documents()).numbers().means.loss;
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
