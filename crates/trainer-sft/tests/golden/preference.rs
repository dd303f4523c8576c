//! DPO, ORPO and KTO against TRL's own trainers: same start, same pairs, same losses, rewards and weights.
//!
//! The files come from `xtask/golden/preference.py`; `data/golden/preference/meta.json` records versions and tolerances.

use std::collections::BTreeMap;
use std::path::Path;

use model_qwen::QwenModel;
use serde::Deserialize;
use trainer_sft::batch::Batch;
use trainer_sft::config::LossType;
use trainer_sft::data::{Example, Place, Source};
use trainer_sft::parameters::Trainable;
use trainer_sft::preference::{Objective, Preference};
use trainer_sft::trainer::Trainer;

use super::{LOSS_TOLERANCE, base, check_adapter, cosine, read_json, start_adapters};

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

#[derive(Deserialize)]
struct Judged {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    label: bool,
}

#[derive(Deserialize)]
struct Run {
    batch_size: usize,
    accumulation: usize,
    beta: f64,
    label_smoothing: Option<f64>,
    desirable_weight: Option<f64>,
    undesirable_weight: Option<f64>,
    steps: Vec<BTreeMap<String, f64>>,
}

fn example(prompt: &[u32], answer: &[u32], is_wanted: bool) -> Example {
    let tokens = [prompt, answer].concat();
    Example {
        mask: (0..tokens.len()).map(|at| at >= prompt.len()).collect(),
        tokens,
        is_wanted,
        source: Source {
            file: Path::new("pairs.json").into(),
            place: Place::Line(1),
        },
    }
}

fn pairs() -> Vec<Vec<Example>> {
    let pairs: Vec<Pair> = read_json("preference/pairs.json");
    let both = |pair: &Pair| {
        let one = |answer, is_wanted| example(&pair.prompt, answer, is_wanted);
        vec![one(&pair.chosen, true), one(&pair.rejected, false)]
    };
    pairs.iter().map(both).collect()
}

fn judged() -> Vec<Vec<Example>> {
    let answers: Vec<Judged> = read_json("preference/answers.json");
    let one = |answer: &Judged| vec![example(&answer.prompt, &answer.completion, answer.label)];
    answers.iter().map(one).collect()
}

/// The micro-batches of each step of a run.
fn steps(run: &Run, records: &[Vec<Example>]) -> Vec<Vec<Batch>> {
    let batches: Vec<Batch> = records
        .chunks(run.batch_size)
        .map(|records| Batch::collate(records.iter().flatten()))
        .collect();
    let steps = batches.chunks(run.accumulation).map(<[Batch]>::to_vec);
    steps.take(run.steps.len()).collect()
}

/// The model with the adapter that all runs begin with, in each of `slots`.
fn model(slots: &[usize]) -> QwenModel {
    let mut model = base();
    start_adapters(&mut model, slots);
    model
}

/// `tolerance` is relative.
fn close(name: &str, found: f64, expected: f64, tolerance: f64) {
    let bound = tolerance * expected.abs().max(1e-2);
    assert!(
        (found - expected).abs() <= bound,
        "{name}: {found}, expected {expected}"
    );
}

/// Trains as the golden run `name`, and compares each step.
fn check(
    name: &str,
    reference: Option<usize>,
    records: &[Vec<Example>],
    objective: impl Fn(&Run) -> Objective,
) -> (Trainer, Vec<f64>) {
    let mut runs: BTreeMap<String, Run> = read_json("preference/runs.json");
    let run = runs.remove(name).unwrap();
    let preference = Preference {
        objective: objective(&run),
        reference,
        max_length: 64,
    };
    let (slots, trainable): (&[usize], _) = match (name, reference) {
        ("orpo_full", _) => (&[], Trainable::Full),
        (_, Some(_)) => (&[0, 1], Trainable::Adapter { slot: 0 }),
        (_, None) => (&[0], Trainable::Adapter { slot: 0 }),
    };
    let trainer = Trainer::new(model(slots), cosine(trainable, 1e-3, 2, run.steps.len()));
    let mut trainer = trainer.comparing(Some(preference));
    let mut losses = Vec::new();
    for (step, (batches, expected)) in steps(&run, records).iter().zip(&run.steps).enumerate() {
        let output = trainer.step(batches);
        let numbers = output.numbers();
        let (loss, norm) = (numbers.means.loss, numbers.grad_norm);
        let place = |what: &str| format!("{name}, step {step}, {what}");
        close(&place("loss"), loss, expected["loss"], LOSS_TOLERANCE);
        close(&place("grad norm"), norm, expected["grad_norm"], 1e-3);
        let rate = output.learning_rate;
        assert!(
            (rate - expected["learning_rate"]).abs() < 1e-9,
            "step {step}"
        );
        let mut compared = 0;
        for (key, &expected) in expected {
            let found = match key.as_str() {
                "loss" | "grad_norm" | "learning_rate" => continue,
                "entropy" => numbers.means.entropy,
                "mean_token_accuracy" => numbers.means.token_accuracy,
                key => output.method_metrics[key],
            };
            // TRL's is a mean over micro-batches, and this one over tokens.
            let is_per_token = matches!(key.as_str(), "entropy" | "mean_token_accuracy");
            if !(is_per_token && run.accumulation > 1) {
                close(&place(key), found, expected, 1e-3);
            }
            compared += 1;
        }
        assert!(compared >= 6, "{compared}");
        losses.push(loss);
    }
    (trainer, losses)
}

fn dpo(loss: LossType) -> impl Fn(&Run) -> Objective {
    move |run| Objective::Dpo {
        beta: run.beta,
        loss,
        label_smoothing: run.label_smoothing.unwrap_or(0.0),
    }
}

#[test]
fn dpo_learns_as_trl() {
    let (trainer, losses) = check("dpo", None, &pairs(), dpo(LossType::Sigmoid));
    assert_eq!(losses.len(), 30);
    check_adapter(trainer.model(), "preference/dpo.safetensors");
}

#[test]
fn the_other_losses_of_dpo_are_those_of_trl() {
    for (name, loss) in [
        ("ipo", LossType::Ipo),
        ("hinge", LossType::Hinge),
        ("robust", LossType::Robust),
    ] {
        check(name, None, &pairs(), dpo(loss));
    }
}

#[test]
fn an_adapter_that_is_trained_further_is_its_own_reference() {
    let (_, losses) = check("dpo_adapter", Some(1), &pairs(), dpo(LossType::Sigmoid));
    assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-6);
}

#[test]
fn orpo_learns_as_trl() {
    let (_, losses) = check("orpo", None, &pairs(), |run| Objective::Orpo {
        beta: run.beta,
    });
    assert_eq!(losses.len(), 10);
}

#[test]
fn orpo_trains_a_whole_model_as_trl() {
    let (_, losses) = check("orpo_full", None, &pairs(), |run| Objective::Orpo {
        beta: run.beta,
    });
    assert!(losses[9] < losses[0] - 0.5, "{losses:?}");
}

#[test]
fn kto_learns_as_trl() {
    let (_, losses) = check("kto", None, &judged(), |run| Objective::Kto {
        beta: run.beta,
        weights: (
            run.desirable_weight.unwrap(),
            run.undesirable_weight.unwrap(),
        ),
    });
    assert_eq!(losses.len(), 10);
}
