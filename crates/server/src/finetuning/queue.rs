//! The thread that works on jobs, one after the other.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, mpsc};
use std::thread;

use super::FineTuning;
use super::disk::{self, Folders};
use super::events::{Event, Level};
use super::job::{JobError, Status, checkpoints, run_dir};
use super::jobs::checkpoint_name;
use super::messages::End;
use super::run::Turn;

/// Starts the thread, and waits until the adapters of earlier jobs are served.
pub(super) fn start(own: FineTuning, folders: Folders) -> io::Result<()> {
    let (sender, served) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("fine-tuning".to_owned())
        .spawn(move || {
            own.serve_results();
            // Whoever starts it waits.
            let _ = sender.send(());
            while let Some(turn) = own.next_turn() {
                own.carry_out(&turn);
            }
            // Other servers may use the folder from now on.
            drop(folders);
        })?;
    let _ = served.recv();
    Ok(())
}

impl FineTuning {
    /// Serves the adapters of all jobs that have succeeded.
    fn serve_results(&self) {
        let state = self.state();
        let ended = state.jobs.iter().map(|entry| &entry.job);
        let ended = ended.filter(|job| job.status == Status::Succeeded && !job.is_deleted);
        let ended = ended.filter(|job| {
            let is_of_base = job.is_of(&self.0.base);
            if !is_of_base {
                let name = job.fine_tuned_model.as_deref();
                tracing::warn!(
                    id = job.id,
                    name,
                    "not served: it was trained for another model"
                );
            }
            is_of_base
        });
        let ended: Vec<_> = ended
            .filter_map(|job| Some((job.id.clone(), job.fine_tuned_model.clone()?)))
            .collect();
        drop(state);
        for (id, name) in ended {
            if let Err(error) = self.serve(&id, &name) {
                tracing::warn!(id, name, error, "a fine-tuned model is not served");
            }
        }
    }

    /// Serves the result of a job, and the checkpoints that are left of it.
    pub(super) fn serve(&self, id: &str, name: &str) -> Result<(), String> {
        let engine = &self.0.engine;
        let run = run_dir(&self.job_dir(id));
        engine
            .replace_adapter_blocking(name, &run)
            .map_err(|error| error.to_string())?;
        for (step, path) in checkpoints(&run) {
            let name = checkpoint_name(name, step);
            if let Err(error) = engine.replace_adapter_blocking(&name, &path) {
                tracing::warn!(id, name, %error, "a checkpoint is not served");
            }
        }
        Ok(())
    }

    /// Waits for a job, and begins it. `None` when the server ends.
    fn next_turn(&self) -> Option<Turn> {
        let mut state = self.state();
        loop {
            if state.shutting_down {
                return None;
            }
            let waiting = |entry: &&mut super::JobEntry| entry.job.status == Status::Queued;
            if let Some(entry) = state.jobs.iter_mut().find(waiting) {
                entry.stop = Arc::default();
                entry.set(Status::ValidatingFiles);
                let turn = Turn {
                    job: entry.job.clone(),
                    stop: Arc::clone(&entry.stop),
                };
                drop(state);
                self.changed();
                return Some(turn);
            }
            state = self
                .0
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Trains, and says what has become of the job.
    fn carry_out(&self, turn: &Turn) {
        let id = &turn.job.id;
        tracing::info!(id, "a fine-tuning job begins");
        let trained = catch_unwind(AssertUnwindSafe(|| self.train(turn)));
        let trained = trained.unwrap_or_else(|_| {
            Err(JobError {
                code: "server_error".to_owned(),
                message: "training has failed; see the server's log".to_owned(),
                param: None,
            })
        });
        let finished = match trained {
            Ok(End::Complete) => self.finish(turn),
            other => other,
        };
        let mut state = self.state();
        state.is_training = false;
        let goes_on = state.shutting_down;
        let Some(entry) = state.entry(id) else { return };
        match finished {
            // Someone has decided otherwise meanwhile.
            _ if !entry.job.status.is_active() => {
                if entry.job.is_deleted {
                    // It was written until now.
                    let _ = disk::remove(&run_dir(&self.job_dir(id)));
                }
            }
            Ok(End::Complete) => {}
            Ok(End::Stopped) if goes_on => {
                let text = "The server ends; the job goes on when it is started again";
                entry.events.push(Event::message(Level::Warn, text));
                entry.set(Status::Queued);
            }
            // The flag is set by nothing else.
            Ok(End::Stopped) => entry.set(Status::Cancelled),
            Err(error) => {
                tracing::warn!(id, error = error.message, "a fine-tuning job has failed");
                let text = format!("The job failed: {}", error.message);
                entry.events.push(Event::message(Level::Error, text));
                entry.job.error = Some(error);
                entry.set(Status::Failed);
            }
        }
        drop(state);
        self.changed();
    }

    /// Serves what was trained, if the job is still wanted.
    fn finish(&self, turn: &Turn) -> Result<End, JobError> {
        let id = &turn.job.id;
        let is_wanted = |own: &Self| {
            let mut state = own.state();
            state
                .entry(id)
                .is_some_and(|entry| entry.job.status.is_active())
        };
        if !is_wanted(self) {
            return Ok(End::Complete);
        }
        let name = turn.job.result_name(&self.0.base.name);
        if let Err(message) = self.serve(id, &name) {
            // The next server has an engine that takes it.
            if self.state().shutting_down {
                return Ok(End::Stopped);
            }
            return Err(JobError {
                code: "server_error".to_owned(),
                message: format!("the adapter is trained and cannot be served: {message}"),
                param: None,
            });
        }
        let results = self.write_results(id);
        let mut state = self.state();
        let Some(entry) = state.entry(id) else {
            return Ok(End::Complete);
        };
        if !entry.job.status.is_active() {
            return Ok(End::Complete);
        }
        match results {
            Ok(file) => entry.job.result_files = vec![file.id],
            Err(error) => tracing::warn!(id, %error, "the table of metrics is not written"),
        }
        entry.job.fine_tuned_model = Some(name.clone());
        let created = format!("New fine-tuned model created: {name}");
        for text in [&*created, "The job has successfully completed"] {
            entry.events.push_once(Event::message(Level::Info, text));
        }
        entry.set(Status::Succeeded);
        tracing::info!(id, name, "a fine-tuned model is served");
        Ok(End::Complete)
    }
}
