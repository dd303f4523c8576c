//! One turn of a job: the trainer's own run, with the server's weights where they fit.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use trainer_sft::config::Config;
use trainer_sft::{TrainError, Training};

use super::FineTuning;
use super::events::{Event, Level};
use super::files::with_filename;
use super::gate::{Gate, pool};
use super::job::{Job, JobError, checkpoints, prompts_path, run_dir};
use super::settings::{self, Paths, in_settings};
use super::watch::Watcher;

/// Files of a finished adapter.
const RESULT: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// A job whose turn it is.
pub(super) struct Turn {
    pub(super) job: Job,
    /// Ends the run after its step.
    pub(super) stop: Arc<AtomicBool>,
}

/// How a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The adapter is there.
    Complete,
    /// There is a checkpoint to go on from.
    Stopped,
}

impl FineTuning {
    /// Trains a job from its start, or from where it was.
    pub(super) fn train(&self, turn: &Turn) -> Result<End, JobError> {
        let failed = |error: io::Error| server_error(format!("--finetuning-dir: {error}"));
        let job = &turn.job;
        let folder = self.job_dir(&job.id);
        let run = run_dir(&folder);
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
        let config = settings::config(
            &self.0.base,
            job.method,
            &job.settings,
            Some(job.seed),
            &paths,
        );
        let config = config.map_err(|refusal| JobError {
            code: "invalid_hyperparameters".to_owned(),
            message: refusal.message,
            param: refusal.name,
        })?;
        let pool = pool(self.0.config.priority).map_err(|error| server_error(error.to_string()))?;
        let trained = pool.install(|| self.run(turn, &config, done));
        trained.map_err(|error| self.job_error(job, &error))
    }

    /// Tells where the run begins.
    fn begin(&self, id: &str, done: Option<u64>) {
        let mut state = self.state();
        if let Some(entry) = state.entry(id) {
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

    /// The trainer's run, on the threads of the pool.
    fn run(&self, turn: &Turn, config: &Config, done: Option<u64>) -> Result<End, TrainError> {
        let base = &self.0.base;
        let watcher = Watcher::new(self, &turn.job.id, done);
        let mut training = Training::new(config)
            .stop_when(&turn.stop)
            .on_start(|| watcher.start())
            .on_record(|record| watcher.record(record))
            .on_sample(|samples| watcher.samples(samples))
            .on_checkpoint(|path| watcher.checkpoint(path))
            .on_step(|step| watcher.step(step));
        if let Some(device) = base.device() {
            training = training.device(&device);
            let gate = Gate {
                engine: self.0.engine.clone(),
                priority: self.0.config.priority,
                device,
                stop: Arc::clone(&turn.stop),
                passed: Mutex::new(Instant::now()),
            };
            training = training.wait_before_work(move || gate.pass());
        }
        let fits = config.quantization() == base.quantization;
        match base.weights.as_ref().filter(|_| fits) {
            Some(weights) => training = training.base(weights),
            None => watcher.tell(Event::message(
                Level::Warn,
                "The job holds its weights otherwise than the server, and loads the model a second time",
            )),
        }
        let summary = training.run()?;
        Ok(match summary.stopped {
            Some(_) => End::Stopped,
            None => End::Complete,
        })
    }

    /// The error as clients see it: with the names of files that they know.
    fn job_error(&self, job: &Job, error: &TrainError) -> JobError {
        let (code, mut param) = match error {
            TrainError::Data(_) => ("invalid_training_file", Some("training_file")),
            TrainError::Device(_) => ("server_error", None),
            error if error.is_of_settings() => ("invalid_hyperparameters", None),
            TrainError::Diverged { .. } => ("training_diverged", None),
            _ => ("server_error", None),
        };
        let mut message = in_settings(&model_qwen::with_causes(error));
        let files = [
            ("training_file", Some(&job.training_file)),
            ("validation_file", job.validation_file.as_ref()),
        ];
        for (field, id) in files {
            let Some(Ok((file, path))) = id.map(|id| self.file(id)) else {
                continue;
            };
            let named = with_filename(&message, &path, &file.filename);
            if named != message && param.is_some() {
                param = Some(field);
            }
            message = named;
        }
        JobError {
            code: code.to_owned(),
            message,
            param: param.map(str::to_owned),
        }
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
