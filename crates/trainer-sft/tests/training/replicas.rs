//! Replicas on several devices take the steps of one device.

use lora_4bit::peft::LoraConfig;
use trainer_sft::config::LossType;
use trainer_sft::lora::read_adapter;
use trainer_sft::optimizer::AdamW;
use trainer_sft::preference::{Objective, Preference};
use trainer_sft::replicas::GradientSum;
use trainer_sft::trainer::{StepNumbers, Trainer};

use super::*;

/// Trainers on one device and on `count` replicas of it.
fn both(make: fn() -> QwenModel, settings: TrainerOptions, count: usize) -> [Trainer; 2] {
    let one = Trainer::new(make(), settings);
    let mut replicas: Vec<_> = (0..count).map(|_| Trainer::new(make(), settings)).collect();
    let first = replicas.remove(0);
    [one, first.with_replicas(replicas, GradientSum::Host)]
}

fn full() -> QwenModel {
    model(true, true)
}

fn dropped(trainable: Trainable) -> TrainerOptions {
    TrainerOptions {
        dropout: if trainable == Trainable::Full {
            0.0
        } else {
            0.2
        },
        loraplus_lr_ratio: 4.0,
        neftune_noise_alpha: Some(5.0),
        ..options(trainable)
    }
}

/// All that is trained.
fn trained(trainer: &mut Trainer) -> Vec<(String, Vec<f32>)> {
    let trainable = trainer.options().trainable;
    let mut all = Vec::new();
    visit_model(
        &mut trainer.model().clone(),
        trainable,
        &mut |name, parameter| {
            all.push((name.to_owned(), values(&parameter.value())));
        },
    );
    all
}

fn assert_same(one: &mut Trainer, several: &mut Trainer, tolerance: f32) {
    for ((name, expected), (_, found)) in trained(one).into_iter().zip(trained(several)) {
        assert_close(&name, &found, &expected, tolerance);
    }
}

/// Loss and norm, of which only the order of sums differs.
fn pairs_of(found: StepNumbers, expected: StepNumbers) -> [(f64, f64); 2] {
    [
        (found.means.loss, expected.means.loss),
        (found.grad_norm, expected.grad_norm),
    ]
}

/// Numbers that were found, beside those expected.
fn assert_all_close(pairs: impl IntoIterator<Item = (f64, f64)>, tolerance: f64, what: &str) {
    for (found, expected) in pairs {
        let off = (found - expected).abs();
        assert!(
            off <= tolerance * expected.abs().max(1.0),
            "{what}: {found}, not {expected}"
        );
    }
}

/// The replicas' values are those of the first one, bit for bit.
fn assert_equal_replicas(several: &mut Trainer) {
    let first = trained(several);
    for replica in several.replicas() {
        let mut replica = Trainer::new(replica.model().clone(), *replica.options());
        assert_eq!(trained(&mut replica), first);
    }
}

#[test]
fn replicas_take_the_steps_of_one_device() {
    let adapter = dropped(Trainable::Adapter { slot: SLOT });
    let kinds = [
        (model_with_adapter as fn() -> QwenModel, adapter),
        (model_with_dora, adapter),
        (full, dropped(Trainable::Full)),
    ];
    for (make, settings) in kinds {
        // Eight micro-batches; an odd number; fewer than devices.
        for (count, batches) in [(2, 8), (2, 7), (3, 8), (3, 1)] {
            let batches = &documents()[..batches];
            let [mut one, mut several] = both(make, settings, count);
            for step in 0..4 {
                let (expected, found) = (one.step(batches), several.step(batches));
                let (expected, found) = (expected.numbers(), found.numbers());
                let pairs = [
                    (found.means.loss, expected.means.loss),
                    (found.means.token_accuracy, expected.means.token_accuracy),
                    (found.means.entropy, expected.means.entropy),
                    (found.grad_norm, expected.grad_norm),
                ];
                let what = format!("{count} devices, step {step}");
                assert_all_close(pairs, 2e-6 * f64::from(1 << (2 * step)), &what);
            }
            assert_same(&mut one, &mut several, 1e-4);
            assert_equal_replicas(&mut several);
        }
    }
}

#[test]
fn two_micro_batches_on_two_devices_are_one_step() {
    let batches = &documents()[..2];
    let settings = dropped(Trainable::Adapter { slot: SLOT });
    let [mut one, mut several] = both(model_with_adapter, settings, 2);
    for _ in 0..3 {
        let (expected, found) = (one.step(batches).numbers(), several.step(batches).numbers());
        assert_all_close(pairs_of(found, expected), 1e-6, "two micro-batches");
    }
    assert_same(&mut one, &mut several, 1e-6);
}

