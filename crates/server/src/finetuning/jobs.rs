//! What clients may do with jobs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use trainer_sft::config::{Config, RunConfig};

use super::events::{Event, EventLog, Level};
use super::files::{FINE_TUNE, no_file};
use super::job::{Checkpoint, Job, JobObject, RECORD, Status, checkpoints, prompts_path, run_dir};
use super::settings::{self, Paths, Refusal};
use super::spec::{JobRequest, MethodPart};
use super::{FineTuning, State, disk, disk_error, new_id, now};
use crate::error::ApiError;

/// Longest suffix, as at OpenAI.
const MAX_SUFFIX: usize = 64;

/// A job and what is known of it besides its record.
#[derive(Debug)]
pub(super) struct JobEntry {
    pub(super) job: Job,
    pub(super) events: EventLog,
    folder: PathBuf,
    /// Ends the run, while there is one.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) progress: Option<Progress>,
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
    fn new(job: Job, folder: PathBuf) -> Self {
        Self {
            job,
            events: EventLog::open(&folder),
            folder,
            stop: Arc::default(),
            progress: None,
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

    /// Gives the job another state.
    pub(super) fn set(&mut self, status: Status) {
        self.job.status = status;
        if status.is_final() {
            self.job.finished_at = Some(now());
            self.progress = None;
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

/// The jobs that an earlier server has left. One that was running is queued again.
pub(super) fn read_all(dir: &Path) -> io::Result<Vec<JobEntry>> {
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
        if entry.job.status.is_active() {
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
    /// Queues a job, whose settings and files are there and fit. `adapter` is the name of the adapter to start from.
    ///
    /// # Errors
    /// 400 with the field that is at fault; 404 for a file.
    pub fn create(
        &self,
        request: JobRequest,
        part: &MethodPart,
        adapter: Option<&str>,
    ) -> Result<JobObject, ApiError> {
        let base = &self.0.base;
        self.check_base()?;
        if let Some(suffix) = &request.suffix {
            check_suffix(suffix)?;
        }
        let own_adapters = self.0.engine.adapters().into_iter();
        let adapter = adapter.and_then(|name| {
            own_adapters
                .into_iter()
                .find(|own| own.name == name)
                .map(|own| own.path)
        });
        let data = self.path_of("training_file", &request.training_file)?;
        let eval = match &request.validation_file {
            Some(id) => vec![self.path_of("validation_file", id)?],
            None => Vec::new(),
        };
        let id = new_id("ftjob-");
        let mut paths = Paths {
            data: vec![data],
            eval,
            output: run_dir(&self.job_dir(&id)),
            adapter,
            ..Paths::default()
        };
        let refused = |refusal: Refusal| refused(refusal, &part.place);
        let prompts = settings::prompts(&part.hyperparameters).map_err(refused)?;
        if !prompts.is_empty() {
            paths.prompts = Some(prompts_path(&self.job_dir(&id)));
        }
        let seed = request.seed.unwrap_or(RunConfig::default().seed);
        let settings = &part.hyperparameters;
        let config = settings::config(base, part.method, settings, Some(seed), &paths);
        let config = config.map_err(refused)?;
        self.check_rank(&config, &part.place)?;
        let job = Job {
            number: 0,
            created_at: now(),
            finished_at: None,
            model: request.model,
            adapter: paths.adapter,
            training_file: request.training_file,
            validation_file: request.validation_file,
            suffix: request.suffix.filter(|suffix| !suffix.is_empty()),
            seed,
            method: part.method,
            settings: part.hyperparameters.clone(),
            hyperparameters: in_force(&config, &part.hyperparameters),
            metadata: request.metadata,
            status: Status::Queued,
            error: None,
            fine_tuned_model: None,
            trained_tokens: None,
            result_files: Vec::new(),
            id,
        };
        self.enqueue(job, &prompts)
    }

    /// Writes the folder of a job, which is there whole or not at all.
    fn enqueue(&self, mut job: Job, prompts: &[String]) -> Result<JobObject, ApiError> {
        let folder = self.job_dir(&job.id);
        let part = folder.with_file_name(format!(".part-{}", job.id));
        let mut state = self.state();
        // A file may have been deleted since it was looked up.
        for (param, id) in [
            ("training_file", Some(&job.training_file)),
            ("validation_file", job.validation_file.as_ref()),
        ] {
            if let Some(id) = id.filter(|id| state.files.get(id).is_none()) {
                return Err(no_file(param, id));
            }
        }
        job.number = state.jobs.last().map_or(0, |entry| entry.job.number + 1);
        let write = || {
            fs::create_dir(&part)?;
            disk::write_json(&part.join(RECORD), &job)?;
            if !prompts.is_empty() {
                let lines = prompts
                    .iter()
                    .map(|prompt| json!({ "prompt": prompt }).to_string() + "\n");
                disk::write(&prompts_path(&part), lines.collect::<String>().as_bytes())?;
            }
            fs::rename(&part, &folder)
        };
        write().map_err(|error: io::Error| disk_error(&error))?;
        let mut entry = JobEntry::new(job, folder);
        let text = format!("Created fine-tuning job: {}", entry.job.id);
        entry.events.push(Event::message(Level::Info, text));
        let object = entry.object();
        state.jobs.push(entry);
        drop(state);
        self.0.wake.notify_all();
        self.changed();
        Ok(object)
    }

    /// Refuses what could not be trained or served.
    fn check_base(&self) -> Result<(), ApiError> {
        let base = &self.0.base;
        let refused = |message: &str| Err(ApiError::bad_request("model", message));
        if base.weights.is_none() {
            return refused(
                "The served model computes vectors or scores, and jobs train models that generate text.",
            );
        }
        if base.max_lora_rank.is_none() {
            return refused(
                "The result could not be served: start the server with --enable-lora, too.",
            );
        }
        if base.has_own_template {
            return refused(
                "Jobs learn with the chat template of the model's folder, and the server shows the model another one: start it \
                 without --chat-template.",
            );
        }
        Ok(())
    }

    /// Refuses an adapter that the server could not load.
    fn check_rank(&self, config: &Config, place: &str) -> Result<(), ApiError> {
        let Some(limit) = self.0.base.max_lora_rank else {
            return Ok(());
        };
        // The other ways to begin are written as an adapter of twice the rank.
        let rank = match config.lora.init.changes_base() {
            true => 2 * config.lora.r,
            false => config.lora.r,
        };
        if config.run.adapter.is_some() || rank <= limit {
            return Ok(());
        }
        let param = format!("{place}.lora_r");
        let message = format!(
            "`{param}`: the adapter would have rank {rank}, and the server takes at most {limit}: start it with --max-lora-rank {rank}."
        );
        Err(ApiError::bad_request(param, message))
    }

    /// The content of a file to learn from.
    fn path_of(&self, param: &str, id: &str) -> Result<PathBuf, ApiError> {
        let (file, path) = self.file(id).map_err(|_| no_file(param, id))?;
        if file.purpose != FINE_TUNE {
            let expected = format!("a file whose purpose is `{FINE_TUNE}`");
            return Err(ApiError::expected(
                param,
                &expected,
                &format!("`{}`", file.purpose),
            ));
        }
        Ok(path)
    }

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
        let events = entry.events.all().get(from..).unwrap_or_default();
        let events = events.to_vec();
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
        let name = entry.job.result_name(&self.0.base.name);
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
                metrics: metrics_of(entry.events.all(), step),
                step_number: step,
            }
        });
        Ok(checkpoints.collect())
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
    /// 404, and 400 for a job that is not paused.
    pub fn resume(&self, id: &str) -> Result<JobObject, ApiError> {
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
        entry.stop();
        entry.set(status);
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

/// OpenAI's three hyperparameters.
fn in_force(config: &Config, given: &Map<String, Value>) -> Map<String, Value> {
    // A whole number of epochs is written as one.
    let epochs = config.epochs();
    let epochs = match epochs.fract() == 0.0 && epochs < 1e9 {
        true => Value::from(epochs as u64),
        false => Value::from(epochs),
    };
    let multiplier = given.get("learning_rate_multiplier").cloned();
    let multiplier = multiplier.unwrap_or_else(|| Value::from(1.0));
    Map::from_iter([
        ("n_epochs".to_owned(), epochs),
        ("batch_size".to_owned(), config.run.batch_size.into()),
        ("learning_rate_multiplier".to_owned(), multiplier),
    ])
}

/// A refusal as an error that names the whole place of the field.
pub(super) fn refused(Refusal { name, message }: Refusal, place: &str) -> ApiError {
    let Some(name) = name else {
        return ApiError::bad_request(place, message);
    };
    let param = match name.as_str() {
        "training_file" | "validation_file" | "seed" => name.clone(),
        _ => format!("{place}.{name}"),
    };
    ApiError::bad_request(
        &param,
        message.replacen(&format!("`{name}`"), &format!("`{param}`"), 1),
    )
}

fn check_suffix(suffix: &str) -> Result<(), ApiError> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if suffix.chars().count() <= MAX_SUFFIX && suffix.chars().all(is_plain) {
        return Ok(());
    }
    let expected = format!("at most {MAX_SUFFIX} letters, digits, `-`, `_` and `.`");
    let shown: String = suffix.chars().take(MAX_SUFFIX + 1).collect();
    Err(ApiError::expected(
        "suffix",
        &expected,
        &format!("{shown:?}"),
    ))
}
