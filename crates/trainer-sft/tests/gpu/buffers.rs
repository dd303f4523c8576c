//! An adapter whose tensors lie in buffers.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use lora_4bit::ComputeDtype;
use trainer_sft::batch::Batch;
use trainer_sft::lora::SLOT;
use trainer_sft::optimizer::{AdamW, Moments};
use trainer_sft::parameters::visit_model;
use trainer_sft::replicas::GradientSum;
use trainer_sft::trainer::Trainer;

use super::{Kind, PLAIN, batch, gpus::gpu, trainer, values};

/// What is trained, by name.
fn trained(trainer: &mut Trainer) -> BTreeMap<String, Vec<f32>> {
    let trainable = trainer.options().trainable;
    let mut all = BTreeMap::new();
    visit_model(
        &mut trainer.model().clone(),
        trainable,
        &mut |name, parameter| {
            all.insert(name.to_owned(), values(&parameter.value()));
        },
    );
    all
}

/// Means and variances, by name.
fn moments(optimizer: &AdamW) -> BTreeMap<String, [Vec<f32>; 2]> {
    let all = optimizer.moments().into_iter();
    all.map(|(name, Moments { mean, variance })| (name, [values(&mean), values(&variance)]))
        .collect()
}

/// A trainer that goes on where another one is, from what a checkpoint would have of it.
fn resumed(kind: Kind, before: &mut Trainer, loraplus: f64) -> Trainer {
    let device = gpu();
    let tensor = |values: Vec<f32>| {
        let len = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [len]), (&device, DType::F32))
    };
    let optimizer = before.optimizer();
    let state = moments(optimizer).into_iter().map(|(name, moments)| {
        let [mean, variance] = moments.map(tensor);
        (name, Moments { mean, variance })
    });
    let new = trainer(kind, ComputeDtype::Bf16, &device);
    let mut options = *new.options();
    options.loraplus_lr_ratio = loraplus;
    let state = AdamW::resume(options.optimizer, optimizer.step(), state.collect());
    let mut model = new.model().clone();
    let mut known = trained(before);
    visit_model(&mut model, options.trainable, &mut |name, parameter| {
        parameter.replace(|_| tensor(known.remove(name).unwrap()));
    });
    // Of DoRA's rows.
    model
        .linears_mut()
        .for_each(|linear| linear.update_norm(SLOT));
    Trainer::resume(model, options, state)
}

#[test]
fn a_run_goes_on_where_it_stopped() {
    let batches = [batch(&[5, 70, 33]), batch(&[12])];
    let dora = Kind {
        dora: true,
        dropout: true,
        ..PLAIN
    };
    let modules = Kind {
        modules: true,
        ..PLAIN
    };
    // Down's A then has 192 values, which are no part of a buffer.
    let rank_one = Kind {
        rank_one: true,
        ..PLAIN
    };
    let some = Kind {
        some: true,
        ..PLAIN
    };
    for (kind, loraplus) in [
        (PLAIN, 1.0),
        (some, 4.0),
        (dora, 4.0),
        (modules, 1.0),
        (rank_one, 4.0),
    ] {
        let mut whole = trainer(kind, ComputeDtype::Bf16, &gpu());
        let mut options = *whole.options();
        options.loraplus_lr_ratio = loraplus;
        whole = Trainer::new(whole.model().clone(), options);
        let start = trained(&mut whole);
        let losses = |trainer: &mut Trainer, batches: &[Batch]| {
            [(); 2].map(|()| trainer.step(batches).numbers())
        };
        losses(&mut whole, &batches);
        let (held, copy) = (trained(&mut whole), whole.optimizer().clone());
        let known = moments(&copy);
        assert_eq!(known.len(), held.len(), "{kind:?}");
        let moved = start
            .iter()
            .filter(|(name, values)| held[*name] != **values);
        assert_eq!(moved.count(), held.len(), "{kind:?}: all are trained");
        let mut half = resumed(kind, &mut whole, loraplus);
        assert_eq!(
            losses(&mut half, &batches),
            losses(&mut whole, &batches),
            "{kind:?}"
        );
        assert_eq!(trained(&mut half), trained(&mut whole), "{kind:?}");
        assert_eq!(
            moments(half.optimizer()),
            moments(whole.optimizer()),
            "{kind:?}"
        );
        // What somebody has taken stays.
        assert_eq!(moments(&copy), known, "{kind:?}");

        // Without a target nothing moves.
        let held = trained(&mut whole);
        let mut nothing = batches.clone();
        nothing
            .iter_mut()
            .for_each(|batch| batch.targets.fill(None));
        let found = losses(&mut whole, &nothing);
        let found = found.map(|numbers| (numbers.means.loss, numbers.grad_norm));
        assert_eq!(found, [(0.0, 0.0); 2]);
        assert_eq!(trained(&mut whole), held, "{kind:?}");
    }
}

/// Also where a part of what is trained lies in no buffer, and where a replica has no micro-batch.
#[test]
fn replicas_take_the_steps_of_one() {
    let device = gpu();
    let batches = [batch(&[5, 70, 33]), batch(&[64, 1]), batch(&[12])];
    let modules = Kind {
        modules: true,
        ..PLAIN
    };
    for (kind, batches) in [
        (PLAIN, &batches[..]),
        (PLAIN, &batches[..1]),
        (modules, &batches[..]),
    ] {
        let new = || trainer(kind, ComputeDtype::F32, &device);
        let (mut one, mut two) = (new(), new().with_replicas(vec![new()], GradientSum::Host));
        for step in 0..3 {
            let (expected, found) = (one.step(batches).numbers(), two.step(batches).numbers());
            for (found, expected) in [
                (found.means.loss, expected.means.loss),
                (found.grad_norm, expected.grad_norm),
            ] {
                let off = (found - expected).abs() / expected.abs();
                assert!(off < 1e-4, "{kind:?}: step {step}: {found}, not {expected}");
            }
        }
    }
}

/// Gradients that somebody asks for stay when steps follow.
#[test]
fn gradients_are_no_part_of_a_step() {
    let batches = [batch(&[5, 70, 33])];
    let mut trainer = trainer(PLAIN, ComputeDtype::Bf16, &gpu());
    trainer.step(&batches);
    let (_, gradients) = trainer.gradients(&batches);
    let all = || -> BTreeMap<String, Vec<f32>> {
        let names = gradients.names();
        names
            .map(|name| (name.to_owned(), values(gradients.get(name).unwrap())))
            .collect()
    };
    let before = all();
    trainer.step(&batches);
    assert_eq!(all(), before);
    assert!(
        before
            .values()
            .all(|values| values.iter().any(|value| *value != 0.0))
    );
}

/// Other tensors in their place are trained from then on.
#[test]
fn replaced_tensors_are_trained() {
    let batches = [batch(&[5, 70, 33])];
    let mut first = trainer(PLAIN, ComputeDtype::Bf16, &gpu());
    first.step(&batches);
    let known = trained(&mut first);
    first.step(&batches);
    let trainable = first.options().trainable;
    visit_model(first.model_mut(), trainable, &mut |name, parameter| {
        let values = known[name].clone();
        let len = values.len();
        let data = TensorData::new(values, [len]);
        parameter.replace(|old| Tensor::from_data(data, (&old.device(), DType::F32)));
    });
    let loss = first.step(&batches).numbers().means.loss;
    let again = trained(&mut first);
    assert!(again.iter().all(|(name, values)| known[name] != *values));
    let mut second = trainer(PLAIN, ComputeDtype::Bf16, &gpu());
    second.step(&batches);
    assert_eq!(second.step(&batches).numbers().means.loss, loss);
}
