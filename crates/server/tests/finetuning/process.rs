//! Jobs in processes of their own, and what a job may take.

use std::time::{Duration, Instant};

use super::client::PATIENCE;
use super::*;

/// The processes that a process has started.
fn children(id: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        // One that has ended and was not waited for is none.
        let state = fields.next().filter(|state| *state != "Z")?;
        debug_assert!(!state.is_empty());
        fields.next()?.parse::<u32>().ok()
    };
    all.filter(|child| parent(child) == Some(id)).collect()
}

#[track_caller]
fn the_process_of_a_job(server: &Server) -> u32 {
    let children = children(server.program.id());
    assert_eq!(children.len(), 1, "{children:?}");
    children[0]
}

#[track_caller]
fn is_gone(process: u32, within: Duration) {
    let begun = Instant::now();
    let runs = |process: u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| state != 'Z' && state != 'X')
    };
    while runs(process) {
        assert!(begun.elapsed() < within, "{process} goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const SETTINGS: [(&str, u64); 4] = [
    ("max_steps", 16),
    ("save_steps", 4),
    ("batch_size", 1),
    ("lora_r", 4),
];

fn settings() -> Value {
    SETTINGS.into_iter().collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_process_of_its_own_makes_the_same_bytes_and_ends_with_the_server() {
    let here = TempDir::new().unwrap();
    let server = serve(here.path(), &["--enable-lora"]);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, settings());
    server.wait_for(&id, "succeeded");
    let expected = fs::read(adapter_of(here.path(), &id)).unwrap();
    let told = |server: &Server, id: &str| {
        let events = server.events(id).into_iter();
        let numbers = events.map(|event| event["data"]["train_loss"].clone());
        numbers.filter(|loss| !loss.is_null()).collect::<Vec<_>>()
    };
    let losses = told(&server, &id);
    drop(server);

    let elsewhere = TempDir::new().unwrap();
    let flags = ["--enable-lora", "--finetuning-device", "cpu"];
    let mut server = serve(elsewhere.path(), &flags);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, settings());
    for step in [2, 9] {
        server.wait_for_step(&id, step);
        let process = the_process_of_a_job(&server);
        // SIGKILL: the server can end nothing.
        drop(server);
        is_gone(process, Duration::from_secs(5));
        server = serve(elsewhere.path(), &flags);
    }
    let job = server.wait_for(&id, "succeeded");
    assert!(job["trained_tokens"].as_u64().unwrap() > 100, "{job}");
    // The first kill may have come before the first checkpoint.
    let resumed = server.resumptions(&id);
    assert!(resumed.last() >= Some(&8), "{resumed:?}");
    assert_eq!(told(&server, &id), losses);
    assert!(fs::read(adapter_of(elsewhere.path(), &id)).unwrap() == expected);
    assert!(children(server.program.id()).is_empty());
    let name = &job["fine_tuned_model"];
    let body = json!({ "model": name, "prompt": "a", "max_tokens": 1 });
    assert_eq!(server.post("/v1/completions", body).0, 200);
}

