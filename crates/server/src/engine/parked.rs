//! Sequences that wait for a slot for their adapter.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use super::adapters::{AdapterId, AdapterUse};
use super::receiver::Submission;
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

impl Parked {
    /// It waits from now on.
    pub(super) fn new(submission: Submission, adapter: AdapterId) -> Self {
        Self {
            submission,
            adapter,
            since: Instant::now(),
        }
    }
}

/// They wait in the order of their arrival.
pub(super) type ParkedQueue = VecDeque<Parked>;

impl Worker {
    /// Hands the sequences to the scheduler whose adapters are in slots or can be put there.
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
                    self.add_sequence(parked.submission, Some(AdapterUse { id, slot }));
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

    /// Takes the unloaded adapters off the model that no sequence uses any more. Then places parked sequences: a slot may be free.
    pub(super) fn release_idle_adapters(&mut self) {
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
