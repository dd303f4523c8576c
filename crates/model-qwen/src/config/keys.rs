//! The keys of `config.json`: each one is read, changes nothing for a reason that docs/src/model-folders.md gives, or is refused
//! unless it asks for nothing.

use serde_json::Value;

use crate::json_file::{JsonFile, JsonFileError, says_nothing};

/// Keys that the rest of this module reads.
const READ: [&str; 35] = [
    "architectures",
    "attention_bias",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "classifier_from_token",
    "dtype",
    "dual_chunk_attention_config",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "is_causal",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "pad_token_id",
    "partial_rotary_factor",
    "quantization",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vocab_size",
];

/// Keys whose value changes nothing that this crate computes.
const HARMLESS: [&str; 45] = [
    // How transformers runs or trains the same function.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation",
    "attn_implementation",
    "base_model_pp_plan",
    "base_model_tp_plan",
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "is_decoder",
    "initializer_range",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "return_dict",
    "tf_legacy_loss",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
    // Where the model comes from.
    "_commit_hash",
    "_name_or_path",
    "base_model_name_or_path",
    "model_name",
    "name_or_path",
    "tokenizer_class",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    // Other tasks than the next token.
    "cross_attention_hidden_size",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "prefix",
    "problem_type",
    "task_specific_params",
    // Tokens that neither end a text nor start one.
    "decoder_start_token_id",
    "mask_token_id",
    "sep_token_id",
    "unk_token_id",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
    "image_token_id",
];

/// Keys that ask for another model, unless they say nothing.
const REFUSED: [&str; 18] = [
    "add_cross_attention",
    "compression_config",
    "encoder",
    "is_encoder_decoder",
    "mlp_bias",
    "num_experts",
    "per_layer_config",
    "pruned_heads",
    "quantization_method",
    "sparse_attention_config",
    "sparsity_config",
    "speculative_config",
    "text_config",
    "tie_encoder_decoder",
    "use_bidirectional_attention",
    "use_mrope",
    "vision_config",
    "weight_quant_config",
];

/// Refuses keys that ask for what this crate does not compute; `notes` gets what is not known.
pub(super) fn check_keys(file: &JsonFile, notes: &mut Vec<String>) -> Result<(), JsonFileError> {
    let top = file.top();
    for key in REFUSED {
        if let Some(value) = top.get(key).filter(|value| !says_nothing(value)) {
            return Err(top.error(key, "nothing: this is not computed", value));
        }
    }
    if top.boolean("is_causal")? == Some(false) {
        return Err(top.error("is_causal", "true", false));
    }
    let is_known = |key: &str| {
        READ.contains(&key)
            || HARMLESS.contains(&key)
            || REFUSED.contains(&key)
            // An old folder has the settings of generation here.
            || crate::generation_config::knows(key)
    };
    let unknown: Vec<&str> = file.names().filter(|key| !is_known(key)).collect();
    if !unknown.is_empty() {
        notes.push(format!("unknown keys are not read: {}", unknown.join(", ")));
    }
    if let Some(classes) = file.get("auto_map").and_then(Value::as_object)
        && classes.keys().any(|class| class.starts_with("AutoModel"))
    {
        notes.push("auto_map: the model's own code is not run".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_state() {
        let mut all: Vec<&str> = READ.into_iter().chain(HARMLESS).chain(REFUSED).collect();
        let num = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), num);
    }
}
