//! `kill -9` at any moment.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::client::{FORM, form_body};
use super::support::agent;
use super::*;

/// Ten take two minutes: the variable `KILLS` says how many.
const KILLS: u64 = 3;
const MAX_STEPS: u64 = 60;
const SAVE_STEPS: u64 = 3;

/// What a server has said that it has.
#[derive(Default)]
struct Promised {
    /// Content by id.
    files: BTreeMap<String, String>,
    /// Files whose deletion was asked for, and whether that was answered.
    deleted: BTreeMap<String, bool>,
    jobs: Vec<String>,
}

impl Promised {
    /// Uploads, deletes, and queues jobs, until the server is gone: then an answer does not come, which promises nothing.
    fn use_up(&mut self, url: &str, mut draw: ChaCha8Rng, file: &str) -> Option<()> {
        loop {
            let len = draw.random_range(100..200_100_usize);
            let line = format!("{{\"prompt\": \"{len}\", \"completion\": \"yes\"}}\n");
            let content = line.repeat(len.div_ceil(line.len()));
            let body = form_body(&[("purpose", "fine-tune")], Some(("many.jsonl", &content)));
            let request = agent().post(format!("{url}/v1/files"));
            let mut answer = request.header("content-type", FORM).send(body).ok()?;
            assert_eq!(answer.status().as_u16(), 200);
            let uploaded: Value = answer.body_mut().read_json().ok()?;
            let id = uploaded["id"].as_str().expect("an id").to_owned();
            self.files.insert(id.clone(), content);
            if draw.random_ratio(1, 3) {
                self.deleted.insert(id.clone(), false);
                let path = format!("{url}/v1/files/{id}");
                let status = agent().delete(path).call().ok()?.status();
                assert_eq!(status.as_u16(), 200);
                self.deleted.insert(id, true);
            }
            if draw.random_ratio(1, 20) && self.jobs.is_empty() {
                let settings = json!({ "max_steps": 1 });
                let job = json!({ "model": "bundled", "training_file": file, "hyperparameters": settings });
                let request = agent().post(format!("{url}{JOBS}"));
                let mut answer = request.send_json(&job).ok()?;
                assert_eq!(answer.status().as_u16(), 200);
                let job: Value = answer.body_mut().read_json().ok()?;
                self.jobs
                    .push(job["id"].as_str().expect("an id").to_owned());
            }
        }
    }
}

/// The step of the last checkpoint on the disk; 0 without one.
fn last_saved(folder: &Path, id: &str) -> u64 {
    let run = folder.join("jobs").join(id).join("run");
    let entries = fs::read_dir(run).into_iter().flatten().flatten();
    let steps = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("checkpoint-")?.parse::<u64>().ok()
    });
    steps.max().unwrap_or(0)
}

#[test]
fn files_and_jobs_survive_kills_at_random_moments() {
    let given = std::env::var("KILL_SEED").ok();
    let seed: u64 = given.map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("KILL_SEED={seed}");
    let mut draw = ChaCha8Rng::seed_from_u64(seed);
    let settings = json!({
        "max_steps": MAX_STEPS, "save_steps": SAVE_STEPS, "batch_size": 1, "lora_r": 4, "max_length": 48, "lora_dropout": 0.1,
    });
    let flags = ["--enable-lora"];
    let expected = uninterrupted(&settings);

    let folder = TempDir::new().unwrap();
    let mut server = serve(folder.path(), &flags);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, settings);
    let mut all = Promised::default();
    all.files.insert(file.clone(), train_file());
    let kills = std::env::var("KILLS").ok().map_or(KILLS, |kills| {
        kills.parse().expect("KILLS: expected a number")
    });
    for _ in 0..kills {
        let url = server.url.clone();
        let own = ChaCha8Rng::seed_from_u64(draw.random());
        let file = file.clone();
        let client = thread::spawn(move || {
            let mut promised = Promised::default();
            let _gone = promised.use_up(&url, own, &file);
            promised
        });
        thread::sleep(Duration::from_millis(draw.random_range(0..1500)));
        let seen = server.steps(&id).last().copied().unwrap_or(0);
        // SIGKILL: the program cannot tidy up.
        drop(server);
        let told = client.join().unwrap();
        all.files.extend(told.files);
        all.deleted.extend(told.deleted);
        all.jobs.extend(told.jobs);
        // Another one is killed while it starts.
        let mut starting = command(folder.path(), &flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(draw.random_range(0..600)));
        starting.kill().unwrap();
        starting.wait().unwrap();

        // The server that comes next makes checkpoints of its own.
        if !adapter_of(folder.path(), &id).exists() {
            let saved = last_saved(folder.path(), &id);
            assert!(
                saved + SAVE_STEPS >= seen,
                "{seen} steps were done, {saved} are kept"
            );
        }
        server = serve(folder.path(), &flags);
        all.are_kept(&server);
    }
    server.wait_for(&id, "succeeded");
    assert_eq!(server.steps(&id), (1..=MAX_STEPS).collect::<Vec<_>>());
    assert!(fs::read(adapter_of(folder.path(), &id)).unwrap() == expected);
    for job in &all.jobs {
        server.wait_for(job, "succeeded");
    }
    all.are_kept(&server);
    all.has_nothing_else(&server, folder.path());
}

