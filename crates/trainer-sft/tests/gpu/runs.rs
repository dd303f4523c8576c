//! Whole runs on a GPU: stopped, resumed, and ended by a card that has no room.

use burn::tensor::{DType, Tensor};
use trainer_sft::config::{Config, Optim};
use trainer_sft::{TrainError, Training};

use super::gpus::gpu;
use super::short_runs::{config, records, run, whole_and_resumed};

#[test]
fn runs_are_resumed_bit_for_bit() {
    let kinds: [fn(&mut Config); 2] = [
        |config| {
            config.lora.dropout = Some(0.1);
            config.optimizer.optim = Optim::Adamw8bit;
        },
        |config| config.run.full = true,
    ];
    for change in kinds {
        let dir = tempfile::tempdir().unwrap();
        whole_and_resumed(dir.path(), &gpu(), change);
    }
}

/// The card has no room in the third step: the run ends with the newest checkpoint, from which another one goes on.
#[test]
fn a_run_that_finds_no_room_leaves_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, failed, resumed] = ["whole", "failed", "resumed"].map(|name| dir.path().join(name));
    run(&config(&whole, |_| {}), &gpu()).unwrap();

    let settings = config(&failed, |_| {});
    let checkpoint = failed.join("checkpoint-2");
    let seen = checkpoint.clone();
    let no_room = move |_| {
        // As what a step allocates: more than any card has.
        if seen.is_dir() {
            let _ = Tensor::<1>::zeros([1usize << 45], (&gpu(), DType::F32)).into_data();
        }
    };
    let training = Training::new(&settings).device(&gpu());
    let training = training.records(records()).wait_before_work(no_room);
    let error = training.run().unwrap_err();
    assert!(matches!(&error, TrainError::DeviceFailed { .. }), "{error}");
    let said = error.to_string();
    assert!(said.starts_with("step 3: the device has failed"), "{said}");
    assert!(said.contains(&checkpoint.display().to_string()), "{said}");

    let mut settings = config(&resumed, |_| {});
    settings.run.resume = Some(checkpoint);
    run(&settings, &gpu()).unwrap();
    let [a, b] = [&whole, &resumed].map(|dir| std::fs::read(dir.join("adapter_model.safetensors")));
    assert!(a.unwrap() == b.unwrap(), "the adapters differ");
}
