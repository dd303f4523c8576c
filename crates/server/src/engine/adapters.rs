//! Which adapter is in which slot of the model.

use std::path::Path;

use kv_paging::SequenceId;
use lora_4bit::peft::{CONFIG_FILE, LoraAdapter};
use model_qwen::QwenModel;

use super::error::{AdapterError, SequenceError};
use super::recovery::catch;
use super::request::EngineOutput;
use super::stats::AdapterInfo;
use super::worker::Worker;
use crate::config::LoraOptions;

/// The adapter slots of the engine's model.
#[derive(Debug, Default)]
pub(super) struct AdapterSlots {
    slots: Vec<Option<AdapterInfo>>,
    max_lora_rank: usize,
}

impl AdapterSlots {
    /// `max_loras` empty slots; none without `--enable-lora`.
    pub(super) fn new(options: Option<&LoraOptions>) -> Self {
        options.map_or_else(Self::default, |options| Self {
            slots: vec![None; options.max_loras],
            max_lora_rank: options.max_lora_rank,
        })
    }

    /// Number of slots.
    pub(super) fn max_loras(&self) -> usize {
        self.slots.len()
    }

    /// The loaded adapters.
    pub(super) fn infos(&self) -> Vec<AdapterInfo> {
        self.slots.iter().flatten().cloned().collect()
    }

    /// The slot of an adapter.
    pub(super) fn slot(&self, name: &str) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|info| info.name == name))
    }

    /// Reads the PEFT folder at `path` and puts it on `model`.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub(super) fn load(
        &mut self,
        model: &mut QwenModel,
        name: &str,
        path: &Path,
    ) -> Result<(), AdapterError> {
        if self.slots.is_empty() {
            return Err(AdapterError::Disabled);
        }
        if self.slot(name).is_some() {
            return Err(AdapterError::AlreadyLoaded {
                name: name.to_owned(),
            });
        }
        let max_loras = self.max_loras();
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.ok_or(AdapterError::TooMany { max_loras })?;

        if !path.join(CONFIG_FILE).is_file() {
            let reason = if path.is_dir() {
                format!("the folder has no {CONFIG_FILE}")
            } else {
                "no such folder".to_owned()
            };
            return Err(AdapterError::NotFound {
                path: path.to_owned(),
                reason,
            });
        }
        let invalid = |reason: String| AdapterError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let adapter = LoraAdapter::load(path).map_err(|error| invalid(error.to_string()))?;
        let rank = adapter
            .modules
            .values()
            .map(|matrices| matrices.r)
            .max()
            .unwrap_or(0);
        if rank > self.max_lora_rank {
            let limit = self.max_lora_rank;
            return Err(invalid(format!(
                "its rank is {rank}, --max-lora-rank is {limit}"
            )));
        }
        model
            .add_adapter(slot, &adapter)
            .map_err(|error| invalid(error.to_string()))?;
        if let Err(reason) = stack(model) {
            model.remove_adapter(slot);
            // What was there before had room.
            let _ = stack(model);
            return Err(AdapterError::NoRoom {
                path: path.to_owned(),
                reason,
            });
        }
        self.slots[slot] = Some(AdapterInfo {
            name: name.to_owned(),
            path: path.to_owned(),
        });
        Ok(())
    }

    /// Takes the adapter off `model`; the freed slot.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub(super) fn unload(
        &mut self,
        model: &mut QwenModel,
        name: &str,
    ) -> Result<usize, AdapterError> {
        let unknown = || AdapterError::Unknown {
            name: name.to_owned(),
        };
        let slot = self.slot(name).ok_or_else(unknown)?;
        model.remove_adapter(slot);
        if let Err(reason) = stack(model) {
            tracing::error!(
                reason,
                "the device has no room for the adapters that are left"
            );
        }
        self.slots[slot] = None;
        Ok(slot)
    }
}

impl Worker {
    /// Puts an adapter on the model.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub(super) fn load_adapter(&mut self, name: &str, path: &Path) -> Result<(), AdapterError> {
        self.adapters.load(&mut self.model, name, path)?;
        self.forget_graphs();
        self.receiver.set_adapters(self.adapters.infos());
        Ok(())
    }

    /// Takes an adapter off the model, and ends the sequences that use it.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub(super) fn unload_adapter(&mut self, name: &str) -> Result<(), AdapterError> {
        let slot = self.adapters.unload(&mut self.model, name)?;
        self.forget_graphs();
        self.receiver.set_adapters(self.adapters.infos());
        let users = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.slot == Some(slot));
        let users: Vec<SequenceId> = users.map(|(id, _)| *id).collect();
        for id in users {
            self.scheduler.abort(id);
            if let Some(sequence) = self.sequences.remove(&id) {
                sequence
                    .sink
                    .send(EngineOutput::Failed(SequenceError::Aborted));
            }
        }
        // Another adapter may come under the same name.
        self.scheduler.forget_adapter(name);
        Ok(())
    }
}

/// Puts the adapters of each layer together on a GPU; what the device said if that failed.
fn stack(model: &mut QwenModel) -> Result<(), String> {
    catch(|| {
        model.stack_adapters();
        Ok(())
    })
}
