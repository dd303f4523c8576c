//! From the fields of a `config.json` to a [`QwenConfig`].

use burn::tensor::DType;
use serde_json::Value;

use super::keys::check_keys;
use super::quantization::check_quantization;
use super::rope::{RopeShape, read_rope};
use super::{MAX_CONTEXT, QwenConfig};
use crate::json_file::{JsonFile, JsonFileError, Nested, whole};

/// Layers of a model, at most: the deepest Qwen has 94.
const MAX_LAYERS: usize = 4096;

/// Checks every field. What the user should know besides comes second.
pub(super) fn read(file: &JsonFile) -> Result<(QwenConfig, Vec<String>), JsonFileError> {
    let mut notes = Vec::new();
    let top = file.top();
    let model_type = model_type(&top)?;
    let qwen3 = model_type == "qwen3";
    check_quantization(file)?;
    check_keys(file, &mut notes)?;
    if let Some(act) = top.text("hidden_act")?
        && !matches!(act.as_str(), "silu" | "swish")
    {
        return Err(top.error("hidden_act", "`silu`", format!("`{act}`")));
    }

    let hidden_size = top.required("hidden_size")?;
    let num_attention_heads = top.required("num_attention_heads")?;
    let num_key_value_heads = top
        .positive("num_key_value_heads")?
        .unwrap_or(num_attention_heads);
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        let expected = format!("a divisor of num_attention_heads ({num_attention_heads})");
        return Err(top.error("num_key_value_heads", expected, num_key_value_heads));
    }
    let head_dim = match top.positive("head_dim")? {
        Some(head_dim) => head_dim,
        // The default of Qwen3; an explicit null asks for the quotient.
        None if qwen3 && !file.object().contains_key("head_dim") => 128,
        None if hidden_size.is_multiple_of(num_attention_heads) => {
            hidden_size / num_attention_heads
        }
        None => {
            let expected = format!("a multiple of num_attention_heads ({num_attention_heads})");
            return Err(top.error("hidden_size", expected, hidden_size));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(top.error("head_dim", "a positive even number", head_dim));
    }
    let rms_norm_eps = top.number("rms_norm_eps")?.unwrap_or(1e-6);
    if !(rms_norm_eps.is_finite() && rms_norm_eps > 0.0) {
        return Err(top.error("rms_norm_eps", "a positive number", rms_norm_eps));
    }
    let max_position_embeddings = context(file, &mut notes)?;
    let shape = RopeShape {
        head_dim,
        max_position_embeddings,
    };
    let (rope_theta, rope_scaling) = read_rope(file, shape, &mut notes)?;
    let dropout = top.number("attention_dropout")?.unwrap_or_default();
    if dropout != 0.0 {
        notes.push(format!(
            "attention_dropout {dropout} is not applied in training"
        ));
    }

    let mut config = QwenConfig {
        hidden_size,
        intermediate_size: top.required("intermediate_size")?,
        num_hidden_layers: num_layers(&top)?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size: top.required("vocab_size")?,
        rms_norm_eps,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: top.boolean("tie_word_embeddings")?.unwrap_or(false),
        // Qwen2 has these biases whatever the file says, in transformers too.
        attention_bias: !qwen3 || top.boolean("attention_bias")?.unwrap_or(false),
        qk_norm: qwen3,
        max_position_embeddings,
        sliding_window: None,
        eos_token_ids: top.token_ids("eos_token_id")?,
        bos_token_id: top.token_ids("bos_token_id")?.first().copied(),
        dtype: dtype(&top)?,
        model_type,
    };
    let longest = config.context_length();
    config.sliding_window =
        window(&top, config.num_hidden_layers)?.filter(|window| *window < longest);
    if let Some(window) = config.sliding_window {
        notes.push(format!(
            "sliding_window: attention is computed up to {window} tokens, not up to {longest}: a longer text would have tokens \
             that the window hides"
        ));
    }
    Ok((config, notes))
}

/// Layers, of which a number that no model has would only cost time and memory.
fn num_layers(top: &Nested<'_>) -> Result<usize, JsonFileError> {
    match top.required("num_hidden_layers")? {
        num @ ..=MAX_LAYERS => Ok(num),
        num => {
            let expected = format!("at most {MAX_LAYERS} layers");
            Err(top.error("num_hidden_layers", &expected, num))
        }
    }
}

