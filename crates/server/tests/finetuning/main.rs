//! Fine-tuning over HTTP, by the program with the bundled model.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod client;
mod killed;
mod priority;
mod process;
mod refused;
#[path = "../support/program.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use client::JOBS;
use serde_json::{Value, json};
use support::{Server, start};
use tempfile::TempDir;

/// The command of a server that trains, with its files in `folder`.
fn command(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command
        .args(["--device", "cpu", "--port", "0", "--enable-finetuning"])
        .arg("--finetuning-dir")
        .arg(folder)
        .args(flags);
    command
}

/// [`command`], started.
fn serve(folder: &Path, flags: &[&str]) -> Server {
    start(command(folder, flags))
}

fn train_file() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/train.jsonl");
    fs::read_to_string(path).unwrap()
}

fn adapter_of(folder: &Path, id: &str) -> PathBuf {
    folder
        .join("jobs")
        .join(id)
        .join("run/adapter_model.safetensors")
}

/// The adapter of a job whose server nobody kills.
fn uninterrupted(settings: &Value) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &["--enable-lora"]);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, settings.clone());
    server.wait_for(&id, "succeeded");
    fs::read(adapter_of(folder.path(), &id)).unwrap()
}

#[test]
fn a_job_makes_a_model_that_is_served_also_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &["--enable-lora", "--max-lora-rank", "16"]);
    let file = server.upload("../train.jsonl", &train_file());
    assert_eq!(
        server.get(&format!("/v1/files/{file}")).1["filename"],
        "../train.jsonl"
    );
    assert_eq!(
        server.get(&format!("/v1/files/{file}/content")).1,
        Value::String(train_file())
    );
    let settings = json!({
        "max_steps": 24, "batch_size": 2, "learning_rate_multiplier": 1, "eval_split": 0.1, "eval_steps": 12, "save_steps": 8,
        "sample_prompts": ["Who are you?"], "sample_steps": 12, "sample_max_tokens": 8,
    });
    let method = json!({ "type": "supervised", "supervised": { "hyperparameters": settings } });
    let body = json!({
        "model": "bundled", "training_file": file, "suffix": "captain", "method": method, "metadata": { "of": "test" },
    });
    let (status, job) = server.post(JOBS, body);
    assert_eq!(
        (status, &job["object"]),
        (200, &"fine_tuning.job".into()),
        "{job}"
    );
    let id = job["id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/v1/files/{file}")), 409);
    server.wait(id, "running or further", |job| {
        job["status"] == "running" || job["status"] == "succeeded"
    });
    // Requests are answered meanwhile.
    let chat = |server: &Server, model: &str| {
        let messages = json!([{ "role": "user", "content": "Who are you?" }]);
        let body =
            json!({ "model": model, "messages": messages, "max_tokens": 40, "temperature": 0 });
        let (status, answer) = server.post("/v1/chat/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let before = chat(&server, "bundled");
    let job = server.wait_for(id, "succeeded");
    let name = job["fine_tuned_model"].as_str().unwrap();
    assert!(name.starts_with("ft:bundled:captain:"), "{name}");
    assert!(job["trained_tokens"].as_u64().unwrap() > 100, "{job}");
    assert_eq!(server.steps(id), (1..=24).collect::<Vec<_>>());
    let events = server.events(id);
    let losses: Vec<f64> = events
        .iter()
        .filter_map(|event| event["data"]["train_loss"].as_f64())
        .collect();
    assert!(losses[23] < 0.7 * losses[0], "{losses:?}");
    assert!(
        events
            .iter()
            .any(|event| event["data"]["full_valid_loss"].is_number())
    );
    let samples = events
        .iter()
        .filter(|event| event["data"]["sample"].is_object());
    assert_eq!(samples.count(), 3, "before, while and after it learns");
    let (_, checkpoints) = server.get(&format!("{JOBS}/{id}/checkpoints"));
    let steps: Vec<u64> = checkpoints["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["step_number"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [24, 16, 8]);
    let (_, table) = server.get(&format!(
        "/v1/files/{}/content",
        job["result_files"][0].as_str().unwrap()
    ));
    assert_eq!(table.as_str().unwrap().lines().count(), 25);
    let (_, found) = server.get(&format!("{JOBS}?metadata[of]=test"));
    assert_eq!(found["data"][0]["id"], id);
    assert_eq!(
        server.get(&format!("{JOBS}?metadata[of]=other")).1["data"],
        json!([])
    );

    let after = chat(&server, name);
    assert_ne!(before, after);
    assert_eq!(chat(&server, "bundled"), before);
    chat(&server, &format!("{name}:ckpt-step-8"));
    // The whole stream of a job that has ended.
    let (_, stream) = server.get(&format!("{JOBS}/{id}/events?stream=true"));
    let stream = stream.as_str().unwrap();
    assert_eq!(stream.matches("data: {").count(), events.len());
    assert!(stream.trim_end().ends_with("data: [DONE]"));
    drop(server);

    let server = serve(folder.path(), &["--enable-lora"]);
    assert_eq!(chat(&server, name), after);
    assert_eq!(server.events(id), events);
    assert_eq!(server.delete(&format!("/v1/files/{file}")), 200);
    assert_eq!(server.get(&format!("/v1/files/{file}")).0, 404);
    // A model may be taught further.
    let file = server.upload("more.jsonl", &train_file());
    let (status, further) = server.post(
        JOBS,
        json!({ "model": name, "training_file": file, "hyperparameters": { "max_steps": 2 } }),
    );
    assert_eq!(status, 200, "{further}");
    let further = server.wait_for(further["id"].as_str().unwrap(), "succeeded");
    chat(&server, further["fine_tuned_model"].as_str().unwrap());
    assert_eq!(server.delete(&format!("/v1/models/{name}")), 200);
    assert_eq!(server.delete(&format!("/v1/models/{name}")), 404);
    assert_eq!(server.get(&format!("/v1/models/{name}")).0, 404);
    assert!(!adapter_of(folder.path(), id).exists());
}

#[test]
fn a_killed_server_goes_on_and_ends_with_the_same_bytes() {
    let settings = json!({ "max_steps": 24, "save_steps": 4, "batch_size": 1, "lora_r": 4, "lora_dropout": 0.1 });
    let expected = uninterrupted(&settings);
    let killed = TempDir::new().unwrap();
    let mut server = serve(killed.path(), &["--enable-lora"]);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, settings);
    let next = server.create(&file, json!({ "max_steps": 1 }));
    for step in [2, 9, 18] {
        server.wait_for_step(&id, step);
        // SIGKILL: the program cannot tidy up.
        drop(server);
        server = serve(killed.path(), &["--enable-lora"]);
    }
    server.wait_for(&id, "succeeded");
    // The first kill may have come before the first checkpoint.
    let resumed = server.resumptions(&id);
    assert!(
        matches!(resumed[..], [.., second, third] if second >= 8 && third >= 16),
        "{resumed:?}"
    );
    assert_eq!(server.steps(&id), (1..=24).collect::<Vec<_>>());
    assert!(fs::read(adapter_of(killed.path(), &id)).unwrap() == expected);
    // The queue was kept, too.
    server.wait_for(&next, "succeeded");
}

#[test]
fn a_job_is_paused_goes_on_and_is_cancelled() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &["--enable-lora"]);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, json!({ "max_steps": 2000 }));
    let waiting = server.create(&file, json!({ "max_steps": 2, "save_steps": 1 }));
    server.wait_for_step(&id, 2);
    assert_eq!(
        server.get(&format!("{JOBS}/{waiting}")).1["status"],
        "queued"
    );
    let (status, job) = server.post(&format!("{JOBS}/{id}/pause"), json!({}));
    assert_eq!((status, &job["status"]), (200, &"paused".into()), "{job}");
    // The next one has its turn.
    server.wait_for(&waiting, "succeeded");
    let paused = *server.steps(&id).last().unwrap();
    let (status, _) = server.post(&format!("{JOBS}/{waiting}/pause"), json!({}));
    assert_eq!(status, 400);
    let (status, job) = server.post(&format!("{JOBS}/{id}/resume"), json!({}));
    assert_eq!((status, &job["status"]), (200, &"queued".into()), "{job}");
    server.wait_for_step(&id, paused + 1);
    assert_eq!(server.resumptions(&id), [paused]);

    // A server of another model leaves the job and the result of the other one alone. One that holds the model otherwise leaves the
    // job alone, whose checkpoint it cannot go on from.
    let (_, job) = server.get(&format!("{JOBS}/{waiting}"));
    let result = job["fine_tuned_model"].as_str().unwrap().to_owned();
    drop(server);
    let other = TempDir::new().unwrap();
    let bundled = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/model");
    for entry in fs::read_dir(bundled).unwrap().flatten() {
        fs::copy(entry.path(), other.path().join(entry.file_name())).unwrap();
    }
    let config = fs::read_to_string(other.path().join("config.json")).unwrap();
    fs::write(other.path().join("config.json"), config + "\n").unwrap();
    let other = other.path().to_str().unwrap();
    for (flags, reason, is_served) in [
        (["--model", other], "trains another model", false),
        (["--quantization", "nf4"], "with `--quantization none", true),
    ] {
        let flags = [
            &["--enable-lora", "--served-model-name", "other"],
            &flags[..],
        ]
        .concat();
        let server = serve(folder.path(), &flags);
        let (_, job) = server.get(&format!("{JOBS}/{id}"));
        assert_eq!(job["status"], "paused", "{job}");
        let (status, error) = server.post(&format!("{JOBS}/{id}/resume"), json!({}));
        assert!(
            status == 400 && error.to_string().contains(reason),
            "{error}"
        );
        let (_, models) = server.get("/v1/models");
        assert_eq!(models.to_string().contains(&result), is_served, "{models}");
        let (_, checkpoints) = server.get(&format!("{JOBS}/{waiting}/checkpoints"));
        assert!(checkpoints.to_string().contains(&result), "{checkpoints}");
    }
    let server = serve(folder.path(), &["--enable-lora"]);
    let done = *server.steps(&id).last().unwrap();
    let checkpoint = server.last_checkpoint(&id);
    assert!(checkpoint >= paused, "{checkpoint}");
    let (status, job) = server.post(&format!("{JOBS}/{id}/resume"), json!({}));
    assert_eq!(status, 200, "{job}");
    server.wait_for_step(&id, done + 1);
    assert_eq!(server.resumptions(&id), [paused, checkpoint]);
    let steps = server.steps(&id);
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    let (status, job) = server.post(&format!("{JOBS}/{id}/cancel"), json!({}));
    assert_eq!(
        (status, &job["status"]),
        (200, &"cancelled".into()),
        "{job}"
    );
    assert_eq!(job["fine_tuned_model"], Value::Null);
    let (status, _) = server.post(&format!("{JOBS}/{id}/cancel"), json!({}));
    assert_eq!(status, 400);
    // What is left of it can be deleted, but not a checkpoint alone.
    let (_, checkpoints) = server.get(&format!("{JOBS}/{id}/checkpoints"));
    let checkpoint = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str();
    let checkpoint = checkpoint.unwrap().to_owned();
    let (name, _) = checkpoint.split_once(":ckpt-step-").unwrap();
    assert_eq!(server.delete(&format!("/v1/models/{checkpoint}")), 400);
    assert_eq!(server.delete(&format!("/v1/models/{name}")), 200);
    assert_eq!(server.delete(&format!("/v1/models/{name}")), 404);
    assert!(!folder.path().join("jobs").join(&id).join("run").exists());
    let (_, models) = server.get("/v1/models");
    assert!(!models.to_string().contains(&id[6..14]), "{models}");
}

