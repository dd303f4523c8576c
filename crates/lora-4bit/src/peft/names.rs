//! Names of the files of an adapter folder, and of the tensors in it.

/// Name of the file with the hyperparameters.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Name of the file with the matrices.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What the name of a tensor begins with, before its module.
pub(super) const PREFIX: &str = "base_model.model.";
pub(super) const A_SUFFIX: &str = ".lora_A.weight";
pub(super) const B_SUFFIX: &str = ".lora_B.weight";
pub(super) const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";

pub(super) fn tensor_name(module: &str, suffix: &str) -> String {
    format!("{PREFIX}{module}{suffix}")
}