#[test]
fn micro_batches_without_targets_count_nothing() {
    let mut batches = documents();
    for batch in [0, 2, 4, 6] {
        batches[batch].targets.fill(None);
    }
    let settings = options(Trainable::Adapter { slot: SLOT });
    let [mut one, mut several] = both(model_with_adapter, settings, 2);
    // All targets are the second device's.
    let (expected, found) = (
        one.step(&batches).numbers(),
        several.step(&batches).numbers(),
    );
    assert_all_close(pairs_of(found, expected), 1e-6, "targets on one device");
    assert_same(&mut one, &mut several, 1e-6);

    let before = trained(&mut several);
    batches
        .iter_mut()
        .for_each(|batch| batch.targets.fill(None));
    for batches in [&batches[..], &[]] {
        let numbers = several.step(batches).numbers();
        assert_eq!((numbers.means.loss, numbers.grad_norm), (0.0, 0.0));
        assert_eq!(trained(&mut several), before);
    }
    assert_eq!(several.num_steps(), 3);
}

#[test]
fn replicas_that_resume_take_the_same_steps() {
    let settings = dropped(Trainable::Adapter { slot: SLOT });
    let batches = documents();
    let [mut one, mut several] = both(model_with_adapter, settings, 2);
    for _ in 0..2 {
        one.step(&batches);
        several.step(&batches);
    }
    let config = LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        ..LoraConfig::default()
    };
    let adapter = read_adapter(several.model(), SLOT, &config);
    let resumed = || {
        let mut model = model(true, false);
        model.add_adapter(SLOT, &adapter).unwrap();
        let optimizer: AdamW = several.optimizer().clone();
        Trainer::resume(model, settings, optimizer)
    };
    let mut resumed = resumed().with_replicas(vec![resumed()], GradientSum::Host);
    for _ in 0..2 {
        let expected = several.step(&batches).numbers();
        assert_eq!(resumed.step(&batches).numbers(), expected);
        let loss = one.step(&batches).numbers().means.loss;
        assert!(
            (loss - expected.means.loss).abs() < 1e-4 * loss,
            "{loss}, not {expected:?}"
        );
    }
    assert_eq!(trained(&mut resumed), trained(&mut several));
    assert_same(&mut one, &mut resumed, 1e-4);
}

#[test]
fn compared_answers_are_dealt_out_too() {
    let batches: Vec<Batch> = documents()
        .chunks(4)
        .flat_map(|four| [pack(&four[..2]), pack(&four[2..])])
        .map(|batch| Batch {
            are_wanted: vec![true, false],
            ..batch
        })
        .collect();
    let objectives = [
        Objective::Dpo {
            beta: 0.1,
            loss: LossType::Sigmoid,
            label_smoothing: 0.0,
        },
        Objective::Orpo { beta: 0.1 },
        Objective::Kto {
            beta: 0.1,
            weights: (1.0, 0.5),
        },
    ];
    for objective in objectives {
        let preference = Preference {
            objective,
            reference: None,
            max_length: 64,
        };
        let settings = options(Trainable::Adapter { slot: SLOT });
        let new = || Trainer::new(model_with_adapter(), settings);
        let comparing = |trainer: Trainer| trainer.comparing(Some(preference.clone()));
        // Whichever comes first, the comparison or the replicas.
        let [mut one, mut several] = both(model_with_adapter, settings, 2).map(comparing);
        let mut other_order = comparing(new()).with_replicas(vec![new()], GradientSum::Host);
        for step in 0..3 {
            let batches = &batches[step..];
            let (expected, found) = (one.step(batches), several.step(batches));
            assert_eq!(other_order.step(batches).numbers(), found.numbers());
            let [found_metrics, metrics] = [&found, &expected].map(|output| &output.method_metrics);
            assert!(metrics.keys().eq(found_metrics.keys()));
            let metrics = found_metrics.values().zip(metrics.values());
            let metrics = metrics.map(|(found, expected)| (*found, *expected));
            let pairs = metrics.chain(pairs_of(found.numbers(), expected.numbers()));
            assert_all_close(pairs, 1e-4, &format!("{objective:?}, step {step}"));
        }
        assert_same(&mut one, &mut several, 1e-3);
        assert_equal_replicas(&mut several);
        assert_equal_replicas(&mut other_order);
    }
}

#[test]
#[should_panic(expected = "the options of a replica")]
fn a_replica_with_other_options_is_refused() {
    let settings = options(Trainable::Adapter { slot: SLOT });
    let other = TrainerOptions {
        learning_rate: 2.0 * settings.learning_rate,
        ..settings
    };
    let [one, replica] =
        [settings, other].map(|options| Trainer::new(model_with_adapter(), options));
    let _ = one.with_replicas(vec![replica], GradientSum::Host);
}

#[test]
#[should_panic(expected = "the steps that a replica has taken")]
fn a_replica_at_another_step_is_refused() {
    let settings = options(Trainable::Adapter { slot: SLOT });
    let [mut one, replica] =
        [settings; 2].map(|options| Trainer::new(model_with_adapter(), options));
    one.step(&documents());
    let _ = one.with_replicas(vec![replica], GradientSum::Host);
}

#[test]
fn a_step_inside_a_pool_of_one_thread_ends() {
    let settings = options(Trainable::Adapter { slot: SLOT });
    let [mut one, mut several] = both(model_with_adapter, settings, 2);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let batches = &documents()[..2];
    let found = pool.install(|| several.step(batches).numbers().means.loss);
    let expected = one.step(batches).numbers().means.loss;
    assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
}
