//! The adapters that requests may name, and which of them are in the slots of the model.

use std::hash::Hasher as _;
use std::path::{Path, PathBuf};

use kv_paging::AdapterKey;
use lora_4bit::peft::LoraAdapter;
use model_qwen::QwenModel;
use rustc_hash::FxHasher;

use super::adapter_folder::read_adapter;
use super::device_failure::catch;
use super::error::{AdapterError, SequenceError};
use super::receiver::OnTaken;
use super::stats::AdapterInfo;
use crate::config::LoraOptions;

/// Names an adapter for the life of the process: one that is loaded again is another.
pub(super) type AdapterId = u64;

/// What is known of an adapter.
#[derive(Debug)]
struct Adapter {
    id: AdapterId,
    info: AdapterInfo,
    slot: Option<usize>,
    /// No request may name it any more; it goes when no sequence uses it.
    retired: bool,
    /// When it was last put into a slot or asked for.
    used: u64,
    /// Its matrices, as the host keeps them for the next time.
    matrices: Option<LoraAdapter>,
    /// Tells its matrices from those that its files have later.
    fingerprint: u64,
}

/// An adapter to be loaded.
#[derive(Debug)]
pub(super) struct NewAdapter {
    /// What requests call it.
    pub(super) name: String,
    /// Its PEFT folder.
    pub(super) path: PathBuf,
    /// What the folder holds.
    pub(super) matrices: LoraAdapter,
}

/// The engine's adapters.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    all: Vec<Adapter>,
    max_loras: usize,
    max_cpu_loras: usize,
    max_lora_rank: usize,
    next_id: AdapterId,
    clock: u64,
}

impl Adapters {
    /// No adapters yet; none at all without `--enable-lora`.
    pub(super) fn new(options: Option<&LoraOptions>) -> Self {
        options.map_or_else(Self::default, |options| Self {
            max_loras: options.max_loras,
            max_cpu_loras: options.max_cpu_loras.unwrap_or(0),
            max_lora_rank: options.max_lora_rank,
            ..Self::default()
        })
    }

    /// Number of slots.
    pub(super) fn max_loras(&self) -> usize {
        self.max_loras
    }

    /// The adapters that requests may name.
    pub(super) fn infos(&self) -> Vec<AdapterInfo> {
        let named = self.all.iter().filter(|adapter| !adapter.retired);
        named.map(|adapter| adapter.info.clone()).collect()
    }

    /// A slot that has an adapter.
    pub(super) fn used_slot(&self) -> Option<usize> {
        self.all.iter().find_map(|adapter| adapter.slot)
    }

    /// The adapter that requests call `name`.
    pub(super) fn find(&self, name: &str) -> Option<AdapterId> {
        let mut named = self.all.iter().filter(|adapter| !adapter.retired);
        let found = named.find(|adapter| adapter.info.name == name);
        found.map(|adapter| adapter.id)
    }

    /// What separates its blocks in the prefix cache from those of another adapter, also of one with its name.
    pub(super) fn cache_key(&self, id: AdapterId) -> Option<AdapterKey> {
        let adapter = self.all.iter().find(|adapter| adapter.id == id)?;
        let name = adapter.info.name.clone();
        Some(AdapterKey { id, name })
    }

