//! Sequences that wait for a slot for their adapter, and adapters that come and go.

use std::collections::VecDeque;
use std::mem;
use std::path::Path;
use std::time::{Duration, Instant};

use lora_4bit::peft::LoraAdapter;

use super::adapters::{AdapterId, AdapterUse};
use super::error::{AdapterError, SequenceError};
use super::receiver::{RequestId, Submission};
use super::request::EngineOutput;
use super::request_metrics::Ended;
use super::worker::Worker;

/// A sequence that has waited for so long lets no later one go first.
const FAIR_AFTER: Duration = Duration::from_secs(1);

/// A sequence whose adapter is in no slot.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) submission: Submission,
    adapter: AdapterId,
    since: Instant,
}

/// They wait in the order of their arrival.
pub(super) type ParkedQueue = VecDeque<Parked>;

impl Worker {
    /// Takes a sequence in as soon as its adapter is in a slot.
    pub(super) fn submit(&mut self, submission: Submission) {
        let Some(name) = &submission.request.adapter else {
            self.start(submission, None);
            return;
        };
        match self.adapters.find(name) {
            Some(adapter) => {
                self.parked.push_back(Parked {
                    submission,
                    adapter,
                    since: Instant::now(),
                });
                self.place_parked();
            }
            // It was unloaded between the check of the request and now.
            None => {
                self.receiver.request_metrics().count(Ended::Error);
                let sink = &submission.sink;
                sink.send(EngineOutput::Failed(SequenceError::Aborted));
            }
        }
    }

    /// Starts the sequences whose adapters are in slots or can be put there.
    pub(super) fn place_parked(&mut self) {
        let mut first_waits_long = false;
        for parked in mem::take(&mut self.parked) {
            if first_waits_long {
                self.parked.push_back(parked);
                continue;
            }
            let id = parked.adapter;
            let sequences = &self.sequences;
            let in_use = |id| {
                let mut used = sequences.values().filter_map(|sequence| sequence.adapter);
                used.any(|used| used.id == id)
            };
            match self.adapters.place(&mut self.model, id, in_use) {
                Ok(Some((slot, is_new))) => {
                    if is_new {
                        self.forget_graphs();
                    }
                    self.start(parked.submission, Some(AdapterUse { id, slot }));
                }
                Ok(None) => {
                    first_waits_long = parked.since.elapsed() > FAIR_AFTER;
                    self.parked.push_back(parked);
                }
                Err(error) => {
                    // A slot may have been emptied for it.
                    self.forget_graphs();
                    self.receiver.request_metrics().count(Ended::Error);
                    parked.submission.sink.send(EngineOutput::Failed(error));
                }
            }
        }
    }

    /// Forgets a sequence, wherever it is.
    pub(super) fn abort(&mut self, id: RequestId, how: Ended) {
        self.scheduler.abort(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            self.receiver.request_metrics().record(&sequence, how);
        }
        let num = self.parked.len();
        self.parked.retain(|parked| parked.submission.id != id);
        if self.parked.len() < num {
            self.receiver.request_metrics().count(how);
        }
        self.settle();
    }

    /// Puts an adapter on the model.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub(super) fn load_adapter(
        &mut self,
        name: &str,
        path: &Path,
        files: Result<LoraAdapter, AdapterError>,
        replaces: bool,
    ) -> Result<(), AdapterError> {
        let loaded = (self.adapters).load(&mut self.model, (name, path), files, replaces);
        // What fails has stacked the adapters anew, too.
        self.forget_graphs();
        loaded?;
        self.settle();
        self.receiver.set_adapters(self.adapters.infos());
        Ok(())
    }

    /// Lets no further request name an adapter. It is taken off the model when the last sequence that uses it has ended.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub(super) fn unload_adapter(&mut self, name: &str) -> Result<(), AdapterError> {
        self.adapters.unload(name)?;
        self.receiver.set_adapters(self.adapters.infos());
        self.settle();
        Ok(())
    }

    /// After sequences have ended: takes off what nobody uses any more, and starts what waited for it.
    pub(super) fn settle(&mut self) {
        let (sequences, parked) = (&self.sequences, &self.parked);
        let in_use = |id| {
            let mut running = sequences.values().filter_map(|sequence| sequence.adapter);
            running.any(|used| used.id == id) || parked.iter().any(|parked| parked.adapter == id)
        };
        let gone = self.adapters.reap(&mut self.model, in_use);
        if !gone.is_empty() {
            self.forget_graphs();
        }
        for key in gone {
            self.scheduler.forget_adapter(&key);
        }
        if !self.parked.is_empty() {
            self.place_parked();
        }
    }
}