fn model_type(top: &Nested<'_>) -> Result<String, JsonFileError> {
    let model_type = top.text("model_type")?.unwrap_or_default();
    // The last two compute embeddings and scores.
    let classes = match model_type.as_str() {
        "qwen2" => [
            "Qwen2ForCausalLM",
            "Qwen2Model",
            "Qwen2ForSequenceClassification",
        ],
        "qwen3" => [
            "Qwen3ForCausalLM",
            "Qwen3Model",
            "Qwen3ForSequenceClassification",
        ],
        _ => {
            let found = format!("`{model_type}`");
            return Err(top.error("model_type", "`qwen2` or `qwen3`", found));
        }
    };
    // Some trainers put a word before the name of the class.
    let names_class = |value: &Value| {
        let names = value.as_array()?;
        let is_known = |name: &str| classes.iter().any(|class| name.ends_with(class));
        let names_it = names.iter().filter_map(Value::as_str).any(is_known);
        (names_it || names.is_empty()).then_some(())
    };
    let [class, base, classifier] = classes;
    let expected =
        format!("`{class}`, `{base}` or `{classifier}`, as the model_type {model_type} says");
    top.read("architectures", &expected, names_class)?;
    Ok(model_type)
}

fn dtype(top: &Nested<'_>) -> Result<DType, JsonFileError> {
    let (field, name) = match top.text("torch_dtype")? {
        Some(name) => ("torch_dtype", Some(name)),
        None => ("dtype", top.text("dtype")?),
    };
    let name = name.unwrap_or_default();
    match name.strip_prefix("torch.").unwrap_or(&name) {
        // The weights say it.
        "" | "auto" | "float32" | "float" => Ok(DType::F32),
        "bfloat16" => Ok(DType::BF16),
        "float16" | "half" => Ok(DType::F16),
        _ => {
            let expected = "`float32`, `bfloat16`, `float16` or `auto`";
            Err(top.error(field, expected, format!("`{name}`")))
        }
    }
}

/// `max_position_embeddings`, or as far as full attention is what Qwen2.5-1M computes.
fn context(file: &JsonFile, notes: &mut Vec<String>) -> Result<usize, JsonFileError> {
    let max = match file.top().required("max_position_embeddings")? {
        max @ ..=MAX_CONTEXT => max,
        max => {
            let expected = format!("at most {MAX_CONTEXT}, as positions are numbers of 32 bits");
            return Err(file.top().error("max_position_embeddings", &expected, max));
        }
    };
    let Some(chunks) = file.object_in("dual_chunk_attention_config")? else {
        return Ok(max);
    };
    let limit = match chunks.positive("original_max_position_embeddings")? {
        Some(original) => original,
        None => chunks.required("chunk_size")?,
    };
    if limit < max {
        notes.push(format!(
            "dual_chunk_attention_config: attention is computed up to {limit} tokens, not up to {max}"
        ));
    }
    Ok(limit.min(max))
}

/// Tokens that the layers with the shortest attention reach; `None` where all of them have full attention.
fn window(top: &Nested<'_>, num_layers: usize) -> Result<Option<usize>, JsonFileError> {
    let uses_window = top.boolean("use_sliding_window")?.unwrap_or(false);
    let window = match uses_window {
        true if top.object().contains_key("sliding_window") => top.positive("sliding_window")?,
        // The default of transformers.
        true => Some(4096),
        false => None,
    };
    if let Some(types) = top.get("layer_types") {
        let list = types.as_array().filter(|types| types.len() == num_layers);
        let Some(list) = list else {
            let expected = format!("a list of {num_layers} layer types, num_hidden_layers");
            return Err(top.error("layer_types", expected, types));
        };
        let is_known = |kind: &Value| match kind.as_str() {
            Some("full_attention") => true,
            Some("sliding_attention") => window.is_some(),
            _ => false,
        };
        let expected =
            "full_attention, or sliding_attention with use_sliding_window and sliding_window";
        return match list.iter().find(|kind| !is_known(kind)) {
            None => Ok(window.filter(|_| list.iter().any(|kind| kind == "sliding_attention"))),
            Some(kind) => Err(top.error("layer_types", expected, kind)),
        };
    }
    let from = top
        .read("max_window_layers", "a whole number", whole)?
        .unwrap_or(28);
    Ok(window.filter(|_| from < num_layers as i64))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn config(max: u64, scaling: Value) -> Result<QwenConfig, String> {
        let file = json!({
            "model_type": "qwen2", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8,
            "max_position_embeddings": max, "rope_scaling": scaling,
        });
        let config = QwenConfig::from_json(&file.to_string(), Path::new("config.json"));
        config.map_err(|error| error.to_string())
    }

    #[test]
    fn a_context_has_an_end() {
        let longest = config(MAX_CONTEXT as u64, Value::Null).unwrap();
        assert_eq!(longest.context_length(), MAX_CONTEXT);
        for max in [1 << 31, 1_000_000_000_000, u64::MAX] {
            let error = config(max, Value::Null).unwrap_err();
            assert!(error.contains("`max_position_embeddings`"), "{error}");
        }
        let stretched = json!({"type": "linear", "factor": 1e12});
        let stretched = config(4096, stretched).unwrap();
        assert_eq!(stretched.context_length(), MAX_CONTEXT);
    }
}
