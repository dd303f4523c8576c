//! What clients may do with jobs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::events::{Event, EventLog, Level};
use super::job::{Checkpoint, Job, JobObject, RECORD, Status, bare_id, checkpoints, run_dir};
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
    /// Why the record could not be written as the job is now.
    unsaved: Option<io::Error>,
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
            unsaved: None,
        }
    }

    /// Tells the run to end after its step.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Writes the record. A disk that is full ends no job: the next change is written again.
    pub(super) fn save(&mut self) {
        self.unsaved = disk::write_json(&self.folder.join(RECORD), &self.job).err();
        if let Some(error) = &self.unsaved {
            tracing::error!(id = self.job.id, %error, "the state of a job is not written");
        }
    }

    /// Gives the job another state.
    pub(super) fn set(&mut self, status: Status) {
        self.job.status = status;
        if status.is_final() {
            self.job.finished_at = Some(now());
            self.progress = None;
            self.events.rest();
        } else {
            (self.job.finished_at, self.job.error) = (None, None);
        }
        self.save();
    }

    /// Whether it has a checkpoint to go on from.
    fn is_begun(&self) -> bool {
        !self.job.is_deleted && !checkpoints(&run_dir(&self.folder)).is_empty()
    }

    /// Why a server of this base cannot train it from where it is: a checkpoint is of weights that are held in one form.
    fn hindrance(&self, base: &Base) -> Option<String> {
        if !self.job.is_of(base) {
            return Some("it trains another model than the one that is served".to_owned());
        }
        let held = self.job.held_otherwise(base).filter(|_| self.is_begun())?;
        Some(format!(
            "its checkpoint is of weights that are held otherwise than by this server, with `{held}`"
        ))
    }

    /// Whether a model of this name is what the job has made; of one that has failed or was cancelled, what is left of it.
    fn has_made(&self, name: &str, base: &Base) -> bool {
        let has_left = || self.job.status.is_final() && run_dir(&self.folder).exists();
        let is_it = match &self.job.fine_tuned_model {
            Some(own) => own == name,
            None => self.job.result_name(&base.name) == name && has_left(),
        };
        is_it && !self.job.is_deleted
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
        if entry.job.is_deleted && run_dir(&entry.folder).exists() {
            // The server that deleted it could not.
            if let Err(error) = disk::remove(&run_dir(&entry.folder)) {
                tracing::warn!(id = entry.job.id, %error, "a deleted model is not removed from the disk");
            }
        }
        if let Some(reason) = entry.hindrance(base).filter(|_| is_due) {
            let text = format!(
                "The job is paused: {reason}. It can be resumed on a server that has what it needs"
            );
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
                id: format!("ftckpt-{}-{step}", bare_id(id)),
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

    /// Whether a job has made this model.
    pub(crate) fn has_made(&self, name: &str) -> bool {
        let state = self.state();
        (state.jobs.iter()).any(|entry| entry.has_made(name, &self.0.base))
    }

    /// Deletes a result and its checkpoints from the disk. Gives the names under which they are still served: the caller unloads
    /// them.
    ///
    /// # Errors
    /// 404 for a model that no job has made, and 409 where a job starts from it.
    pub fn delete_model(&self, name: &str) -> Result<Vec<String>, ApiError> {
        let mut state = self.state();
        let found = (state.jobs.iter()).position(|entry| entry.has_made(name, &self.0.base));
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
        let mut deleted = entry.job.clone();
        deleted.is_deleted = true;
        let kept = disk::write_json(&entry.folder.join(RECORD), &deleted);
        kept.map_err(|error| disk_error(&error))?;
        entry.job = deleted;
        // The next server removes it otherwise.
        if let Err(error) = disk::remove(&run) {
            tracing::warn!(name, %error, "a deleted model is not removed from the disk");
        }
        Ok(names)
    }

    /// Ends a job for good.
    ///
    /// # Errors
    /// 404, 400 for a job that has ended, and 500 where the record cannot be written: the job ends, and the next server would run
    /// it again.
    pub fn cancel(&self, id: &str) -> Result<JobObject, ApiError> {
        let is_possible = |status: Status| !status.is_final();
        let text = "The job has been cancelled";
        self.change(id, (Status::Cancelled, "cancelled", text), is_possible)
    }

    /// Stops a job after its step, with a checkpoint.
    ///
    /// # Errors
    /// 404, 400 for a job that does not wait or run, and 500 as for [`Self::cancel`].
    pub fn pause(&self, id: &str) -> Result<JobObject, ApiError> {
        let is_possible = |status: Status| status == Status::Queued || status.is_active();
        let text = "The job has been paused";
        self.change(id, (Status::Paused, "paused", text), is_possible)
    }

    /// Lets a paused job go on when it is its turn.
    ///
    /// # Errors
    /// 404, 400 for a job that is not paused and has not failed behind a checkpoint, or of another model, and 500 where the record
    /// cannot be written.
    pub fn resume(&self, id: &str) -> Result<JobObject, ApiError> {
        let mut state = self.state();
        let entry = state.find(id)?;
        let (job, is_begun) = (entry.job.clone(), entry.is_begun());
        let hindrance = entry.hindrance(&self.0.base);
        let gone = job.files().find(|file| state.files.get(file).is_none());
        let hindrance = hindrance.or(gone.map(|file| format!("its file `{file}` was deleted")));
        drop(state);
        if let Some(reason) = hindrance {
            let message = format!("The job `{id}` cannot be resumed: {reason}.");
            return Err(ApiError::bad_request("fine_tuning_job_id", message));
        }
        let is_possible = |status: Status| {
            // One that has failed goes on from its checkpoint, when the cause is gone.
            status == Status::Paused || (status == Status::Failed && is_begun)
        };
        let text = "The job waits for its turn again";
        self.change(id, (Status::Queued, "resumed", text), is_possible)
    }

    fn change(
        &self,
        id: &str,
        (next, verb, text): (Status, &str, &str),
        is_possible: impl Fn(Status) -> bool,
    ) -> Result<JobObject, ApiError> {
        let mut state = self.state();
        let entry = state.find(id)?;
        let status = entry.job.status;
        if is_possible(status) {
            let before = entry.job.clone();
            entry.stop();
            entry.set(next);
            if let Some(error) = entry.unsaved.take_if(|_| next == Status::Queued) {
                // It would begin although the answer is an error.
                entry.job = before;
                return Err(disk_error(&error));
            }
            entry.events.push(Event::message(Level::Info, text));
        } else if status == next && entry.unsaved.is_some() {
            // The disk may have room now.
            entry.save();
        } else {
            let status = status.name();
            let message = format!("The job `{id}` cannot be {verb}: its status is `{status}`.");
            return Err(ApiError::bad_request("fine_tuning_job_id", message));
        }
        let (object, unsaved) = (
            entry.object(),
            entry.unsaved.as_ref().map(io::Error::to_string),
        );
        drop(state);
        self.0.wake.notify_all();
        self.changed();
        match unsaved {
            None => Ok(object),
            Some(reason) => Err(ApiError::internal(format!(
                "The job `{id}` is {verb}, but its record in --finetuning-dir cannot be written ({reason}): a server that is started \
                 again would not know. Ask once more when it can."
            ))),
        }
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
