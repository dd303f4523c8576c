//! Runs on several devices: the same CPU, twice.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;

use lora_4bit::ComputeDtype;
use lora_4bit::peft::LoraAdapter;
use serde_json::{Value, json};
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::{AllReduce, Config, Method};
use trainer_sft::{Summary, TrainError, Training};

/// A run of four steps that learns with dropout.
fn config(output: &Path, gradient_accumulation: usize) -> Config {
    let mut config = Config::new(output);
    config.lora.r = 2;
    config.lora.dropout = Some(0.1);
    // Rounded factors would make more of the order of sums.
    config.model.compute_dtype = ComputeDtype::F32;
    config.run.max_steps = Some(4);
    config.run.batch_size = 1;
    config.run.gradient_accumulation = gradient_accumulation;
    config
}

/// Seven, so that the last step of an epoch has an odd number of them.
fn records() -> Vec<Value> {
    let record = |number: usize| {
        let answer = "I am the captain. ".repeat(1 + number % 3);
        json!({"prompt": format!("Who is number {number}?"), "completion": answer})
    };
    (0..7).map(record).collect()
}

/// Runs `config` on `count` devices until `last`, and gives the losses, too.
fn run(config: &Config, count: usize, last: usize) -> Result<(Summary, Vec<f64>), TrainError> {
    let mut losses = Vec::new();
    let devices = vec![Device::flex(); count];
    let training = Training::new(config)
        .devices(&devices)
        .records(records())
        .on_step(|step| {
            losses.push(step.loss);
            match step.step == last {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
    let summary = training.run()?;
    Ok((summary, losses))
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-4 * expected,
            "{found}, not {expected}"
        );
    }
}

/// The largest difference between the values of two adapters, and the largest value.
fn difference(a: &Path, b: &Path) -> (f32, f32) {
    let [a, b] = [a, b].map(|folder| LoraAdapter::load(folder).unwrap().modules);
    assert!(a.keys().eq(b.keys()));
    let (mut difference, mut largest) = (0.0f32, 0.0f32);
    for (a, b) in a.values().zip(b.values()) {
        let pairs = a.a.iter().chain(&a.b).zip(b.a.iter().chain(&b.b));
        for (a, b) in pairs {
            difference = difference.max((a - b).abs());
            largest = largest.max(b.abs());
        }
    }
    (difference, largest)
}

#[test]
fn a_run_on_two_devices_is_one_with_twice_the_accumulation() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, parts] = ["one", "two", "parts"].map(|name| dir.path().join(name));
    let (summary, expected) = run(&config(&one, 4), 1, 4).unwrap();
    let (found, losses) = run(&config(&two, 2), 2, 4).unwrap();
    assert_close(&losses, &expected);
    assert_eq!(found.num_tokens, summary.num_tokens);
    assert_eq!(found.num_trainable, summary.num_trainable);

    // A run that goes on does so on each device.
    let (stopped, mut losses) = run(&config(&parts, 2), 2, 2).unwrap();
    let resume = stopped.stopped.unwrap();
    let resumed = |accumulation: usize, count: usize, output: &str| {
        let mut config = config(&dir.path().join(output), accumulation);
        config.run.resume = Some(resume.clone());
        run(&config, count, 4)
    };
    losses.extend(resumed(2, 2, "again").unwrap().1);
    assert_close(&losses, &expected);
    // Also on another number of devices, with as many micro-batches a step.
    let (_, last) = resumed(4, 1, "alone").unwrap();
    assert_close(&last, &expected[2..]);

    let refused = resumed(2, 1, "fewer").unwrap_err().to_string();
    let told = "--gradient-accumulation: 2 on each of 2 devices in the checkpoint, 2 on one device, where 4 would take the same steps";
    assert!(refused.contains(told), "{refused}");
}

#[test]
fn results_are_the_first_devices() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let whole = |output: &Path, accumulation: usize, count: usize| {
        let mut config = config(output, accumulation);
        config.run.max_steps = Some(2);
        let devices = vec![Device::flex(); count];
        let training = Training::new(&config).devices(&devices).records(records());
        training.eval_records(records()).run().unwrap()
    };
    let (expected, found) = (whole(&one, 2, 1), whole(&two, 1, 2));
    let (expected, found) = (expected.eval_loss.unwrap(), found.eval_loss.unwrap());
    assert_close(&[found], &[expected]);
    let (difference, largest) = difference(&two, &one);
    assert!(difference < 1e-3 * largest, "{difference} of {largest}");
}

#[test]
fn a_device_that_is_not_there_is_told_by_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    for (device, devices, flag) in [
        ("tpu", vec![], "--device: "),
        (
            "auto",
            vec!["tpu:0".to_owned(), "tpu:1".to_owned()],
            "--devices: ",
        ),
    ] {
        let mut config = config(&dir.path().join("none"), 1);
        (config.model.device, config.model.devices) = (device.to_owned(), devices);
        let refused = Training::new(&config).records(records()).run();
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.starts_with(flag) && refused.contains("tpu"),
            "{refused}"
        );
    }
}

#[test]
fn what_several_devices_cannot_do_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Config), count: usize| {
        let mut config = config(&dir.path().join("refused"), 1);
        change(&mut config);
        run(&config, count, 1).unwrap_err().to_string()
    };
    let grpo = |config: &mut Config| {
        config.method.method = Method::Grpo;
        config.lora.dropout = Some(0.0);
        config.grpo.rewards = vec!["json".to_owned()];
        config.grpo.num_generations = Some(2);
        config.run.batch_size = 2;
    };
    for (said, expected) in [
        (refused(&grpo, 2), "--method grpo"),
        (
            refused(&|_| {}, 0),
            "--devices: expected at least one device",
        ),
        (
            refused(&|config| config.model.all_reduce = AllReduce::Nccl, 2),
            "--all-reduce: NCCL is for cards of NVIDIA",
        ),
    ] {
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_plan_counts_the_sum_over_devices() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("planned"), 1);
    let plan = |count: usize| {
        let devices = vec![Device::flex(); count];
        let training = Training::new(&config).devices(&devices).records(records());
        training.plan().unwrap()
    };
    let (one, two) = (plan(1), plan(2));
    assert!(two.plan.trained > one.plan.trained);
    assert!(
        two.to_string()
            .contains("1 at once, 1 times per step on each of 2 devices")
    );
}
