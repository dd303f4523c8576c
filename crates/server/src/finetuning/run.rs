//! One turn of a job: the trainer's own run, in this process or in one of its own.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use model_qwen::{is_gpu, parse_device};

use super::FineTuning;
use super::events::{Event, Level};
use super::files::with_filename;
use super::job::{Job, JobError, checkpoints, prompts_path, run_dir};
use super::messages::{End, Failure};
use super::settings::Paths;
use super::work::{Means, Tell, Work};
use crate::config::JobPriority;

/// Files of a finished adapter.
const RESULT: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// A job whose turn it is.
pub(super) struct Turn {
    pub(super) job: Job,
    /// Ends the run after its step.
    pub(super) stop: Arc<AtomicBool>,
}

/// How long a process of an earlier server may take to end.
const LEAVING: Duration = Duration::from_secs(30);

/// Waits until a process of an earlier server has left a run's folder: without its server it ends by itself, but on a busy machine
/// not at once.
fn wait_until_left(run: &Path) {
    let deadline = Instant::now() + LEAVING;
    let is_held = || {
        let folder = File::open(run).ok();
        folder.is_some_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock)))
    };
    while is_held() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl FineTuning {
    /// Trains a job from its start, or from where it was.
    pub(super) fn train(&self, turn: &Turn) -> Result<End, JobError> {
        let failed = |error: io::Error| server_error(format!("--finetuning-dir: {error}"));
        let job = &turn.job;
        let folder = self.job_dir(&job.id);
        let run = run_dir(&folder);
        wait_until_left(&run);
        if is_complete(&run).map_err(failed)? {
            return Ok(End::Complete);
        }
        let done = checkpoints(&run).first().map(|(step, _)| *step);
        if done.is_none() && run.exists() {
            fs::remove_dir_all(&run).map_err(failed)?;
        }
        self.begin(&job.id, done);
        let path_of = |id: &String| self.file(id).map(|(_, path)| path);
        let file = |id: &String| path_of(id).map_err(|error| server_error(error.message));
        let prompts = Some(prompts_path(&folder)).filter(|path| path.is_file());
        let paths = Paths {
            data: vec![file(&job.training_file)?],
            eval: job
                .validation_file
                .iter()
                .map(file)
                .collect::<Result<_, _>>()?,
            output: run,
            adapter: job.adapter.clone(),
            prompts,
            resumes: done.is_some(),
        };
        let elsewhere = self.0.config.device.is_some();
        let work = Work {
            source: self.0.base.source.clone(),
            method: job.method,
            settings: job.settings.clone(),
            seed: job.seed,
            paths,
            priority: self.0.config.priority,
            waits: elsewhere && self.is_in_the_way(),
        };
        let trained = match elsewhere {
            true => self.train_elsewhere(turn, &work),
            false => self.train_here(turn, &work),
        };
        trained.map_err(|failure| self.job_error(job, failure))
    }

    /// Trains in this process, with the server's weights where they fit.
    fn train_here(&self, turn: &Turn, work: &Work) -> Result<End, Failure> {
        let base = &self.0.base;
        let gate = self.gate(turn);
        let means = Means {
            stop: Some(&turn.stop),
            device: base.device(),
            base: base.weights.as_ref(),
            gate: gate.map(|gate| Box::new(move |unit| gate.pass(unit)) as Box<_>),
        };
        let (own, id) = (self.clone(), turn.job.id.clone());
        work.train(
            means,
            &(Arc::new(move |message| own.hear(&id, message)) as Tell),
        )
    }

    /// Whether jobs run on a GPU.
    pub(super) fn trains_on_gpu(&self) -> bool {
        let device = match &self.0.config.device {
            Some(name) => parse_device(name).ok(),
            None => self.0.base.device(),
        };
        device.is_some_and(|device| is_gpu(&device))
    }

    /// Whether a job in a process of its own waits for requests: where it is told to, or shares a GPU with them.
    fn is_in_the_way(&self) -> bool {
        let own = &self.0.config;
        let device = own.device.as_ref().and_then(|name| parse_device(name).ok());
        let shares =
            device.is_some_and(|device| is_gpu(&device) && self.0.base.device() == Some(device));
        own.priority == JobPriority::Low || shares
    }

    /// Tells where the run begins.
    fn begin(&self, id: &str, done: Option<u64>) {
        let mut state = self.state();
        if let Some(entry) = state.entry(id) {
            entry.done = done.unwrap_or(0) as usize;
            if done.is_none() {
                entry.job.held = Some(self.0.base.held_for(&entry.job.settings));
                entry.save();
            }
            entry.events.go_back_to(done.unwrap_or(0));
            let text = match done {
                Some(step) => format!("The job goes on after step {step}, from its checkpoint"),
                None => format!("Validating training file: {}", entry.job.training_file),
            };
            entry.events.push(Event::message(Level::Info, text));
        }
        drop(state);
        self.changed();
    }

    /// The failure as clients see it: with the names of files that they know.
    fn job_error(&self, job: &Job, failure: Failure) -> JobError {
        let (message, of_file) = self.with_names(job, &failure.message);
        JobError {
            code: failure.code,
            message,
            param: failure
                .param
                .map(|param| of_file.map_or(param, str::to_owned)),
        }
    }

    /// A message with the names that the uploaders of its files know, and the last field of a job that it is about.
    pub(super) fn with_names(&self, job: &Job, message: &str) -> (String, Option<&'static str>) {
        let files = [
            ("training_file", Some(&job.training_file)),
            ("validation_file", job.validation_file.as_ref()),
        ];
        let (mut message, mut of_file) = (message.to_owned(), None);
        for (field, id) in files {
            let Some(Ok((file, path))) = id.map(|id| self.file(id)) else {
                continue;
            };
            let named = with_filename(&message, &path, &file.filename);
            if named != message {
                of_file = Some(field);
            }
            message = named;
        }
        (message, of_file)
    }
}

fn server_error(message: String) -> JobError {
    JobError {
        code: "server_error".to_owned(),
        message,
        param: None,
    }
}

/// Whether the adapter is there whole. Half of one, left by a killed server, is removed: the run writes it again.
fn is_complete(run: &Path) -> io::Result<bool> {
    let files = RESULT.map(|name| run.join(name));
    if files.iter().all(|file| file.is_file()) {
        return Ok(true);
    }
    for file in files.iter().filter(|file| file.is_file()) {
        fs::remove_file(file)?;
    }
    Ok(false)
}
