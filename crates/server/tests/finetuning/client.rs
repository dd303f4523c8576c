//! What a client asks of a server that trains.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Server, agent};

pub(crate) const JOBS: &str = "/v1/fine_tuning/jobs";
/// A job gets what a busy machine has left.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1200);

/// The type of a [`form_body`].
pub(crate) const FORM: &str = "multipart/form-data; boundary=B";

/// A form with these fields and a file: its name and content.
pub(crate) fn form_body(fields: &[(&str, &str)], file: Option<(&str, &str)>) -> String {
    let mut body = String::new();
    for (name, value) in fields {
        body.push_str(&format!(
            "--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        ));
    }
    if let Some((name, content)) = file {
        body.push_str(&format!(
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{content}\r\n"
        ));
    }
    body.push_str("--B--\r\n");
    body
}

impl Server {
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let mut answer = agent().get(format!("{}{path}", self.url)).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (answer.status().as_u16(), value)
    }

    pub(crate) fn delete(&self, path: &str) -> u16 {
        let answer = agent().delete(format!("{}{path}", self.url)).call();
        answer.unwrap().status().as_u16()
    }

    /// Sends [`form_body`].
    pub(crate) fn form(
        &self,
        fields: &[(&str, &str)],
        file: Option<(&str, &str)>,
        headers: &[(&str, &str)],
    ) -> (u16, Value) {
        let mut request = agent()
            .post(format!("{}/v1/files", self.url))
            .header("content-type", FORM);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = request.send(form_body(fields, file)).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (
            answer.status().as_u16(),
            serde_json::from_str(&text).unwrap(),
        )
    }

    #[track_caller]
    pub(crate) fn upload(&self, name: &str, content: &str) -> String {
        let (status, file) = self.form(&[("purpose", "fine-tune")], Some((name, content)), &[]);
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn create(&self, file: &str, hyperparameters: Value) -> String {
        let method =
            json!({ "type": "supervised", "supervised": { "hyperparameters": hyperparameters } });
        let body = json!({ "model": "bundled", "training_file": file, "method": method });
        let (status, job) = self.post(JOBS, body);
        assert_eq!(status, 200, "{job}");
        job["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a job is as it should be.
    #[track_caller]
    pub(crate) fn wait(&self, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (_, job) = self.get(&format!("{JOBS}/{id}"));
            if is_so(&job) {
                return job;
            }
            let has_ended = ["failed", "cancelled", "succeeded"]
                .map(Value::from)
                .contains(&job["status"]);
            assert!(
                !has_ended && begun.elapsed() < PATIENCE,
                "not {what}: {job}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, id: &str, status: &str) -> Value {
        self.wait(id, status, |job| job["status"] == status)
    }

    /// The events of a job, the oldest first.
    pub(crate) fn events(&self, id: &str) -> Vec<Value> {
        self.last_events(id, 1000)
    }

    fn last_events(&self, id: &str, limit: usize) -> Vec<Value> {
        let (_, page) = self.get(&format!("{JOBS}/{id}/events?limit={limit}"));
        let mut events = page["data"].as_array().unwrap().clone();
        events.reverse();
        events
    }

    /// The steps that a job has told of.
    pub(crate) fn steps(&self, id: &str) -> Vec<u64> {
        steps_of(&self.events(id)).collect()
    }

    /// The steps after which a job has gone on from a checkpoint.
    pub(crate) fn resumptions(&self, id: &str) -> Vec<u64> {
        let events = self.events(id).into_iter();
        let steps = events.filter_map(|event| {
            let message = event["message"].as_str()?;
            let (_, step) = message.split_once("goes on after step ")?;
            step.split(',').next()?.parse().ok()
        });
        steps.collect()
    }

    /// The step of a job's last checkpoint.
    #[track_caller]
    pub(crate) fn last_checkpoint(&self, id: &str) -> u64 {
        let (_, checkpoints) = self.get(&format!("{JOBS}/{id}/checkpoints"));
        checkpoints["data"][0]["step_number"].as_u64().unwrap()
    }

    pub(crate) fn wait_for_step(&self, id: &str, step: u64) {
        let begun = Instant::now();
        // The last step is among these.
        while steps_of(&self.last_events(id, 20)).last() < Some(step) {
            assert!(begun.elapsed() < PATIENCE, "{:?}", self.events(id));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The steps that events tell of.
fn steps_of(events: &[Value]) -> impl Iterator<Item = u64> {
    let steps = events.iter();
    let steps = steps.filter(|event| event["data"]["train_loss"].is_number());
    steps.map(|event| event["data"]["step"].as_u64().unwrap())
}
