//! A run of the trainer, in the server's process or in one of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use model_qwen::QwenModel;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use trainer_sft::config::Config;
use trainer_sft::{TrainError, Training, WorkUnit};

use super::events::{Event, Level};
use super::gate::pool;
use super::messages::{End, Failure, JobMessage, without_folder};
use super::settings::{self, Paths, in_settings};
use super::spec::{Method, Source};
use super::warnings::heard;
use super::watch::Watcher;
use crate::config::JobPriority;

/// Who is told.
pub(super) type Tell = Arc<dyn Fn(JobMessage) + Send + Sync>;

/// What is to be trained.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) source: Source,
    pub(super) method: Method,
    /// Hyperparameters as they were given.
    pub(super) settings: Map<String, Value>,
    pub(super) seed: u64,
    pub(super) paths: Paths,
    pub(super) priority: JobPriority,
    /// Whether the server says when a unit of work may begin.
    pub(super) waits: bool,
}

/// What it is trained with.
#[derive(Default)]
pub(super) struct Means<'a> {
    /// Ends the run after its step.
    pub(super) stop: Option<&'a AtomicBool>,
    /// Otherwise the device that the settings name.
    pub(super) device: Option<Device>,
    /// Weights that are loaded already.
    pub(super) base: Option<&'a QwenModel>,
    /// Passed before each unit of work.
    pub(super) gate: Option<Box<dyn Fn(WorkUnit) + Send + Sync>>,
}

impl Work {
    /// The trainer's settings.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let config = settings::config(
            &self.source,
            self.method,
            &self.settings,
            Some(self.seed),
            &self.paths,
        );
        config.map_err(|refusal| {
            Failure::new(
                "invalid_hyperparameters",
                refusal.name.as_deref(),
                refusal.message,
            )
        })
    }

    /// Trains, on threads that stand back.
    pub(super) fn train(&self, means: Means<'_>, tell: &Tell) -> Result<End, Failure> {
        let config = self.config()?;
        let pool = pool(self.priority).map_err(|error| Failure::of_server(error.to_string()))?;
        let (warn, output) = (Arc::clone(tell), self.paths.output.clone());
        let warn = move |text: String| {
            warn(JobMessage::Warning(without_folder(
                in_settings(&text),
                &output,
            )));
        };
        let run = || {
            let watcher = Watcher::new(&**tell);
            // What lies elsewhere, no request deletes.
            let mut training = Training::new(&config)
                .only_in_output()
                .on_start(|| tell(JobMessage::Start))
                .on_record(|record| watcher.record(record))
                .on_sample(|samples| watcher.samples(samples))
                .on_checkpoint(|path| watcher.checkpoint(path))
                .on_step(|step| watcher.step(step));
            if let Some(stop) = means.stop {
                training = training.stop_when(stop);
            }
            if let Some(device) = &means.device {
                training = training.device(device);
            }
            if let Some(gate) = means.gate {
                training = training.wait_before_work(gate);
            }
            let fits = config.quantization() == self.source.quantization;
            match means.base {
                Some(weights) if fits => training = training.base(weights),
                Some(_) => tell(JobMessage::Event(Event::message(
                    Level::Warn,
                    "The job holds its weights otherwise than the server, and loads the model a second time",
                ))),
                None => {}
            }
            training.run()
        };
        let summary = pool.install(|| heard(warn, run));
        match summary {
            Ok(summary) if summary.stopped.is_some() => Ok(End::Stopped),
            Ok(_) => Ok(End::Complete),
            // It had not begun, and begins anew if it is wanted again.
            Err(TrainError::Stopped) => Ok(End::Stopped),
            Err(error) => Err(Failure::of(&error, &self.paths.output)),
        }
    }
}
