//! What every request handler shares.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::{ApiKey, Config};
use crate::engine::{EngineHandle, ModelInfo};
use crate::error::ApiError;
use crate::metrics::Metrics;

/// Shared by all handlers; clones are cheap.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    engine: EngineHandle,
    model: ModelInfo,
    served_model_names: Vec<String>,
    api_keys: Vec<ApiKey>,
    enable_lora: bool,
    shutdown_timeout: Duration,
    started: u64,
    metrics: Metrics,
    id_hasher: RandomState,
    next_id: AtomicU64,
}

impl AppState {
    /// Joins engine, model and configuration.
    pub fn new(config: &Config, engine: EngineHandle, model: ModelInfo) -> Self {
        let served_model_names = match config.served_model_names.as_slice() {
            [] => vec![model.model_id.clone()],
            names => names.to_vec(),
        };
        Self(Arc::new(Shared {
            engine,
            model,
            served_model_names,
            api_keys: config.api_keys.clone(),
            enable_lora: config.lora.is_some(),
            shutdown_timeout: config.shutdown_timeout,
            started: unix_time(),
            metrics: Metrics::default(),
            id_hasher: RandomState::new(),
            next_id: AtomicU64::new(0),
        }))
    }

    /// The engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }

    /// The model.
    pub fn model(&self) -> &ModelInfo {
        &self.0.model
    }

    /// Names of the base model; the first is the main one.
    pub fn served_model_names(&self) -> &[String] {
        &self.0.served_model_names
    }

    /// Whether adapters may be loaded.
    pub fn enable_lora(&self) -> bool {
        self.0.enable_lora
    }

    /// How long running requests may go on after a signal.
    pub fn shutdown_timeout(&self) -> Duration {
        self.0.shutdown_timeout
    }

    /// When the server started, in Unix seconds.
    pub fn started(&self) -> u64 {
        self.0.started
    }

    /// Latency histograms.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Whether a request may pass: there are no keys, or it brought one of them.
    pub fn authorizes(&self, bearer: Option<&str>) -> bool {
        let keys = &self.0.api_keys;
        // Every key is compared, so that the time does not tell which one matched.
        keys.is_empty()
            || bearer.is_some_and(|token| {
                keys.iter()
                    .fold(false, |found, key| found | key.matches(token))
            })
    }

    /// The model name for the answer and the adapter it selects.
    ///
    /// # Errors
    /// 404 for an unknown name.
    pub fn resolve_model(
        &self,
        requested: Option<&str>,
    ) -> Result<(String, Option<String>), ApiError> {
        match requested {
            None | Some("") => Ok((self.0.served_model_names[0].clone(), None)),
            Some(name)
                if self
                    .0
                    .served_model_names
                    .iter()
                    .any(|served| served == name) =>
            {
                Ok((name.to_owned(), None))
            }
            Some(name)
                if self
                    .0
                    .engine
                    .adapters()
                    .iter()
                    .any(|adapter| adapter.name == name) =>
            {
                Ok((name.to_owned(), Some(name.to_owned())))
            }
            Some(name) => Err(ApiError::model_not_found(name)),
        }
    }

    /// A fresh id such as `chatcmpl-…`.
    pub fn new_id(&self, prefix: &str) -> String {
        let number = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let hash = |part: u8| self.0.id_hasher.hash_one((number, part));
        format!("{prefix}-{:016x}{:016x}", hash(0), hash(1))
    }
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
