//! What clients may do with jobs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::events::{Event, EventLog, Level};
use super::job::{Checkpoint, Job, JobObject, RECORD, Status, checkpoints, run_dir};
use super::spec::Base;
use super::{FineTuning, State, disk, disk_error, now};
use crate::error::ApiError;

/// A job and what is known of it besides its record.
#[derive(Debug)]
pub(super) struct JobEntry {
    pub(super) job: Job,
    pub(super) events: EventLog,
    folder: PathBuf,
    /// Ends the run, while there is one.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) progress: Option<Progress>,
    /// Steps that were done before this turn.
    pub(super) done: usize,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) first_step: usize,
    pub(super) step: usize,
    pub(super) total_steps: usize,
    pub(super) started: Instant,
}

impl JobEntry {
    pub(super) fn new(job: Job, folder: PathBuf) -> Self {
        let mut events = EventLog::open(&folder);
        if job.status.is_final() {
            events.rest();
        }
        Self {
            job,
            events,
            folder,
            stop: Arc::default(),
            progress: None,
            done: 0,
        }
    }

    /// Tells the run to end after its step.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Writes the record. A disk that is full ends no job: the next change is written again.
    pub(super) fn save(&self) {
        if let Err(error) = disk::write_json(&self.folder.join(RECORD), &self.job) {
            tracing::error!(id = self.job.id, %error, "the state of a job is not written");
        }
    }

    /// Gives the job another state if its record can be written.
    fn try_set(&mut self, status: Status) -> io::Result<()> {
        let mut job = self.job.clone();
        job.status = status;
        disk::write_json(&self.folder.join(RECORD), &job)?;
        self.set(status);
        Ok(())
    }

    /// Gives the job another state.
    pub(super) fn set(&mut self, status: Status) {
        self.job.status = status;
        if status.is_final() {
            self.job.finished_at = Some(now());
            self.progress = None;
            self.events.rest();
        }
        self.save();
    }

    pub(super) fn object(&self) -> JobObject {
        let left = self.progress.filter(|_| self.job.status == Status::Running);
        let finish = left.and_then(|progress| {
            let done = progress
                .step
                .checked_sub(progress.first_step)
                .filter(|done| *done > 0)?;
            let left = progress.total_steps.saturating_sub(progress.step);
            let seconds = progress.started.elapsed().as_secs_f64() / done as f64 * left as f64;
            Some(now() + seconds.ceil() as u64)
        });
        self.job.object(finish)
    }
}

/// The jobs that an earlier server has left. One that was running is queued again; those of another model wait for a server of that one.
pub(super) fn read_all(dir: &Path, base: &Base) -> io::Result<Vec<JobEntry>> {
    let mut jobs = Vec::new();
    for folder in disk::entries(dir)? {
        let job: Job = match disk::read_json(&folder.join(RECORD)) {
            Ok(job) => job,
            Err(error) => {
                tracing::warn!(%error, "a job is left out");
                continue;
            }
        };
        if !folder.ends_with(&job.id) {
            tracing::warn!(path = %folder.display(), "not the folder of this job");
            continue;
        }
        // What a killed server has not finished writing.
        disk::entries(&folder)?;
        let mut entry = JobEntry::new(job, folder);
        let is_due = entry.job.status.is_active() || entry.job.status == Status::Queued;
        if is_due && !entry.job.is_of(base) {
            let text = "The job trains another model than the one that is served now: it is paused. Resume it on a server of its model";
            tracing::warn!(id = entry.job.id, model = entry.job.model, "{text}");
            entry.events.push(Event::message(Level::Warn, text));
            entry.set(Status::Paused);
        } else if entry.job.status.is_active() {
            let text = "The server was started again; the job waits for its turn";
            entry.events.push(Event::message(Level::Warn, text));
            entry.set(Status::Queued);
        }
        jobs.push(entry);
    }
    jobs.sort_by_key(|entry| entry.job.number);
    Ok(jobs)
}

impl State {
    pub(super) fn entry(&mut self, id: &str) -> Option<&mut JobEntry> {
        self.jobs.iter_mut().find(|entry| entry.job.id == id)
    }

    fn find(&mut self, id: &str) -> Result<&mut JobEntry, ApiError> {
        self.entry(id).ok_or_else(|| {
            let message = format!("There is no fine-tuning job `{id}`.");
            ApiError {
                status: StatusCode::NOT_FOUND,
                ..ApiError::bad_request("fine_tuning_job_id", message)
            }
        })
    }
}

impl FineTuning {
    /// All jobs, the newest first.
    pub fn jobs(&self) -> Vec<JobObject> {
        self.state()
            .jobs
            .iter()
            .rev()
            .map(JobEntry::object)
            .collect()
    }

    /// A job.
    ///
    /// # Errors
    /// 404.
    pub fn job(&self, id: &str) -> Result<JobObject, ApiError> {
        self.state().find(id).map(|entry| entry.object())
    }

    /// Events of a job from number `from` on, the oldest first, and whether more may come.
    ///
    /// # Errors
    /// 404.
    pub fn events(&self, id: &str, from: usize) -> Result<(Vec<Event>, bool), ApiError> {
        let mut state = self.state();
        let entry = state.find(id)?;
        let events = entry.events.all();
        let events = events.get(from..).unwrap_or_default().to_vec();
        let has_ended = entry.job.status.is_final();
        Ok((events, !has_ended && !state.shutting_down))
    }

