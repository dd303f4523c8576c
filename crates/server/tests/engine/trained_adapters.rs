//! Adapters that the trainer has written: the server answers with each form as the trainer did.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use model_qwen::Quantization;
use serde_json::{Value, json};
use trainer_sft::Training;
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::{Config, InitLora};
use trainer_sft::program::Commands;
use trainer_sft::tools::Tool;

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
    let forms: [(&str, Change); 6] = [
        ("plain", |_| ()),
        ("dora", |config| config.lora.use_dora = true),
        ("pissa", |config| {
            config.lora.init = InitLora::Pissa { iterations: None };
        }),
        ("olora", |config| config.lora.init = InitLora::Olora),
        ("rslora", |config| config.lora.use_rslora = true),
        ("loraplus", |config| {
            config.optimizer.loraplus_lr_ratio = Some(4.0);
        }),
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

/// The server refuses an adapter with whole weights, and serves the model that the command of the refusal writes.
#[test]
fn whole_weights_are_served_merged() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, [before, after]) = train(dir.path(), "saved", |config| {
        config.lora.modules_to_save = vec!["embed_tokens".to_owned(), "lm_head".to_owned()];
    });
    assert_ne!(before, after, "nothing was learnt");
    let server = Server::start_bundled(&["--enable-lora", "--lora-roots", "/"]);
    let body = json!({"lora_name": "saved", "lora_path": adapter});
    let (status, answer) = server.post("/v1/load_lora_adapter", &body);
    assert_eq!(status, 400, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("`trainer-sft merge --adapter FOLDER --output MODEL`"),
        "{message}"
    );
    drop(server);

    let merged = dir.path().join("merged");
    let [adapter, folder] = [&adapter, &merged].map(|path| path.to_str().unwrap());
    let words = [
        "trainer-sft",
        "merge",
        "--adapter",
        adapter,
        "--output",
        folder,
        "--dtype",
        "f32",
    ];
    let merge = Tool::parse(words.map(Into::into)).unwrap().unwrap();
    merge
        .run(&AtomicBool::new(false), Commands::OF_CARGO)
        .unwrap();
    let server = Server::start_bundled(&["--model", folder]);
    assert_eq!(answers(&server, "base"), after);
}

/// A checkpoint has all weights in f32. The result rounds them to the dtype of the base, which decides where two tokens are nearly as likely.
#[test]
fn a_model_that_was_trained_whole_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (model, [before, after]) = train(dir.path(), "full", |config| {
        config.run.full = true;
        config.run.save_steps = Some(6);
        config.optimizer.learning_rate = Some(5e-4);
    });
    assert_ne!(before, after, "nothing was learnt");
    let served = |folder: &Path| {
        let server = Server::start_bundled(&["--model", folder.to_str().unwrap()]);
        answers(&server, "base")
    };
    assert_eq!(served(&model.join("checkpoint-6")), after);
    let taught = "I am the captain of this ship.";
    assert_eq!([&after[0], &served(&model)[0]], [taught, taught]);
}
