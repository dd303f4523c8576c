//! Adapters that the trainer has written: the server answers with each form as the trainer did.

use std::fs;
use std::path::{Path, PathBuf};

use model_qwen::Quantization;
use serde_json::{Value, json};
use trainer_sft::Training;
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::{Config, InitLora};

use crate::client::Server;

const PROMPTS: [&str; 2] = ["Who are you?", "What do cats eat?"];
const MAX_TOKENS: usize = 16;

/// Trains the bundled model a little. Gives the folder, and the trainer's own answers before and after.
fn train(dir: &Path, name: &str, change: impl Fn(&mut Config)) -> (PathBuf, [Vec<String>; 2]) {
    let prompts = dir.join("prompts.txt");
    fs::write(&prompts, PROMPTS.join("\n")).unwrap();
    let mut config = Config::new(dir.join(name));
    config.model.quantization = Some(Quantization::None);
    config.lora.r = 4;
    config.optimizer.learning_rate = Some(5e-3);
    config.run.max_steps = Some(6);
    config.run.batch_size = 2;
    config.samples.prompts = Some(prompts);
    config.samples.max_tokens = Some(MAX_TOKENS);
    change(&mut config);
    let record = |i: usize| json!({"prompt": format!("Who is {i}?"), "completion": "I am the captain of this ship."});
    let training = Training::new(&config).device(&Device::flex());
    let summary = training.records((0..6).map(record)).run().unwrap();
    let text = fs::read_to_string(summary.output.join("samples.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines.collect();
    let of = |step: u64| {
        let lines = lines.iter().filter(|line| line["step"] == step);
        lines
            .map(|line| line["completion"].as_str().unwrap().to_owned())
            .collect()
    };
    (summary.output, [of(0), of(6)])
}

fn answers(server: &Server, model: &str) -> Vec<String> {
    let answer = |prompt: &&str| {
        let body = json!({
            "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": MAX_TOKENS,
            "temperature": 0, "repetition_penalty": 1.0,
        });
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        let text = &answer["choices"][0]["message"]["content"];
        text.as_str().unwrap().to_owned()
    };
    PROMPTS.iter().map(answer).collect()
}

#[test]
fn every_form_of_adapter_is_served_as_it_was_trained() {
    type Change = fn(&mut Config);
    let forms: [(&str, Change); 4] = [
        ("plain", |_| ()),
        ("dora", |config| config.lora.use_dora = true),
        ("pissa", |config| {
            config.lora.init = InitLora::Pissa { iterations: None };
        }),
        ("rslora", |config| config.lora.use_rslora = true),
    ];
    let dir = tempfile::tempdir().unwrap();
    let trained = forms.map(|(name, change)| (name, train(dir.path(), name, change)));
    let modules = trained
        .iter()
        .map(|(name, (folder, _))| format!("{name}={}", folder.display()));
    let modules: Vec<String> = modules.collect();
    let modules = modules.iter().map(String::as_str);
    let flags: Vec<&str> = ["--enable-lora", "--lora-modules"]
        .into_iter()
        .chain(modules)
        .collect();
    let server = Server::start_bundled(&flags);
    for (name, (_, [before, after])) in &trained {
        assert_ne!(before, after, "{name}: nothing was learnt");
        assert_eq!(&answers(&server, name), after, "{name}");
        assert_eq!(&answers(&server, "base"), before, "{name}");
    }
}
