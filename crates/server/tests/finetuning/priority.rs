//! Requests come first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::PATIENCE;
use super::support::agent;
use super::*;

/// Clients that leave no moment between their requests: the engine is busy until this goes.
struct Busy {
    ends: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Busy {
    fn new(server: &Server) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        // They end at different times.
        let clients = [900, 700, 500].map(|num_tokens| {
            let (ends, url) = (Arc::clone(&ends), format!("{}/v1/completions", server.url));
            let body = json!({ "prompt": "Once", "max_tokens": num_tokens, "ignore_eos": true, "stream": true });
            thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    let mut answer = agent().post(&url).send_json(&body).unwrap();
                    let stream = answer.body_mut().read_to_string().unwrap();
                    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
                }
            })
        });
        let busy = Self {
            ends,
            clients: clients.into(),
        };
        let all_run = || {
            let (_, metrics) = server.get("/metrics");
            let mut lines = metrics.as_str().unwrap().lines();
            let line = lines.find(|line| line.starts_with("vllm:num_requests_running"));
            line.unwrap().ends_with(" 3")
        };
        let begun = Instant::now();
        while !all_run() {
            let has_ended = busy.clients.iter().any(JoinHandle::is_finished);
            assert!(!has_ended && begun.elapsed() < PATIENCE, "the requests run");
            thread::sleep(Duration::from_millis(10));
        }
        busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let ended = client.join();
            // A second panic would hide the first.
            if !thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// How long requests hold up a job. Beside a job of normal priority the same steps take tenths of a second.
const HELD: Duration = Duration::from_secs(8);

/// A server, its job of small steps that has begun, and the clients that come then.
fn beside_requests(
    folder: &Path,
    flags: &[&str],
    look: impl FnOnce(&Server, &str, Box<dyn Fn() -> usize + '_>),
) {
    let server = serve(folder, &[&["--enable-lora"], flags].concat());
    let file = server.upload("train.jsonl", &train_file());
    let settings = json!({
        "max_steps": 100_000, "save_steps": 100_000, "batch_size": 1, "max_length": 32, "lora_r": 4,
    });
    let id = server.create(&file, settings);
    server.wait_for_step(&id, 3);
    let busy = Busy::new(&server);
    // A step that has been computed is told of.
    thread::sleep(Duration::from_millis(500));
    let before = server.steps(&id).len();
    look(&server, &id, Box::new(|| server.steps(&id).len() - before));
    drop(busy);
    server.wait_for_step(&id, before as u64 + 5);
}

#[test]
fn a_job_of_low_priority_waits_while_requests_run_and_goes_on_then() {
    for device in [&[][..], &["--finetuning-device", "cpu"]] {
        let folder = TempDir::new().unwrap();
        let flags = [&["--finetuning-priority", "low"], device].concat();
        beside_requests(folder.path(), &flags, |server, id, num_new| {
            thread::sleep(HELD);
            assert_eq!(num_new(), 0, "{flags:?}");
            // It does not wait where it is to end: it takes its step, and writes a checkpoint.
            let (status, _) = server.post(&format!("{JOBS}/{id}/pause"), json!({}));
            assert_eq!(status, 200);
            let asked = Instant::now();
            let path = format!("{JOBS}/{id}/checkpoints");
            while server.get(&path).1["data"] == json!([]) {
                assert!(asked.elapsed() < PATIENCE, "{flags:?}");
                thread::sleep(Duration::from_millis(20));
            }
            let (status, _) = server.post(&format!("{JOBS}/{id}/resume"), json!({}));
            assert_eq!(status, 200);
        });
    }
}

#[test]
fn a_job_of_normal_priority_goes_on_beside_requests() {
    let folder = TempDir::new().unwrap();
    beside_requests(folder.path(), &[], |_, _, num_new| {
        let begun = Instant::now();
        while num_new() < 2 {
            assert!(begun.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(20));
        }
    });
}
