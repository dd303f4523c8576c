//! What the server makes of what a run tells.

use std::time::Instant;

use super::FineTuning;
use super::events::{self, Event, Level};
use super::job::Status;
use super::jobs::{JobEntry, Progress};
use super::messages::JobMessage;

impl FineTuning {
    /// Takes what the run of a job tells into its state.
    pub(super) fn hear(&self, id: &str, message: JobMessage) {
        match message {
            JobMessage::Start => self.training_starts(id),
            JobMessage::Event(event) => self.keep(id, event, |_| {}),
            JobMessage::Warning(text) => {
                let job = self.state().entry(id).map(|entry| entry.job.clone());
                let text = job.map_or(text.clone(), |job| self.with_names(&job, &text).0);
                self.keep(id, Event::message(Level::Warn, text), |_| {});
            }
            JobMessage::Step {
                event,
                step,
                total_steps,
                num_tokens,
            } => self.keep(id, event, |entry| {
                entry.job.trained_tokens = num_tokens.or(entry.job.trained_tokens);
                if let Some(progress) = &mut entry.progress {
                    (progress.step, progress.total_steps) = (step, total_steps);
                }
            }),
            // These are between a process and the thread that started it.
            JobMessage::Waits | JobMessage::Ended(_) => {}
        }
    }

    /// Everything is loaded.
    fn training_starts(&self, id: &str) {
        let mut state = self.state();
        state.is_training = true;
        if let Some(entry) = state.entry(id) {
            let step = entry.done;
            entry.progress = Some(Progress {
                first_step: step,
                step,
                total_steps: step,
                started: Instant::now(),
            });
            if entry.job.status == Status::ValidatingFiles {
                let text = "Fine-tuning job started";
                entry.events.push(Event::message(Level::Info, text));
                entry.set(Status::Running);
            }
        }
        drop(state);
        self.changed();
    }

    /// Keeps an event, and changes the entry with it.
    fn keep(&self, id: &str, event: Event, change: impl FnOnce(&mut JobEntry)) {
        events::write(&self.job_dir(id), &event);
        if let Some(entry) = self.state().entry(id) {
            entry.events.push_written(event);
            change(entry);
        }
        self.changed();
    }
}