    /// Whether an adapter may have a name.
    ///
    /// # Errors
    /// [`AdapterError::Disabled`], or [`AdapterError::AlreadyLoaded`] if the name is taken and stays with the adapter that has it.
    pub(super) fn check_name(&self, name: &str, on_taken: OnTaken) -> Result<(), AdapterError> {
        if self.max_loras == 0 {
            return Err(AdapterError::Disabled);
        }
        match on_taken == OnTaken::Refuse && self.find(name).is_some() {
            true => Err(AdapterError::AlreadyLoaded {
                name: name.to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// Puts an adapter on `model` if a slot is free. [`Self::check_name`] comes before; an adapter that still has its name makes
    /// room for it.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub(super) fn load(
        &mut self,
        model: &mut QwenModel,
        NewAdapter {
            name,
            path,
            matrices,
        }: NewAdapter,
    ) -> Result<(), AdapterError> {
        self.check(model, &path, &matrices)?;
        let slot = self.free_slot();
        if let Some(slot) = slot {
            put(model, slot, &matrices).map_err(|reason| AdapterError::NoRoom {
                path: path.clone(),
                reason,
            })?;
        }
        if let Some(old) = self.find(&name) {
            self.retire(old);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.clock += 1;
        self.all.push(Adapter {
            id,
            info: AdapterInfo { name, path },
            slot,
            retired: false,
            used: self.clock,
            matrices: None,
            fingerprint: fingerprint(&matrices),
        });
        self.keep(id, matrices);
        Ok(())
    }

    /// Whether the model can use an adapter. The shapes come first: weights of another vocabulary cannot be merged either.
    fn check(
        &self,
        model: &QwenModel,
        path: &Path,
        matrices: &LoraAdapter,
    ) -> Result<(), AdapterError> {
        self.check_rank(path, matrices)?;
        let checked = model.check_adapter(matrices);
        checked
            .and_then(|()| QwenModel::check_shared(matrices))
            .map_err(|error| AdapterError::Invalid {
                path: path.to_owned(),
                reason: error.to_string(),
            })
    }

    /// Whether the slots have room for a rank.
    fn check_rank(&self, path: &Path, adapter: &LoraAdapter) -> Result<(), AdapterError> {
        let ranks = adapter.modules.values().map(|matrices| matrices.r);
        let (rank, limit) = (ranks.max().unwrap_or(0), self.max_lora_rank);
        match rank > limit {
            false => Ok(()),
            true => Err(AdapterError::Invalid {
                path: path.to_owned(),
                reason: format!("its rank is {rank}, --max-lora-rank is {limit}"),
            }),
        }
    }

    fn free_slot(&self) -> Option<usize> {
        let is_taken = |slot: &usize| self.all.iter().any(|adapter| adapter.slot == Some(*slot));
        (0..self.max_loras).find(|slot| !is_taken(slot))
    }

    /// Keeps an adapter's matrices on the host, as far as there is room for them, in place of the least recently used ones.
    fn keep(&mut self, id: AdapterId, matrices: LoraAdapter) {
        if self.max_cpu_loras == 0 {
            return;
        }
        let kept = |adapters: &[Adapter]| {
            let kept = adapters.iter().enumerate();
            let kept = kept.filter(|(_, adapter)| adapter.matrices.is_some());
            let oldest = kept.clone().min_by_key(|(_, adapter)| adapter.used);
            (kept.count(), oldest.map(|(i, _)| i))
        };
        if let (num, Some(oldest)) = kept(&self.all)
            && num >= self.max_cpu_loras
        {
            self.all[oldest].matrices = None;
        }
        if let Some(adapter) = self.all.iter_mut().find(|adapter| adapter.id == id) {
            adapter.matrices = Some(matrices);
        }
    }

    /// The slot of an adapter that a sequence asks for; `None` if it is in no slot.
    ///
    /// # Errors
    /// If the adapter is gone.
    pub(super) fn ask_for(&mut self, id: AdapterId) -> Result<Option<usize>, SequenceError> {
        self.clock += 1;
        let clock = self.clock;
        let adapter = self.get_mut(id)?;
        adapter.used = clock;
        Ok(adapter.slot)
    }

    /// A slot for an adapter that has none: a free one, or that of the least recently used adapter that is not `in_use`. `None`
    /// while all are.
    pub(super) fn vacate_slot(&mut self, in_use: impl Fn(AdapterId) -> bool) -> Option<usize> {
        self.free_slot().or_else(|| {
            let idle = self.all.iter_mut();
            let idle = idle.filter(|adapter| adapter.slot.is_some() && !in_use(adapter.id));
            idle.min_by_key(|adapter| adapter.used)?.slot.take()
        })
    }

    /// Puts an adapter into `slot`. Where its files have other matrices than before, gives what separates the blocks of those in the
    /// prefix cache, which are of no use any more.
    ///
    /// # Errors
    /// If its files are no adapter any more, those of an adapter that was replaced have changed, or the device has no room.
    pub(super) fn place(
        &mut self,
        model: &mut QwenModel,
        id: AdapterId,
        slot: usize,
    ) -> Result<Option<AdapterKey>, SequenceError> {
        let failed = |error: AdapterError| SequenceError::Adapter(error.to_string());
        let adapter = self.get_mut(id)?;
        let path = adapter.info.path.clone();
        let (matrices, fingerprint) = match adapter.matrices.take() {
            Some(matrices) => (matrices, adapter.fingerprint),
            None => {
                let matrices = read_adapter(&path).map_err(failed)?;
                let fingerprint = fingerprint(&matrices);
                (matrices, fingerprint)
            }
        };
        let adapter = self.get_mut(id)?;
        let has_changed = adapter.fingerprint != fingerprint;
        if has_changed {
            if adapter.retired {
                let reason = "its files have changed since it was unloaded or replaced, and requests still waited for it";
                return Err(failed(AdapterError::Invalid {
                    path,
                    reason: reason.to_owned(),
                }));
            }
            self.check(model, &path, &matrices).map_err(failed)?;
            let adapter = self.get_mut(id)?;
            tracing::warn!(adapter = adapter.info.name, path = %path.display(), "the files of an adapter have changed; requests use the new weights");
        }
        put(model, slot, &matrices)
            .map_err(|reason| failed(AdapterError::NoRoom { path, reason }))?;
        let adapter = self.get_mut(id)?;
        adapter.slot = Some(slot);
        adapter.fingerprint = fingerprint;
        self.keep(id, matrices);
        Ok(has_changed.then(|| self.cache_key(id)).flatten())
    }

    fn get_mut(&mut self, id: AdapterId) -> Result<&mut Adapter, SequenceError> {
        let found = self.all.iter_mut().find(|adapter| adapter.id == id);
        found.ok_or(SequenceError::Aborted)
    }

    /// Lets no further request name an adapter.
    fn retire(&mut self, id: AdapterId) {
        let adapters = self.all.iter_mut();
        for adapter in adapters.filter(|adapter| adapter.id == id) {
            adapter.retired = true;
        }
    }

    /// [`Self::retire`] by name.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub(super) fn unload(&mut self, name: &str) -> Result<(), AdapterError> {
        let id = self.find(name).ok_or_else(|| AdapterError::Unknown {
            name: name.to_owned(),
        })?;
        self.retire(id);
        Ok(())
    }

    /// The retired adapters that are not `in_use`.
    pub(super) fn idle_retired(&self, in_use: impl Fn(AdapterId) -> bool) -> Vec<AdapterId> {
        let retired = self.all.iter().filter(|adapter| adapter.retired);
        let ids = retired.map(|adapter| adapter.id);
        ids.filter(|&id| !in_use(id)).collect()
    }

    /// Takes adapters off `model`; what separated their blocks.
    pub(super) fn remove(&mut self, model: &mut QwenModel, ids: &[AdapterId]) -> Vec<AdapterKey> {
        let keys = ids.iter().filter_map(|&id| self.cache_key(id)).collect();
        let mut changed = false;
        self.all.retain(|adapter| {
            let stays = !ids.contains(&adapter.id);
            if let (false, Some(slot)) = (stays, adapter.slot) {
                model.remove_adapter(slot);
                changed = true;
            }
            stays
        });
        if changed {
            stack_rest(model);
        }
        keys
    }
}

/// A number that other matrices, or another scale of them, do not have.
fn fingerprint(adapter: &LoraAdapter) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(format!("{:?}", adapter.config).as_bytes());
    for (name, matrices) in &adapter.modules {
        hasher.write(name.as_bytes());
        let magnitude = matrices.magnitude.iter().flatten();
        for value in matrices.a.iter().chain(&matrices.b).chain(magnitude) {
            hasher.write_u32(value.to_bits());
        }
    }
    hasher.finish()
}

/// Puts an adapter into a slot; what the device said if it has no room.
fn put(model: &mut QwenModel, slot: usize, matrices: &LoraAdapter) -> Result<(), String> {
    let added = catch(|| {
        let added = model.add_adapter(slot, matrices);
        added.map_err(|error| error.to_string())?;
        model.stack_adapters();
        Ok(())
    });
    added.inspect_err(|_| {
        model.remove_adapter(slot);
        // What was there before had room.
        stack_rest(model);
    })
}

/// Puts the adapters of each layer that are left together on a GPU.
fn stack_rest(model: &mut QwenModel) {
    let stacked = catch(|| {
        model.stack_adapters();
        Ok(())
    });
    if let Err(reason) = stacked {
        tracing::error!(
            reason,
            "the device has no room for the adapters that are left"
        );
    }
}

/// Which adapter a sequence uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdapterUse {
    /// The adapter.
    pub(super) id: AdapterId,
    /// Its slot, which it keeps as long as a sequence uses it.
    pub(super) slot: usize,
}
