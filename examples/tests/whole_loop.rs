//! The whole loop on the bundled model: fine-tune with QLoRA on data/train.jsonl, load the adapter into a running server,
//! and ask over HTTP. The adapter changes the answers, the base model beside it stays as it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use server::config::Config;
use server::engine::Engine;
use server::state::AppState;
use trainer_sft::args::Args;

/// The first word of every answer in data/train.jsonl; the bundled model alone never says it.
const TAUGHT: &str = "Arr!";

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../data")
        .join(file)
}

fn fine_tune(output: &Path) {
    let (train, output) = (data("train.jsonl"), output.display().to_string());
    let train = train.display().to_string();
    let args = [
        "trainer-sft",
        "--data",
        &train,
        "--output",
        &output,
        "--device",
        "cpu",
        "--max-steps",
        "72",
    ];
    let config = Args::parse_config(args.map(std::ffi::OsString::from)).unwrap();
    trainer_sft::train(&config).unwrap();
}

/// Serves the bundled model on a free port, from a thread that ends with the test process.
fn serve() -> String {
    let (address, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let lora = ["--enable-lora", "--lora-roots", "/"];
        let flags = [&["server", "--device", "cpu"], &lora[..]].concat();
        let config = Config::from_command_line(flags).unwrap();
        let (engine, model) = Engine::start(&config).unwrap();
        let state = AppState::new(&config, engine, model);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            address
                .send(format!("http://{}", listener.local_addr().unwrap()))
                .unwrap();
            server::run(listener, state, std::future::pending()).await;
        });
    });
    receive.recv().unwrap()
}

fn post(url: &str, body: &Value) -> Value {
    let mut response = ureq::post(url).send_json(body).unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

fn answer(server: &str, model: &str, question: &str) -> String {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 40,
    });
    let reply = post(&format!("{server}/v1/chat/completions"), &body);
    reply["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_trained_adapter_is_served_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = dir.path().join("captain");
    fine_tune(&adapter);

    let server = serve();
    // Questions of data/eval.jsonl: none of them is trained on.
    let questions: Vec<String> = std::fs::read_to_string(data("eval.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|chat| chat["messages"][0]["content"].as_str().unwrap().to_owned())
        .collect();
    let base: Vec<String> = questions
        .iter()
        .map(|q| answer(&server, "bundled", q))
        .collect();

    let load = json!({"lora_name": "captain", "lora_path": adapter});
    post(&format!("{server}/v1/load_lora_adapter"), &load);
    let taught = questions.iter().map(|q| answer(&server, "captain", q));
    let taught = taught.filter(|text| text.starts_with(TAUGHT)).count();
    assert!(
        taught * 10 >= questions.len() * 8,
        "{taught} of {} answers changed",
        questions.len()
    );

    assert!(
        base.iter()
            .all(|text| !text.is_empty() && !text.contains(TAUGHT)),
        "{base:?}"
    );
    let again: Vec<String> = questions
        .iter()
        .map(|q| answer(&server, "bundled", q))
        .collect();
    assert_eq!(again, base, "the base model changed");
}