    /// The checkpoints of a job, the newest first.
    ///
    /// # Errors
    /// 404.
    pub fn checkpoints(&self, id: &str) -> Result<Vec<Checkpoint>, ApiError> {
        let mut state = self.state();
        let entry = state.find(id)?;
        let name = entry.job.fine_tuned_model.clone();
        let name = name.unwrap_or_else(|| entry.job.result_name(&self.0.base.name));
        let events = entry.events.all();
        let found = checkpoints(&run_dir(&entry.folder)).into_iter();
        let checkpoints = found.map(|(step, path)| {
            let modified = path
                .metadata()
                .and_then(|metadata| metadata.modified())
                .ok();
            let since = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            Checkpoint {
                id: format!("ftckpt-{}-{step}", id.trim_start_matches("ftjob-")),
                object: "fine_tuning.job.checkpoint",
                created_at: since.map_or(0, |since| since.as_secs()),
                fine_tuned_model_checkpoint: checkpoint_name(&name, step),
                fine_tuning_job_id: id.to_owned(),
                metrics: metrics_of(&events, step),
                step_number: step,
            }
        });
        Ok(checkpoints.collect())
    }

    /// Deletes a result and its checkpoints from the disk. Gives the names under which they are still served: the caller unloads
    /// them.
    ///
    /// # Errors
    /// 404 for a model that no job has made, and 409 where a job starts from it.
    pub fn delete_model(&self, name: &str) -> Result<Vec<String>, ApiError> {
        let mut state = self.state();
        let is_it = |entry: &&JobEntry| {
            !entry.job.is_deleted && entry.job.fine_tuned_model.as_deref() == Some(name)
        };
        let found = state.jobs.iter().position(|entry| is_it(&entry));
        let found = found.ok_or_else(|| ApiError::model_not_found(name))?;
        let run = run_dir(&state.jobs[found].folder);
        let starts_from = |entry: &&JobEntry| {
            let adapter = entry.job.adapter.as_ref();
            !entry.job.status.is_final() && adapter.is_some_and(|path| path.starts_with(&run))
        };
        if let Some(entry) = state.jobs.iter().find(starts_from) {
            let message = format!(
                "The model `{name}` cannot be deleted: the job `{}` starts from it.",
                entry.job.id
            );
            return Err(ApiError::new(StatusCode::CONFLICT, message));
        }
        let steps = checkpoints(&run).into_iter();
        let names = steps.map(|(step, _)| checkpoint_name(name, step));
        let names = std::iter::once(name.to_owned()).chain(names).collect();
        let entry = &mut state.jobs[found];
        entry.job.is_deleted = true;
        let kept = disk::write_json(&entry.folder.join(RECORD), &entry.job);
        let removed = kept.and_then(|()| disk::remove(&run));
        removed.map_err(|error| {
            entry.job.is_deleted = false;
            disk_error(&error)
        })?;
        Ok(names)
    }

    /// Ends a job for good.
    ///
    /// # Errors
    /// 404, and 400 for a job that has ended.
    pub fn cancel(&self, id: &str) -> Result<JobObject, ApiError> {
        self.change(id, "cancelled", |status| match status {
            status if status.is_final() => None,
            _ => Some((Status::Cancelled, "The job has been cancelled")),
        })
    }

    /// Stops a job after its step, with a checkpoint.
    ///
    /// # Errors
    /// 404, and 400 for a job that does not wait or run.
    pub fn pause(&self, id: &str) -> Result<JobObject, ApiError> {
        self.change(id, "paused", |status| match status {
            Status::Queued | Status::ValidatingFiles | Status::Running => {
                Some((Status::Paused, "The job has been paused"))
            }
            _ => None,
        })
    }

    /// Lets a paused job go on when it is its turn.
    ///
    /// # Errors
    /// 404, and 400 for a job that is not paused, or of another model.
    pub fn resume(&self, id: &str) -> Result<JobObject, ApiError> {
        if let Some(entry) = self.state().entry(id)
            && !entry.job.is_of(&self.0.base)
        {
            let message = format!(
                "The job `{id}` cannot be resumed: it trains another model than the one that is served."
            );
            return Err(ApiError::bad_request("fine_tuning_job_id", message));
        }
        self.change(id, "resumed", |status| match status {
            Status::Paused => Some((Status::Queued, "The job waits for its turn again")),
            _ => None,
        })
    }

    fn change(
        &self,
        id: &str,
        verb: &str,
        next: impl FnOnce(Status) -> Option<(Status, &'static str)>,
    ) -> Result<JobObject, ApiError> {
        let mut state = self.state();
        let entry = state.find(id)?;
        let Some((status, text)) = next(entry.job.status) else {
            let message = format!(
                "The job `{id}` cannot be {verb}: its status is `{}`.",
                entry.job.status.name()
            );
            return Err(ApiError::bad_request("fine_tuning_job_id", message));
        };
        // What is not kept would be forgotten by the next server.
        entry.try_set(status).map_err(|error| disk_error(&error))?;
        entry.stop();
        entry.events.push(Event::message(Level::Info, text));
        let object = entry.object();
        drop(state);
        self.0.wake.notify_all();
        self.changed();
        Ok(object)
    }
}

/// The name of the adapter in a checkpoint, as OpenAI makes names.
pub(super) fn checkpoint_name(name: &str, step: u64) -> String {
    format!("{name}:ckpt-step-{step}")
}

/// OpenAI's names of the numbers of a step, losses of both kinds.
fn metrics_of(events: &[Event], step: u64) -> Map<String, Value> {
    let of_step = events.iter().filter(|event| {
        event.kind == "metrics" && event.data.get("step").and_then(Value::as_u64) == Some(step)
    });
    let mut metrics = Map::new();
    metrics.insert("step".to_owned(), step.into());
    for (name, value) in of_step.flat_map(|event| &event.data) {
        if name.starts_with("train_") || name.starts_with("full_valid_") {
            metrics.insert(name.clone(), value.clone());
        }
    }
    metrics
}