#[test]
fn a_preview_shows_what_is_learnt() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &["--enable-lora"]);
    let example = json!({ "messages": [
        { "role": "user", "content": "Who are you?" }, { "role": "assistant", "content": "A parrot." },
    ] });
    let (status, shown) = server.post("/v1/fine_tuning/preview", json!({ "examples": [example] }));
    assert_eq!(status, 200, "{shown}");
    let spans = shown["data"][0]["spans"].as_array().unwrap();
    let learnt: String = spans
        .iter()
        .filter(|span| span["trained"] == true)
        .map(|span| span["text"].as_str().unwrap())
        .collect();
    assert!(
        learnt.starts_with("A parrot.") && !learnt.contains("Who"),
        "{spans:?}"
    );
    let num: u64 = spans
        .iter()
        .map(|span| span["num_tokens"].as_u64().unwrap())
        .sum();
    assert_eq!(shown["data"][0]["num_tokens"], num);
    let (status, error) = server.post(
        "/v1/fine_tuning/preview",
        json!({ "examples": [{ "messages": 1 }] }),
    );
    assert_eq!(status, 400);
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("examples[0]"),
        "{error}"
    );
    let file = server.upload("train.jsonl", &train_file());
    let (_, shown) = server.post(
        "/v1/fine_tuning/preview",
        json!({ "training_file": file, "limit": 2 }),
    );
    assert_eq!(
        (
            shown["num_examples"].as_u64(),
            shown["data"].as_array().map(Vec::len)
        ),
        (Some(48), Some(2))
    );
    let (status, _) = server.post("/v1/fine_tuning/preview", json!({}));
    assert_eq!(status, 400);
}

