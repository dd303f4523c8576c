//! Learning rates and optimizers against PEFT, PyTorch and bitsandbytes: LoRA+, rsLoRA, the weights after `--full`, and AdamW with
//! moments in 8 bits.
//!
//! The files come from `xtask/golden/optimizers.py`; `data/golden/optimizers/meta.json` records versions and tolerances.

use lora_4bit::peft::LoraAdapter;
use serde_json::Value;
use trainer_sft::args::Args;
use trainer_sft::lora::{SLOT, new_adapter, put_adapter, read_adapter};
use trainer_sft::parameters::{Trainable, visit_model};
use trainer_sft::trainer::{Trainer, TrainerOptions};

use super::{
    Log, base, batches, check_adapter, check_log, cosine, golden, largest_difference, peft_name,
    read_json, start_adapters, tensors,
};

const STEPS: usize = 30;
/// Values from which on moments are in 8 bits.
const BYTES_FROM: usize = 4096;

/// How far a weight that was trained itself may be from PyTorch's, by `optimizers/meta.json`. `by_bytes` says that moments of many
/// values are in 8 bits.
fn tolerance(key: &str, count: usize, by_bytes: bool) -> f32 {
    let name = match (by_bytes, count >= BYTES_FROM) {
        // Attention hardly feels it: its gradient is all but rounding, of which AdamW makes whole steps.
        _ if key.ends_with("k_proj.bias") => "k_proj.bias",
        (false, _) => "weights",
        // A difference in the last bit may become one of a whole code.
        (true, true) => "weights_8bit",
        (true, false) => "weights_beside_8bit",
    };
    let meta: Value = read_json("optimizers/meta.json");
    meta["tolerances"][name].as_f64().unwrap() as f32
}

fn log(name: &str) -> Log {
    read_json(&format!("optimizers/{name}.json"))
}

#[test]
fn lora_plus_trains_as_in_peft() {
    let mut model = base();
    start_adapters(&mut model, &[SLOT]);
    let options = TrainerOptions {
        loraplus_lr_ratio: 16.0,
        ..cosine(Trainable::Adapter { slot: SLOT }, 1e-3, 5, STEPS)
    };
    let mut trainer = Trainer::new(model, options);
    check_log(&mut trainer, &batches()[..STEPS], &log("loraplus"));
    check_adapter(trainer.model(), "optimizers/loraplus.safetensors");
}

/// From the flag to the scale, and to the file that PEFT reads.
#[test]
fn rank_stabilized_lora_trains_as_in_peft() {
    let flags = [
        "--data",
        "a.jsonl",
        "--lora-r",
        "4",
        "--lora-alpha",
        "8",
        "--use-rslora",
    ];
    let command = [&["trainer-sft"], &flags[..]].concat();
    let config = Args::parse_config(command).unwrap();
    let mut model = base();
    let base_name = Some("tiny-qwen2".to_owned());
    let mut adapter = new_adapter(&config.lora, base_name, &model, 0);
    let initial = tensors(&golden("training/initial.safetensors"));
    for (name, matrices) in &mut adapter.modules {
        matrices.a.clone_from(&initial[&peft_name(name, "A")].1);
        matrices.b.clone_from(&initial[&peft_name(name, "B")].1);
    }
    put_adapter(&mut model, SLOT, adapter.clone()).unwrap();
    for (_, linear) in model.linears() {
        assert_eq!(linear.adapter(SLOT).unwrap().scaling, 4.0);
    }
    let options = cosine(Trainable::Adapter { slot: SLOT }, 1e-3, 5, STEPS);
    let mut trainer = Trainer::new(model, options);
    check_log(&mut trainer, &batches()[..STEPS], &log("rslora"));
    check_adapter(trainer.model(), "optimizers/rslora.safetensors");

    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("adapter");
    let trained = read_adapter(trainer.model(), SLOT, &adapter.config);
    trained.save(&written).unwrap();
    let read = |path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let (found, expected) = (
        read(written.join("adapter_config.json")),
        read(golden("optimizers/rslora_config.json")),
    );
    for key in [
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
    ] {
        assert_eq!(found[key], expected[key], "{key}");
    }
    assert_eq!(found["use_rslora"], true);
    let again = LoraAdapter::load(&written).unwrap();
    assert_eq!(again.config.scaling_for("model.layers.0.mlp.up_proj"), 4.0);
}

/// Compares all weights with a file of PyTorch's, which must be far from the start.
fn check_weights(trainer: &mut Trainer, name: &str, by_bytes: bool) {
    let expected = tensors(&golden(&format!("optimizers/{name}.safetensors")));
    let start = tensors(&golden("training/model/model.safetensors"));
    let mut count = 0;
    visit_model(
        &mut trainer.model().clone(),
        Trainable::Full,
        &mut |key, parameter| {
            let found: Vec<f32> = parameter.value().into_data().iter::<f32>().collect();
            let (_, values) = &expected[key];
            assert_eq!(found.len(), values.len(), "{key}");
            let tolerance = tolerance(key, values.len(), by_bytes);
            let worst = largest_difference(&found, values);
            assert!(worst < tolerance, "{key}: largest difference {worst}");
            let moved = largest_difference(&start[key].1, values);
            assert!(moved > 5.0 * tolerance, "{key}: too short a run: {moved}");
            count += 1;
        },
    );
    assert_eq!(count, expected.len());
}

#[test]
fn weights_of_full_training_are_those_of_pytorch() {
    let steps = &batches()[..20];
    let mut options = cosine(Trainable::Full, 3e-3, 5, steps.len());
    options.optimizer.beta2 = 0.95;
    let mut trainer = Trainer::new(base(), options);
    for batches in steps {
        trainer.step(batches);
    }
    check_weights(&mut trainer, "full", false);
}

/// With moments in f32 the weights would be up to 0.0058 off.
#[test]
fn moments_in_eight_bits_train_as_in_bitsandbytes() {
    let mut options = cosine(Trainable::Full, 1e-3, 5, STEPS);
    options.optimizer.eight_bit = true;
    let mut trainer = Trainer::new(base(), options);
    check_log(&mut trainer, &batches()[..STEPS], &log("full_8bit"));
    // Those of fewer than 4,096 values stay in f32.
    let optimizer = trainer.optimizer();
    assert!(optimizer.byte_moments().count() > 10);
    assert!(!optimizer.moments().is_empty());
    check_weights(&mut trainer, "full_8bit", true);
}
