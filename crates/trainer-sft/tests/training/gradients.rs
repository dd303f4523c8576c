//! Gradients of a step: batches, packing, and what is kept or computed again.

use burn::tensor::DType;
use kv_paging::CausalAttention;
use lora_4bit::{AdapterSelection, Dropout, Weight};
use trainer_sft::loss::{self, Targets};
use trainer_sft::parameters::GradientStore;
use trainer_sft::step::{self, Noise, StepOptions};
use trainer_sft::trainer::Trainer;

use super::*;

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
    for (qk_norm, p, modules, dora) in [
        (false, 0.0, false, false),
        (false, 0.0, true, false),
        (true, 0.0, true, false),
        (true, 0.25, false, false),
        (false, 0.0, false, true),
        (true, 0.0, true, true),
        (false, 0.25, false, true),
        (true, 0.25, true, true),
    ] {
        let mut model = model(qk_norm && !modules, qk_norm);
        let mut adapter = support::adapter(&model, 3);
        if dora {
            adapter.config.use_dora = true;
            // In some layers only, of which two share an input with one that has none.
            for (name, matrices) in &mut adapter.modules {
                let has = !name.ends_with("v_proj");
                matrices.magnitude = has.then(|| vec![0.7; matrices.out_features]);
            }
        }
        model.add_adapter(SLOT, &adapter).unwrap();
        let batch = pack(&documents());
        let trainable = match modules {
            false => Trainable::Adapter { slot: SLOT },
            true => Trainable::AdapterAndModules {
                slot: SLOT,
                embed_tokens: true,
                lm_head: true,
            },
        };
        let dropout = (p > 0.0).then_some(Dropout { p, seed: 3 });
        let adapters = AdapterSelection::All {
            slot: SLOT,
            dropout,
        };
        let (mut expected, mut found) = (GradientStore::default(), GradientStore::default());
        let noise = qk_norm.then_some(Noise {
            alpha: 5.0,
            seed: 1,
        });
        let mut options = StepOptions {
            trainable,
            adapters: &adapters,
            checkpointing: Checkpointing::On,
            noise,
        };
        let loss = step::forward_backward(&model, &batch, options, 0.5, &mut expected);
        if qk_norm {
            options.checkpointing = Checkpointing::Off;
        }
        let explicit = step::explicit::forward_backward(&model, &batch, options, 0.5, &mut found);
        assert_close("loss", &values(&explicit), &values(&loss), 1e-5);
        assert!(expected.names().eq(found.names()));
        for name in expected.names() {
            let (a, b) = (found.get(name).unwrap(), expected.get(name).unwrap());
            assert_close(name, &values(a), &values(b), 1e-4);
        }
        // The same loss from outside: what preferences and rewards do.
        let targets = Targets::new(&batch.targets);
        let mut from_outside = GradientStore::default();
        let outside = step::explicit::backward_of_loss(
            &model,
            &batch,
            options,
            &mut from_outside,
            |lm_head, x, trained| loss::backward(lm_head, x, &targets, 0.5, trained),
        );
        assert_close("loss from outside", &values(&outside), &values(&loss), 1e-5);
        assert!(expected.names().eq(from_outside.names()));
        for name in expected.names() {
            let (a, b) = (from_outside.get(name).unwrap(), expected.get(name).unwrap());
            assert_close(name, &values(a), &values(b), 1e-4);
        }
        if dropout.is_none() && noise.is_none() {
            let evaluated = step::explicit::forward(&model, &batch, &adapters);
            assert_close("evaluated", &values(&evaluated), &values(&loss), 1e-5);
        }
    }
}

/// The same of every weight, with heads that are tied or have norms.
#[test]
fn the_explicit_step_of_all_weights_equals_the_graphs() {
    let adapters = AdapterSelection::Base;
    for (tied, qk_norm, kept) in [
        (true, false, Checkpointing::On),
        (false, true, Checkpointing::Off),
    ] {
        let model = model(tied, qk_norm);
        let batch = pack(&documents());
        let (mut expected, mut found) = (GradientStore::default(), GradientStore::default());
        let options = |checkpointing| StepOptions {
            trainable: Trainable::Full,
            adapters: &adapters,
            checkpointing,
            noise: None,
        };
        let graphs = options(Checkpointing::On);
        let loss = step::forward_backward(&model, &batch, graphs, 0.5, &mut expected);
        let explicit =
            step::explicit::forward_backward(&model, &batch, options(kept), 0.5, &mut found);
        assert_close("loss", &values(&explicit), &values(&loss), 1e-5);
        assert!(expected.names().eq(found.names()));
        for name in expected.names() {
            let (a, b) = (found.get(name).unwrap(), expected.get(name).unwrap());
            assert_close(name, &values(a), &values(b), 1e-4);
        }
        let evaluated = step::explicit::forward(&model, &batch, &adapters);
        assert_close("evaluated", &values(&evaluated), &values(&loss), 1e-5);
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
    for checkpointing in [
        Checkpointing::Off,
        Checkpointing::Auto,
        Checkpointing::Layers(1),
    ] {
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
