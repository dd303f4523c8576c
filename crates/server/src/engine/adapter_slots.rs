//! Which adapters are in the slots of the model, as sequences come and go.

use std::mem;

use model_qwen::QwenModel;

use super::adapters::{AdapterId, AdapterUse, Adapters};
use super::error::SequenceError;
use super::request::EngineOutput;
use super::request_metrics::Ended;
use super::worker::Worker;

impl Worker {
    /// Changes which adapters are on the model. Recorded steps and the step ahead read the tensors that the model had before, so
    /// they are dropped, also after a failure: it may have emptied a slot or stacked the adapters anew.
    pub(super) fn change_adapters<T>(
        &mut self,
        change: impl FnOnce(&mut Adapters, &mut QwenModel) -> T,
    ) -> T {
        let result = change(&mut self.adapters, &mut self.model);
        self.ahead = None;
        self.runner.forget_graphs();
        result
    }

    /// Hands the sequences to the scheduler whose adapters are in slots or can be put there.
    pub(super) fn place_parked(&mut self) {
        let mut first_waits_long = false;
        for parked in mem::take(&mut self.parked) {
            if first_waits_long {
                self.parked.push_back(parked);
                continue;
            }
            let id = parked.adapter;
            match self.slot_for(id) {
                Ok(Some(slot)) => {
                    self.add_sequence(parked.submission, Some(AdapterUse { id, slot }));
                }
                Ok(None) => {
                    first_waits_long = parked.waits_long();
                    self.parked.push_back(parked);
                }
                Err(error) => {
                    self.receiver.request_metrics().count(Ended::Error);
                    parked.submission.sink.send(EngineOutput::Failed(error));
                }
            }
        }
    }

    /// The slot of an adapter; puts it into one first if it has none. `None` while running sequences use all slots.
    ///
    /// # Errors
    /// As [`Adapters::place`].
    fn slot_for(&mut self, id: AdapterId) -> Result<Option<usize>, SequenceError> {
        if let Some(slot) = self.adapters.ask_for(id)? {
            return Ok(Some(slot));
        }
        let sequences = &self.sequences;
        let in_use = |id| {
            let mut used = sequences.values().filter_map(|sequence| sequence.adapter);
            used.any(|used| used.id == id)
        };
        let Some(slot) = self.adapters.vacate_slot(in_use) else {
            return Ok(None);
        };
        let changed = self.change_adapters(|adapters, model| adapters.place(model, id, slot))?;
        if let Some(key) = changed {
            self.scheduler.forget_adapter(&key);
        }
        Ok(Some(slot))
    }

    /// Takes the unloaded adapters off the model that no sequence uses any more. Then places parked sequences: a slot may be free.
    pub(super) fn release_idle_adapters(&mut self) {
        let (sequences, parked) = (&self.sequences, &self.parked);
        let in_use = |id| {
            let mut running = sequences.values().filter_map(|sequence| sequence.adapter);
            running.any(|used| used.id == id) || parked.iter().any(|parked| parked.adapter == id)
        };
        let gone = self.adapters.idle_retired(in_use);
        if !gone.is_empty() {
            let keys = self.change_adapters(|adapters, model| adapters.remove(model, &gone));
            for key in keys {
                self.scheduler.forget_adapter(&key);
            }
        }
        if !self.parked.is_empty() {
            self.place_parked();
        }
    }
}
