//! What a job tells while it goes on: lines of a file, which are also in memory until the job has ended.

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{disk, new_id, now};

/// The file of a job's events.
const FILE: &str = "events.jsonl";

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As expected.
    Info,
    /// Worth a look.
    Warn,
    /// The job has failed.
    Error,
}

/// One event, as OpenAI's API has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// `fine_tuning.job.event`.
    pub object: String,
    /// When, in Unix seconds.
    pub created_at: u64,
    /// How serious it is.
    pub level: Level,
    /// For people.
    pub message: String,
    /// `message`, or `metrics` for the numbers of a step.
    #[serde(rename = "type")]
    pub kind: String,
    /// For programs.
    pub data: Map<String, Value>,
}

impl Event {
    fn new(level: Level, message: String, kind: &str, data: Value) -> Self {
        let data = match data {
            Value::Object(data) => data,
            _ => Map::new(),
        };
        Self {
            id: new_id("ftevent-"),
            object: "fine_tuning.job.event".to_owned(),
            created_at: now(),
            level,
            message,
            kind: kind.to_owned(),
            data,
        }
    }

    /// A sentence.
    pub(super) fn message(level: Level, message: impl Into<String>) -> Self {
        Self::new(level, message.into(), "message", Value::Null)
    }

    /// A sentence with its numbers.
    pub(super) fn with_data(message: impl Into<String>, data: Value) -> Self {
        Self::new(Level::Info, message.into(), "message", data)
    }

    /// The numbers of a step.
    pub(super) fn metrics(message: String, data: Value) -> Self {
        Self::new(Level::Info, message, "metrics", data)
    }

    /// The step that it is about.
    fn step(&self) -> Option<u64> {
        self.data.get("step").and_then(Value::as_u64)
    }
}

/// The events of a job.
#[derive(Debug)]
pub(super) struct EventLog {
    path: PathBuf,
    /// `None` where they are only in the file: a server keeps its jobs for good, and an ended one is seldom asked about.
    events: Option<Vec<Event>>,
}

impl EventLog {
    /// The events in a job's folder. A line that a killed server has left unfinished is dropped.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let events = read(&text);
        if !text.is_empty() && text.lines().count() != events.len() || !text.ends_with('\n') {
            rewrite(&path, &events);
        }
        Self {
            path,
            events: Some(events),
        }
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Cow<'_, [Event]> {
        match &self.events {
            Some(events) => Cow::Borrowed(events),
            None => Cow::Owned(read(&fs::read_to_string(&self.path).unwrap_or_default())),
        }
    }

    /// Keeps them only in the file from now on.
    pub(super) fn rest(&mut self) {
        self.events = None;
    }

    /// Keeps an event.
    pub(super) fn push(&mut self, event: Event) {
        append(&self.path, &event);
        self.push_written(event);
    }

    /// Keeps an event, unless one has said the same: a server that was killed before the job's record was written has told it already.
    pub(super) fn push_once(&mut self, event: Event) {
        let is_told = self.all().iter().any(|told| told.message == event.message);
        if !is_told {
            self.push(event);
        }
    }

    /// Keeps an event that [`write`] has written.
    pub(super) fn push_written(&mut self, event: Event) {
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }

    /// Drops what was told of the steps after `step`, which are taken again.
    pub(super) fn go_back_to(&mut self, step: u64) {
        let mut events = self.all().into_owned();
        let before = events.len();
        events.retain(|event| event.step().is_none_or(|own| own <= step));
        if events.len() != before {
            rewrite(&self.path, &events);
        }
        self.events = Some(events);
    }
}

fn read(text: &str) -> Vec<Event> {
    let events = text.lines();
    events
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn rewrite(path: &Path, events: &[Event]) {
    let lines = events
        .iter()
        .filter_map(|event| serde_json::to_string(event).ok());
    let text: String = lines.map(|line| line + "\n").collect();
    if let Err(error) = disk::write(path, text.as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "events are not written");
    }
}

/// Writes an event of the job in `folder`: what takes longer than keeping it, for a thread that must not hold others up.
pub(super) fn write(folder: &Path, event: &Event) {
    append(&folder.join(FILE), event);
}

/// A disk that is full costs the file a line, and not the job.
fn append(path: &Path, event: &Event) {
    let write = || -> io::Result<()> {
        let line = serde_json::to_string(event)? + "\n";
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        file.write_all(line.as_bytes())
    };
    if let Err(error) = write() {
        tracing::warn!(path = %path.display(), %error, "an event is not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_survive_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(dir.path());
        log.push(Event::message(Level::Info, "begun"));
        for step in 1..=3 {
            log.push(Event::metrics(
                format!("step {step}"),
                json!({ "step": step }),
            ));
        }
        let path = dir.path().join(FILE);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"id\": \"ftev");
        fs::write(&path, text).unwrap();
        let mut again = EventLog::open(dir.path());
        assert_eq!(again.all(), log.all());
        again.go_back_to(1);
        assert_eq!(again.all(), &log.all()[..2]);
        again.push(Event::message(Level::Error, "ended"));
        assert_eq!(EventLog::open(dir.path()).all(), again.all());
        let kept = again.all().into_owned();
        again.rest();
        assert!(again.events.is_none());
        assert_eq!(again.all(), kept);
        again.push(Event::message(Level::Info, "after the end"));
        assert_eq!(again.all().len(), kept.len() + 1);
    }
}
