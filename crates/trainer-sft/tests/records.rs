//! Training as a library: records in memory, a callback per step.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;

use lora_4bit::ComputeDtype;
use serde_json::{Value, json};
use trainer_sft::burn::tensor::Device;
use trainer_sft::chat_format::ChatFormat;
use trainer_sft::config::{Config, ConfigError};
use trainer_sft::data::{Datasets, Records};
use trainer_sft::{TrainError, Training};

fn config(output: &Path) -> Config {
    let mut config = Config::new(output);
    config.lora.r = 2;
    config.run.max_steps = Some(3);
    config.run.batch_size = 1;
    config
}

fn records() -> Vec<Value> {
    vec![
        json!({"prompt": "Who are you?", "completion": "I am the captain."}),
        json!({"messages": [
            {"role": "user", "content": "Where are you?"},
            {"role": "assistant", "content": "On the bridge."},
        ]}),
    ]
}

/// A few records may be a part of data whose other records have the field.
#[test]
fn records_of_a_program_may_lack_a_field_of_columns() {
    let mut config = Config::new("");
    config.data.columns = ["prompt=q", "completion=a", "system=context"]
        .map(str::to_owned)
        .to_vec();
    let format = ChatFormat::load(&config).unwrap();
    let records = Records {
        train: Some(vec![json!({"q": "Who are you?", "a": "The captain."})]),
        eval: None,
    };
    Datasets::load(&config, &format, records, None, false).unwrap();
}

#[test]
fn records_become_an_adapter_and_each_step_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("captain");
    let config = config(&output);
    let mut steps = Vec::new();
    let training = Training::new(&config)
        .device(&Device::flex())
        .records(records())
        .eval_records(records())
        .on_step(|step| {
            steps.push(*step);
            ControlFlow::Continue(())
        });
    let summary = training.run().unwrap();
    assert_eq!(summary.num_steps, 3);
    assert!(summary.eval_loss.is_some());
    assert!(output.join("adapter_model.safetensors").is_file());
    let numbers: Vec<_> = steps
        .iter()
        .map(|step| (step.step, step.total_steps))
        .collect();
    assert_eq!(numbers, [(1, 3), (2, 3), (3, 3)]);
    assert_eq!(summary.last_loss, Some(steps[2].loss));
    assert!(
        steps
            .iter()
            .all(|step| step.loss.is_finite() && step.num_tokens > 2)
    );

    let again = Training::new(&config).records(records()).run();
    let message = again.unwrap_err().to_string();
    assert!(message.contains("nothing is overwritten"), "{message}");
}

#[test]
fn the_callback_may_stop_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("stopped"));
    let training = Training::new(&config)
        .device(&Device::flex())
        .records(records())
        .on_step(|_| ControlFlow::Break(()));
    let summary = training.run().unwrap();
    assert_eq!(summary.num_steps, 1);
    assert!(
        summary
            .stopped
            .unwrap()
            .join("adapter_model.safetensors")
            .is_file()
    );
}

#[test]
fn what_cannot_be_learnt_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("none"));
    let run = |records: Vec<Value>| Training::new(&config).records(records).run();
    let message = run(vec![records().remove(0), json!({"text": 5})]);
    let message = message.unwrap_err().to_string();
    assert!(message.contains("records[1]"), "{message}");
    let message = run(Vec::new()).unwrap_err().to_string();
    assert_eq!(
        message,
        "records: expected at least one record, found an empty list"
    );
    let training = Training::new(&config).records(records());
    let message = training.eval_records([json!({"text": 5})]).run();
    let message = message.unwrap_err().to_string();
    assert!(
        message.starts_with("eval_records[0]: field `text`"),
        "{message}"
    );
    let mut shown = config.clone();
    shown.run.preview = Some(1);
    let message = Training::new(&shown).records(records()).run();
    let message = message.unwrap_err().to_string();
    assert!(message.contains("trainer_sft::preview"), "{message}");
    let mut streamed = config.clone();
    streamed.data.streaming = true;
    let message = Training::new(&streamed).records(records()).run();
    let message = message.unwrap_err().to_string();
    assert!(
        message.starts_with("--streaming reads files while the run goes on"),
        "{message}"
    );
    let without = Training::new(&config).run();
    assert!(matches!(
        without,
        Err(TrainError::Config(ConfigError::NoData))
    ));

    let mut wrong = config.clone();
    wrong.lora.r = 0;
    let message = Training::new(&wrong)
        .records(records())
        .run()
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("--lora-r: expected"), "{message}");
    let mut wrong = config.clone();
    wrong.model.compute_dtype = ComputeDtype::Bits16;
    let message = wrong.check().unwrap_err().to_string();
    assert!(message.contains("found bits16"), "{message}");
    let unset = Training::new(&Config::new("")).records(records()).run();
    assert!(unset.unwrap_err().to_string().starts_with("--output"));
}
