//! The fields of `adapter_config.json` that are refused, because this crate would compute something else.

use serde_json::{Map, Value};

use super::PeftError;

/// Fields that change what an adapter computes, or name tensors that are not LoRA matrices. Any value but null, false,
/// zero or empty is refused.
const UNSUPPORTED: [&str; 18] = [
    "use_dora",
    "modules_to_save",
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
    "target_modules_bd_a",
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
    match fields.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(bias) => return Err(PeftError::unsupported("bias", bias, "\"none\"")),
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
