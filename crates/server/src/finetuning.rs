//! Training over HTTP: uploaded files, jobs that wait for their turn, and the adapters that they make.
//!
//! Everything is kept in plain files below `--finetuning-dir`, so that a server that is started again goes on where it was. Jobs
//! run one at a time, through [`trainer_sft::Training`]: on a thread of their own, or with `--finetuning-device` in a process of
//! their own.

mod create;
mod disk;
mod events;
mod files;
mod gate;
mod hear;
mod job;
mod job_process;
mod jobs;
mod messages;
mod preview;
mod process;
mod queue;
mod results;
mod run;
mod settings;
mod spec;
mod warnings;
mod watch;
mod work;

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::http::StatusCode;
use tokio::sync::watch as async_watch;
use trainer_sft::chat_format::ChatFormat;

use crate::config::{Config, FineTuningConfig};
use crate::engine::{EngineHandle, ModelInfo};
use crate::error::ApiError;

pub use events::{Event, Level};
pub(crate) use files::FINE_TUNE;
pub use files::{FileObject, Upload};
pub use job::{Checkpoint, JobError, JobObject, Status};
pub(crate) use job_process::run as run_job;
pub(crate) use preview::Asks;
pub use preview::PreviewRequest;
pub(crate) use process::COMMAND as JOB_COMMAND;
pub use spec::{JobRequest, Method, MethodPart};

use files::FileStore;
use jobs::JobEntry;
use spec::Base;

/// Files, jobs and the thread that works on them; clones are cheap.
#[derive(Clone)]
pub struct FineTuning(Arc<Service>);

struct Service {
    config: FineTuningConfig,
    base: Base,
    /// The model's text files, read once: a tokenizer takes a second.
    format: OnceLock<ChatFormat>,
    engine: EngineHandle,
    state: Mutex<State>,
    /// Wakes the thread.
    wake: Condvar,
    /// Counts changes, for those who follow a job.
    changes: async_watch::Sender<u64>,
}

/// What changes.
struct State {
    files: FileStore,
    /// In the order in which they were made.
    jobs: Vec<JobEntry>,
    shutting_down: bool,
    /// Whether a job takes steps, which a shutdown waits for.
    is_training: bool,
}

impl FineTuning {
    /// Reads what an earlier server has left, serves its adapters again, and starts the thread. `None` without
    /// `--enable-finetuning`.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn start(
        config: &Config,
        engine: &EngineHandle,
        model: &ModelInfo,
    ) -> std::io::Result<Option<Self>> {
        let Some(own) = &config.finetuning else {
            return Ok(None);
        };
        let disk = disk::Folders::claim(&own.dir)?;
        let files = FileStore::open(disk.files())?;
        let base = Base::of(config, model);
        let jobs = jobs::read_all(&disk.jobs(), &base)?;
        let service = Service {
            config: FineTuningConfig {
                dir: disk.path().to_path_buf(),
                ..own.clone()
            },
            base,
            format: OnceLock::new(),
            engine: engine.clone(),
            state: Mutex::new(State {
                files,
                jobs,
                shutting_down: false,
                is_training: false,
            }),
            wake: Condvar::new(),
            changes: async_watch::channel(0).0,
        };
        let own = Self(Arc::new(service));
        queue::start(own.clone(), disk)?;
        Ok(Some(own))
    }

    /// Stops a running job after its step, with a checkpoint, and begins no other.
    pub fn begin_shutdown(&self) {
        let mut state = self.state();
        state.shutting_down = true;
        state.jobs.iter().for_each(JobEntry::stop);
        drop(state);
        self.0.wake.notify_all();
        self.changed();
    }

    /// Waits until no job takes steps.
    pub async fn stopped(&self) {
        let mut changes = self.0.changes.subscribe();
        // The sender lives as long as `self`.
        let _ = changes.wait_for(|_| !self.state().is_training).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits that something has changed.
    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Changes of any job or file.
    pub(crate) fn changes(&self) -> async_watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The folder of a job.
    fn job_dir(&self, id: &str) -> PathBuf {
        self.0.config.dir.join(disk::JOBS).join(id)
    }

    /// Largest file that may be uploaded, in bytes.
    pub(crate) fn max_file_size(&self) -> u64 {
        self.0.config.max_file_size
    }
}

/// A new id, such as `file-` and 24 hexadecimal digits.
fn new_id(kind: &str) -> String {
    let random = crate::request_id::RequestId::default().or(None);
    format!("{kind}{}", &random[..24])
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// 507 for a disk that is full, 500 for one that fails.
fn disk_error(error: &io::Error) -> ApiError {
    tracing::error!(%error, "--finetuning-dir");
    let message = format!("--finetuning-dir: {error}");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message)
        }
        _ => ApiError::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_a_status_of_its_own() {
        for (kind, status) in [
            (ErrorKind::StorageFull, 507),
            (ErrorKind::QuotaExceeded, 507),
            (ErrorKind::PermissionDenied, 500),
        ] {
            let error = disk_error(&kind.into());
            assert_eq!(error.status.as_u16(), status, "{kind}");
            assert!(error.message.starts_with("--finetuning-dir: "));
        }
    }
}
