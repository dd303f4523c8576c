//! The fields of `adapter_config.json` that are refused, because this crate would compute something else.

use serde_json::{Map, Value};

use super::error::PeftError;
use super::names::CONFIG_FILE;
use super::savable::is_savable;

/// Fields that change what an adapter computes, or name tensors that are not LoRA matrices. Any value but null, false,
/// zero or empty is refused.
const UNSUPPORTED: [&str; 15] = [
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "num_virtual_tokens",
    "encoder_hidden_size",
];

/// Fields that change nothing once an adapter is trained, or that [`super::LoraConfig`] has.
const KNOWN: [&str; 33] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "token_dim",
    "use_dora",
    "use_rslora",
];

/// Ways of initializing that also change the base weights, so that the adapter alone is not the whole model.
const BASE_CHANGING_INITS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Checks that no field asks for something that is not implemented.
pub(super) fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), PeftError> {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    };
    match fields.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        found => {
            let found = found.map_or_else(|| "missing".to_owned(), Value::to_string);
            return Err(PeftError::unsupported("peft_type", found, "\"LORA\""));
        }
    }
    for field in UNSUPPORTED {
        if let Some(value) = fields.get(field).filter(|value| is_set(value)) {
            return Err(PeftError::unsupported(field, value, "not set"));
        }
    }
    let saved = fields.get("modules_to_save");
    if let Some(value) = saved.filter(|value| is_set(value)) {
        let names = value.as_array().into_iter().flatten();
        let is_known = |name: &Value| name.as_str().is_some_and(is_savable);
        if !value.is_array() || !names.clone().all(is_known) {
            let supported = "a list of embed_tokens and lm_head";
            return Err(PeftError::unsupported("modules_to_save", value, supported));
        }
    }
    match fields.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(bias) => return Err(PeftError::unsupported("bias", bias, "\"none\"")),
    }
    match fields.get("task_type") {
        None | Some(Value::Null) => {}
        Some(Value::String(task)) if task.ends_with("CAUSAL_LM") || task.is_empty() => {}
        Some(task) => return Err(PeftError::unsupported("task_type", task, "\"CAUSAL_LM\"")),
    }
    let is_known = |field: &str| KNOWN.contains(&field) || UNSUPPORTED.contains(&field);
    let unknown: Vec<&str> = fields
        .keys()
        .map(String::as_str)
        .filter(|f| !is_known(f))
        .collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        tracing::warn!("{CONFIG_FILE}: unknown fields are not read: {unknown}");
    }
    if let Some(Value::String(init)) = fields.get("init_lora_weights") {
        let lower = init.to_lowercase();
        if BASE_CHANGING_INITS
            .iter()
            .any(|prefix| lower.starts_with(prefix))
        {
            let supported = "an initialization that leaves the base weights as they are";
            return Err(PeftError::unsupported("init_lora_weights", init, supported));
        }
    }
    Ok(())
}