#[test]
fn a_server_that_was_killed_just_before_a_job_had_ended_tells_nothing_twice() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &["--enable-lora"]);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, json!({ "max_steps": 1 }));
    server.wait_for(&id, "succeeded");
    drop(server);
    // All is written but for the job's own record.
    let path = folder.path().join("jobs").join(&id).join("job.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["status"] = "running".into();
    record["result_files"] = json!([]);
    for field in ["fine_tuned_model", "finished_at"] {
        assert!(!record[field].is_null(), "{record}");
        record[field] = Value::Null;
    }
    fs::write(&path, record.to_string()).unwrap();
    let server = serve(folder.path(), &["--enable-lora"]);
    server.wait_for(&id, "succeeded");
    Promised::default().has_nothing_else(&server, folder.path());
}

impl Promised {
    #[track_caller]
    fn are_kept(&mut self, server: &Server) {
        let (_, listed) = server.get("/v1/files?purpose=fine-tune&limit=10000");
        let listed = listed["data"].as_array().unwrap();
        let ids: Vec<&str> = listed
            .iter()
            .map(|file| file["id"].as_str().unwrap())
            .collect();
        for (id, was_answered) in &mut self.deleted {
            // One that was not answered may have been carried out, or not.
            *was_answered |= !ids.contains(&id.as_str());
            if *was_answered {
                assert!(!ids.contains(&id.as_str()), "{id} was deleted");
                self.files.remove(id);
            }
        }
        for (id, content) in &self.files {
            assert!(ids.contains(&id.as_str()), "{id} is not listed");
            let (status, found) = server.get(&format!("/v1/files/{id}/content"));
            assert!(
                status == 200 && found == Value::String(content.clone()),
                "{id} is another file"
            );
        }
        for file in listed {
            let path = format!("/v1/files/{}/content", file["id"].as_str().unwrap());
            let (status, found) = server.get(&path);
            let len = found.as_str().map(|text| text.len() as u64);
            assert_eq!((status, len), (200, file["bytes"].as_u64()), "{file}");
        }
        for id in &self.jobs {
            let (status, job) = server.get(&format!("{JOBS}/{id}"));
            assert!(status == 200 && job["status"] != "failed", "{job}");
        }
    }

    /// Each job has ended once, with one table, and no half of anything lies about.
    fn has_nothing_else(&self, server: &Server, folder: &Path) {
        let (_, jobs) = server.get(&format!("{JOBS}?limit=100"));
        let jobs = jobs["data"].as_array().unwrap();
        let mut tables = Vec::new();
        for job in jobs {
            tables.push(job["result_files"][0].as_str().unwrap().to_owned());
            let events = server.events(job["id"].as_str().unwrap()).into_iter();
            let ends =
                events.filter(|event| event["message"] == "The job has successfully completed");
            assert_eq!(ends.count(), 1, "{job}");
        }
        let (_, results) = server.get("/v1/files?purpose=fine-tune-results&limit=10000");
        let results = results["data"].as_array().unwrap().iter();
        let mut results: Vec<_> = results
            .map(|file| file["id"].as_str().unwrap().to_owned())
            .collect();
        results.sort_unstable();
        tables.sort_unstable();
        assert_eq!(results, tables);
        for part in ["files", "jobs"] {
            for entry in fs::read_dir(folder.join(part)).unwrap().flatten() {
                assert!(
                    !entry.file_name().to_string_lossy().starts_with('.'),
                    "{entry:?}"
                );
            }
        }
    }
}
