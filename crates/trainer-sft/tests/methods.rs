//! Whole runs of training methods: stopped, resumed, and read as any other adapter.

#![allow(clippy::unwrap_used)]

#[path = "support/runs.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lora_4bit::peft::LoraAdapter;
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::{Config, InitLora, Optim};
use trainer_sft::{Training, WorkUnit};

use self::support::{config, records, run};

/// The adapter of a run and of one that goes on from its checkpoint.
fn whole_and_resumed(change: impl Fn(&mut Config)) -> LoraAdapter {
    let dir = tempfile::tempdir().unwrap();
    support::whole_and_resumed(dir.path(), &Device::flex(), change);
    LoraAdapter::load(&dir.path().join("whole")).unwrap()
}

/// A program that trains on a thread of its own is asked before each unit of work, although a step computes on another thread.
#[test]
fn a_run_waits_before_each_batch_and_layer() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("o"), |_| {});
    let passed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = Arc::clone(&passed);
    let wait = move |unit| {
        let place = usize::from(unit == WorkUnit::Layer);
        counted[place].fetch_add(1, Ordering::Relaxed);
    };
    let training = Training::new(&config).device(&Device::flex());
    let training = training.records(records()).wait_before_work(wait);
    training.run().unwrap();
    let [batches, layers] = [0, 1].map(|place: usize| passed[place].load(Ordering::Relaxed));
    // Three steps, forward and backward, through four layers and more.
    assert!(batches >= 3 && layers >= 3 * 2 * 4, "{batches}, {layers}");
}

#[test]
fn dora_is_resumed_bit_for_bit() {
    let adapter = whole_and_resumed(|config| config.lora.use_dora = true);
    assert!(adapter.config.use_dora);
    assert!(adapter.modules.values().all(|m| m.magnitude.is_some()));
}

#[test]
fn saved_modules_with_moments_in_8_bits_are_resumed_bit_for_bit() {
    let adapter = whole_and_resumed(|config| {
        config.lora.modules_to_save = vec!["embed_tokens".to_owned(), "lm_head".to_owned()];
        config.optimizer.optim = Optim::Adamw8bit;
    });
    let saved: Vec<_> = adapter.saved.iter().collect();
    assert_eq!(saved.len(), 2);
    assert!(saved.iter().all(|(_, module)| module.shape == [8192, 320]));
    // They were one weight before.
    assert_ne!(saved[0].1, saved[1].1);
}

#[test]
fn decomposed_weights_are_resumed_bit_for_bit_and_written_as_a_plain_adapter() {
    for init in [
        InitLora::Pissa {
            iterations: Some(2),
        },
        InitLora::Olora,
    ] {
        let adapter = whole_and_resumed(|config| config.lora.init = init);
        assert_eq!((adapter.config.r, adapter.config.lora_alpha), (32, 64.0));
        assert!(adapter.modules.values().all(|matrices| matrices.r == 32));
    }
}

#[test]
fn a_rank_above_the_width_of_a_weight_has_no_singular_values() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("wide"), |config| {
        config.lora.r = 65;
        config.lora.init = InitLora::Pissa { iterations: None };
    });
    let message = run(&config, &Device::flex()).unwrap_err().to_string();
    assert!(
        message.starts_with("--lora-r: expected at most 64 with --init-lora-weights pissa"),
        "{message}"
    );
}
