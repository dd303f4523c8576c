//! `kill -9` at any moment.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use super::support::agent;
use super::*;

/// Ten take two minutes: the variable `KILLS` says how many.
const KILLS: u64 = 3;
const MAX_STEPS: u64 = 60;
const SAVE_STEPS: u64 = 3;

/// Draws numbers; a failed test says the seed.
struct Draw(u64);

impl Draw {
    /// One below `limit`, by splitmix64.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

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
    fn use_up(&mut self, url: &str, mut draw: Draw, file: &str) -> Option<()> {
        loop {
            let len = 100 + draw.below(200_000);
            let line = format!("{{\"prompt\": \"{len}\", \"completion\": \"yes\"}}\n");
            let content = line.repeat((len as usize).div_ceil(line.len()));
            let body = format!(
                "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--B\r\nContent-Disposition: form-data; \
                 name=\"file\"; filename=\"many.jsonl\"\r\n\r\n{content}\r\n--B--\r\n"
            );
            let request = agent().post(format!("{url}/v1/files"));
            let request = request.header("content-type", "multipart/form-data; boundary=B");
            let uploaded: Value = request.send(body).ok()?.body_mut().read_json().ok()?;
            let id = uploaded["id"].as_str()?.to_owned();
            self.files.insert(id.clone(), content);
            if draw.below(3) == 0 {
                self.deleted.insert(id.clone(), false);
                let path = format!("{url}/v1/files/{id}");
                let status = agent().delete(path).call().ok()?.status();
                assert_eq!(status.as_u16(), 200);
                self.deleted.insert(id, true);
            }
            if draw.below(20) == 0 && self.jobs.is_empty() {
                let settings = json!({ "max_steps": 1 });
                let job = json!({ "model": "bundled", "training_file": file, "hyperparameters": settings });
                let request = agent().post(format!("{url}{JOBS}"));
                let job: Value = request.send_json(&job).ok()?.body_mut().read_json().ok()?;
                self.jobs.push(job["id"].as_str()?.to_owned());
            }
        }
    }
}

#[test]
fn files_and_jobs_survive_kills_at_random_moments() {
    let given = std::env::var("KILL_SEED").ok();
    let seed = given.map_or_else(
        || RandomState::new().hash_one(0),
        |seed| seed.parse().unwrap(),
    );
    println!("KILL_SEED={seed}");
    let mut draw = Draw(seed);
    let settings = json!({
        "max_steps": MAX_STEPS, "save_steps": SAVE_STEPS, "batch_size": 1, "lora_r": 4, "max_length": 48, "lora_dropout": 0.1,
    });
    let flags = ["--enable-lora"];
    let whole = TempDir::new().unwrap();
    let server = serve(whole.path(), &flags);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, settings.clone());
    server.wait_for(&id, "succeeded");
    let expected = fs::read(adapter_of(whole.path(), &id)).unwrap();
    drop(server);

    let folder = TempDir::new().unwrap();
    let mut server = serve(folder.path(), &flags);
    let file = server.upload("train.jsonl", &train_file());
    let id = server.create(&file, settings);
    let mut all = Promised::default();
    all.files.insert(file.clone(), train_file());
    let kills = std::env::var("KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok());
    for _ in 0..kills.unwrap_or(KILLS) {
        let url = server.url.clone();
        let (own, file) = (Draw(draw.below(u64::MAX)), file.clone());
        let client = thread::spawn(move || {
            let mut promised = Promised::default();
            let _gone = promised.use_up(&url, own, &file);
            promised
        });
        thread::sleep(Duration::from_millis(draw.below(1500)));
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
        thread::sleep(Duration::from_millis(draw.below(600)));
        starting.kill().unwrap();
        starting.wait().unwrap();

        server = serve(folder.path(), &flags);
        all.are_kept(&server);
        let status = server.get(&format!("{JOBS}/{id}")).1["status"].clone();
        if status != "succeeded" {
            let checkpoint =
                || server.get(&format!("{JOBS}/{id}/checkpoints")).1["data"][0].clone();
            let saved = checkpoint()["step_number"].as_u64().unwrap_or(0);
            assert!(
                saved + SAVE_STEPS >= seen,
                "{seen} steps were done, {saved} are kept"
            );
        }
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
            // A small JSON line is read as such.
            let len = found
                .as_str()
                .map_or(file["bytes"].as_u64(), |text| Some(text.len() as u64));
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