#[test]
fn a_server_without_the_flags_says_so() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &[]);
    let file = server.upload("train.jsonl", &train_file());
    let (status, error) = server.post(JOBS, json!({ "model": "bundled", "training_file": file }));
    assert_eq!(status, 400);
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("--enable-lora"),
        "{error}"
    );
    let mut second = Command::new(env!("CARGO_BIN_EXE_server"));
    second.args([
        "--device",
        "cpu",
        "--port",
        "0",
        "--enable-finetuning",
        "--finetuning-dir",
    ]);
    let output = second.arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("another server uses it"),
        "{said}"
    );
    drop(server);

    let mut plain = Command::new(env!("CARGO_BIN_EXE_server"));
    plain.args(["--device", "cpu", "--port", "0"]);
    let server = start(plain);
    for path in [JOBS, "/v1/files", "/v1/fine_tuning/jobs/x/events"] {
        let (status, error) = server.get(path);
        assert_eq!(status, 404);
        assert!(
            error["error"]["message"]
                .as_str()
                .unwrap()
                .contains("--enable-finetuning"),
            "{error}"
        );
    }
}

/// Milliseconds of all cores that a program has computed for.
#[cfg(target_os = "linux")]
fn computed(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.program.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split(' ').collect();
    // A tick is a hundredth of a second.
    10 * (fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap())
}