#[test]
#[cfg(target_os = "linux")]
fn a_process_is_paused_cancelled_and_may_be_lost() {
    let folder = TempDir::new().unwrap();
    let flags = ["--finetuning-device", "cpu", "--finetuning-priority", "low"];
    let server = serve(folder.path(), &[&["--enable-lora"], &flags[..]].concat());
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, json!({ "max_steps": 2000 }));
    server.wait_for_step(&id, 2);
    let process = the_process_of_a_job(&server);
    server.post(&format!("{JOBS}/{id}/pause"), json!({}));
    // It takes its step to the end, and writes a checkpoint.
    is_gone(process, PATIENCE);
    let done = server.last_checkpoint(&id);
    server.post(&format!("{JOBS}/{id}/resume"), json!({}));
    server.wait_for_step(&id, done + 1);
    assert_eq!(server.resumptions(&id), [done]);
    let steps = server.steps(&id);
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    let process = the_process_of_a_job(&server);
    let (_, job) = server.post(&format!("{JOBS}/{id}/cancel"), json!({}));
    assert_eq!(job["status"], "cancelled");
    is_gone(process, Duration::from_secs(5));

    let id = server.create(&file, json!({ "max_steps": 6, "save_steps": 2 }));
    server.wait_for_step(&id, 3);
    let process = the_process_of_a_job(&server).to_string();
    let killed = Command::new("kill").args(["-9", &process]).status();
    assert!(killed.unwrap().success());
    let job = server.wait_for(&id, "failed");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("signal: 9"), "{message}");
    // Its checkpoint is good.
    let (status, job) = server.post(&format!("{JOBS}/{id}/resume"), json!({}));
    assert_eq!((status, &job["error"]), (200, &Value::Null), "{job}");
    server.wait_for(&id, "succeeded");
    let resumed = server.resumptions(&id);
    assert!(matches!(resumed[..], [step] if step >= 2), "{resumed:?}");
    assert_eq!(server.steps(&id), (1..=6).collect::<Vec<_>>());
    // The server goes on with the next one.
    let id = server.create(&file, json!({ "max_steps": 1 }));
    server.wait_for(&id, "succeeded");
    let wrong = server.upload("talk.jsonl", "{\"messages\": 3}\n");
    let id = server.create(&wrong, json!({}));
    let job = server.wait_for(&id, "failed");
    let (status, _) = server.post(&format!("{JOBS}/{id}/resume"), json!({}));
    assert_eq!(status, 400);
    assert_eq!(job["error"]["code"], "invalid_training_file");
    assert!(
        job["error"]["message"]
            .as_str()
            .unwrap()
            .contains("talk.jsonl:1")
    );
}

#[test]
fn a_job_that_takes_too_much_is_refused_with_what_would_fit() {
    for flags in [&[][..], &["--finetuning-device", "cpu"][..]] {
        let folder = TempDir::new().unwrap();
        let memory = match flags.len() {
            0 => "40MiB",
            _ => "220MiB",
        };
        let own = ["--enable-lora", "--finetuning-memory", memory];
        let server = serve(folder.path(), &[&own[..], flags].concat());
        let file = server.upload("train.jsonl", &train_file());
        let body = |settings: Value| json!({ "model": "bundled", "training_file": file, "hyperparameters": settings });
        let (status, error) = server.post(JOBS, body(json!({ "batch_size": 32 })));
        let error = &error["error"];
        assert_eq!(
            (status, &error["param"]),
            (400, &"hyperparameters.batch_size".into()),
            "{error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(&format!(
                "--finetuning-memory {} MiB",
                &memory[..memory.len() - 3]
            )),
            "{message}"
        );
        let (_, rest) = message.split_once("`batch_size` ").unwrap();
        let size: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        let id = server.create(&file, json!({ "batch_size": size, "max_steps": 1 }));
        server.wait_for(&id, "succeeded");
        // A file that takes a while to read is looked at when it is its turn.
        let long = train_file().repeat(360);
        let file = server.upload("long.jsonl", &long);
        let id = server.create(&file, json!({ "batch_size": 32, "max_steps": 1 }));
        let job = server.wait_for(&id, "failed");
        assert_eq!(job["error"]["code"], "invalid_hyperparameters");
        assert_eq!(job["error"]["param"], "batch_size", "{job}");
    }
}

#[test]
fn a_job_tells_what_the_trainer_warns_of() {
    for flags in [
        &["--enable-lora"][..],
        &["--enable-lora", "--finetuning-device", "cpu"],
    ] {
        let folder = TempDir::new().unwrap();
        let server = serve(folder.path(), flags);
        let text = format!("{}{{\"text\": \"\"}}\n", train_file());
        let file = server.upload("train.jsonl", &text);
        let id = server.create(&file, json!({ "max_steps": 1, "warmup_steps": 1 }));
        server.wait_for(&id, "succeeded");
        let events = server.events(&id).into_iter();
        let warnings = events.filter(|event| event["level"] == "warn");
        let warnings: Vec<String> = warnings
            .map(|event| event["message"].as_str().unwrap().to_owned())
            .collect();
        let has = |part: &str| warnings.iter().any(|warning| warning.contains(part));
        assert!(
            has("`warmup_steps`: a warm-up of 1 steps in a run of 1"),
            "{warnings:?}"
        );
        assert!(has("the first is train.jsonl:49"), "{warnings:?}");
    }
}
