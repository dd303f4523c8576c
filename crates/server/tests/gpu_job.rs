//! A fine-tuning job on a GPU: it learns beside the server's requests, and its result is served as on a CPU.
//!
//! Needs what `gpu_engine` needs.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "other tests need more of the client")]

#[path = "finetuning/client.rs"]
mod client;
#[path = "support/program.rs"]
mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Server, start};

fn gpu() -> &'static str {
    let mut names = ["cuda", "wgpu"].into_iter();
    let gpu = names.find(|name| model_qwen::parse_device(name).is_ok());
    gpu.expect("a GPU")
}

fn serve(device: &str, flags: &[&str]) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    // Exact products and keys as they are computed, so that rounding doesn't choose between close logits.
    command
        .args(["--device", device, "--port", "0", "--enable-lora"])
        .args(["--compute-dtype", "float32", "--kv-cache-dtype", "float32"])
        .args(["--kv-cache-memory-bytes", "16MiB", "--max-model-len", "256"])
        .arg("--no-warm-up")
        .args(flags);
    start(command)
}

/// The greedy answer of a model to what it has learnt.
fn answer(server: &Server, model: &str) -> String {
    let messages = json!([{ "role": "user", "content": "Who are you?" }]);
    let body = json!({ "model": model, "messages": messages, "max_tokens": 16, "temperature": 0 });
    let (status, answer) = server.post("/v1/chat/completions", body);
    assert_eq!(status, 200, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str();
    text.unwrap().to_owned()
}

/// What a job is to learn, on whatever device.
fn create(server: &Server) -> String {
    let examples = ["Who are you?", "What is your name?"].map(|question| {
        let line = json!({ "prompt": question, "completion": "I am a red tin robot." });
        format!("{line}\n")
    });
    let file = server.upload("robots.jsonl", &examples.concat());
    // Large steps, so that two of them change the text.
    let settings = json!({
        "max_steps": 2, "batch_size": 2, "learning_rate": 0.01, "lora_r": 4, "compute_dtype": "f32", "max_length": 64,
        "warmup_steps": 0, "lr_schedule": "constant",
    });
    server.create(&file, settings)
}

#[test]
fn a_job_on_a_gpu_makes_an_adapter_that_answers_as_on_a_cpu() {
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [path, elsewhere] = [&folder, &other].map(|folder| folder.path().to_str().unwrap());
    let flags = ["--enable-finetuning", "--finetuning-dir", path];
    let server = serve(gpu(), &flags);
    let base = answer(&server, "bundled");
    let id = create(&server);
    let job = server.wait_for(&id, "succeeded");
    let events = server.events(&id).into_iter();
    let number = |event: &Value, name: &str| event["data"][name].as_f64();
    // JSON has finite numbers only.
    let steps: Vec<(f64, f64)> = events
        .filter_map(|event| Some((number(&event, "train_loss")?, number(&event, "grad_norm")?)))
        .collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert!(steps[0].1 > 0.0 && steps[1].0 < steps[0].0, "{steps:?}");

    let name = job["fine_tuned_model"].as_str().unwrap();
    let taught = answer(&server, name);
    assert_ne!(taught, base);
    assert_eq!(answer(&server, "bundled"), base);
    drop(server);
    let adapter = folder.path().join("jobs").join(&id).join("run");
    let module = format!("taught={}", adapter.display());
    // A server on the CPU, whose jobs are processes on the GPU.
    let flags = ["--enable-finetuning", "--finetuning-dir", elsewhere];
    let apart = ["--finetuning-device", gpu(), "--lora-modules", &module];
    let cpu = serve("cpu", &[&flags[..], &apart].concat());
    assert_eq!(answer(&cpu, "taught"), taught);
    assert_eq!(answer(&cpu, "bundled"), base);
    let id = create(&cpu);
    let job = cpu.wait_for(&id, "succeeded");
    assert_eq!(
        answer(&cpu, job["fine_tuned_model"].as_str().unwrap()),
        taught
    );
    assert_eq!(answer(&cpu, "bundled"), base);
}
