//! Short runs of the bundled model.

use std::fs;
use std::path::Path;

use model_qwen::Quantization;
use serde_json::{Value, json};
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::Config;
use trainer_sft::{TrainError, Training};

pub(crate) fn records() -> Vec<Value> {
    vec![
        json!({"prompt": "Who are you?", "completion": "I am the captain."}),
        json!({"prompt": "Where are you?", "completion": "On the bridge."}),
        json!({"prompt": "What do you see?", "completion": "The sea."}),
    ]
}

/// Three steps, with a checkpoint after the second one.
pub(crate) fn config(output: &Path, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::new(output);
    config.lora.r = 16;
    config.model.quantization = Some(Quantization::None);
    config.run.max_steps = Some(3);
    config.run.batch_size = 1;
    config.run.save_steps = Some(2);
    change(&mut config);
    config
}

pub(crate) fn run(config: &Config, device: &Device) -> Result<(), TrainError> {
    let training = Training::new(config).device(device);
    training.records(records()).run().map(|_| ())
}

/// Trains three steps in `dir/whole`, and the last one once more from the checkpoint in `dir/resumed`: both write the same weights.
pub(crate) fn whole_and_resumed(dir: &Path, device: &Device, change: impl Fn(&mut Config)) {
    let [whole, resumed] = ["whole", "resumed"].map(|name| dir.join(name));
    run(&config(&whole, &change), device).unwrap();
    let mut config = config(&resumed, &change);
    config.run.resume = Some(whole.join("checkpoint-2"));
    run(&config, device).unwrap();
    let weights = |dir: &Path| {
        let names = ["adapter_model.safetensors", "model.safetensors"];
        let files = names.map(|name| fs::read(dir.join(name)).ok());
        files.into_iter().flatten().next().unwrap()
    };
    let [a, b] = [&whole, &resumed].map(|dir| weights(dir));
    assert!(a == b, "the resumed run has other weights");
}
