//! What the HTTP tasks and the engine thread both see.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;

use super::request_metrics::RequestMetrics;
use super::stats::{AdapterInfo, EngineLimits, EngineStats};

/// State that both ends of the channel see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: EngineLimits,
    pub(super) next_id: AtomicU64,
    pub(super) num_queued: AtomicUsize,
    pub(super) num_active: watch::Sender<usize>,
    pub(super) shutting_down: AtomicBool,
    pub(super) alive: AtomicBool,
    pub(super) stats: Mutex<EngineStats>,
    pub(super) adapters: RwLock<Vec<AdapterInfo>>,
    pub(super) requests: RequestMetrics,
    /// Adapters are read one after the other: each takes memory until the engine has it.
    pub(super) reading_adapter: Mutex<()>,
}

impl Shared {
    /// Of an engine that lives and has nothing to do.
    pub(super) fn new(limits: EngineLimits) -> Self {
        Self {
            requests: RequestMetrics::new(limits.max_model_len),
            limits,
            next_id: AtomicU64::new(0),
            num_queued: AtomicUsize::new(0),
            num_active: watch::channel(0).0,
            shutting_down: AtomicBool::new(false),
            alive: AtomicBool::new(true),
            stats: Mutex::default(),
            adapters: RwLock::default(),
            reading_adapter: Mutex::default(),
        }
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