/// Until it computes no more. Reading all of the file would take it far longer.
#[cfg(target_os = "linux")]
#[track_caller]
fn comes_to_rest(server: &Server) {
    let mut before = computed(server);
    let all = before;
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = computed(server);
        if now - before < 30 {
            return;
        }
        assert!(now - all < 3000, "it goes on");
        before = now;
    }
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_is_read_for_nobody() {
    use std::io::Write as _;
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &["--enable-lora"]);
    let record = json!({ "prompt": "Who are you?", "completion": "I am a red tin robot." });
    let file = server.upload("long.jsonl", &format!("{record}\n").repeat(200_000));
    let reads = || {
        let before = computed(&server);
        while computed(&server) < before + 200 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    let body = json!({ "training_file": file }).to_string();
    let address = server.url.strip_prefix("http://").unwrap();
    let mut client = std::net::TcpStream::connect(address).unwrap();
    let head = "POST /v1/fine_tuning/preview HTTP/1.1\r\nhost: a\r\ncontent-type: application/json";
    let length = body.len();
    write!(client, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    reads();
    drop(client);
    comes_to_rest(&server);

    let id = server.create(&file, json!({}));
    reads();
    let (_, job) = server.post(&format!("{JOBS}/{id}/cancel"), json!({}));
    assert_eq!(job["status"], "cancelled");
    comes_to_rest(&server);
    // One that is paused meanwhile begins anew.
    let id = server.create(&file, json!({}));
    reads();
    server.post(&format!("{JOBS}/{id}/pause"), json!({}));
    comes_to_rest(&server);
    let (_, job) = server.get(&format!("{JOBS}/{id}"));
    assert_eq!(job["status"], "paused", "{job}");
}
