//! Bodies of `/v1/models` and of loading and unloading adapters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A list of models.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// Base names first, then adapters.
    pub data: Vec<ModelCard>,
}

/// A name that requests may give as `model`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelCard {
    /// The name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When the server started, in Unix seconds.
    pub created: u64,
    /// `local`.
    pub owned_by: &'static str,
    /// What it was loaded from.
    pub root: String,
    /// The base model of an adapter.
    pub parent: Option<String>,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
}

/// Body of `/v1/load_lora_adapter`.
#[derive(Debug, Deserialize)]
pub struct LoadLora {
    /// Name for requests.
    pub lora_name: String,
    /// PEFT folder on the server's disk.
    pub lora_path: String,
    /// Whether an adapter of this name makes room for it.
    pub load_inplace: Option<bool>,
}

/// Body of `/v1/unload_lora_adapter`.
#[derive(Debug, Deserialize)]
pub struct UnloadLora {
    /// Name of a loaded adapter.
    pub lora_name: String,
}
