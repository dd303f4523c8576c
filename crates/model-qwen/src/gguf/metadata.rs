//! The values of a GGUF file's metadata, and those that describe an architecture.

use super::GgufError;
use super::quants::TensorType;
use crate::config::{QwenConfig, RopeScaling, Yarn};

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum GgufValue {
    /// An unsigned number.
    U32(u32),
    /// A float.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers.
    I32s(Vec<i32>),
}

impl GgufValue {
    /// Appends the type of the value and the value.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut word = |value: u32| out.extend(value.to_le_bytes());
        match self {
            Self::U32(value) => {
                word(4);
                word(*value);
            }
            Self::F32(value) => {
                word(6);
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                word(7);
                out.push(u8::from(*value));
            }
            Self::Text(text) => {
                word(8);
                write_text(text, out);
            }
            Self::Texts(texts) => {
                word(9);
                word(8);
                out.extend((texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| write_text(text, out));
            }
            Self::I32s(values) => {
                word(9);
                word(5);
                out.extend((values.len() as u64).to_le_bytes());
                values
                    .iter()
                    .for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

/// Appends a text with its length.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Key and value.
pub(super) type Entry = (String, GgufValue);

/// What a file with a model says of its kind.
pub(super) fn general(config: &QwenConfig, name: &str, kind: TensorType) -> Vec<Entry> {
    let text = |key: &str, value: &str| (key.to_owned(), GgufValue::Text(value.to_owned()));
    vec![
        text("general.architecture", &config.model_type),
        text("general.type", "model"),
        text("general.name", name),
        (
            "general.file_type".to_owned(),
            GgufValue::U32(kind.file_type()),
        ),
        ("general.quantization_version".to_owned(), GgufValue::U32(2)),
    ]
}

/// What a file with a model says of its architecture.
pub(super) fn architecture(config: &QwenConfig) -> Result<Vec<Entry>, GgufError> {
    if config.attention_bias && config.model_type == "qwen3" {
        return Err(GgufError::AttentionBias);
    }
    let mut entries = Vec::new();
    let mut add = |key: &str, value: GgufValue| {
        entries.push((format!("{}.{key}", config.model_type), value));
    };
    for (key, field, value) in [
        ("block_count", "num_hidden_layers", config.num_hidden_layers),
        (
            "context_length",
            "max_position_embeddings",
            config
                .sliding_window
                .map_or(config.max_position_embeddings, |window| {
                    window.min(config.max_position_embeddings)
                }),
        ),
        ("embedding_length", "hidden_size", config.hidden_size),
        (
            "feed_forward_length",
            "intermediate_size",
            config.intermediate_size,
        ),
        (
            "attention.head_count",
            "num_attention_heads",
            config.num_attention_heads,
        ),
        (
            "attention.head_count_kv",
            "num_key_value_heads",
            config.num_key_value_heads,
        ),
    ] {
        add(key, count(field, value)?);
    }
    add("rope.freq_base", GgufValue::F32(config.rope_theta as f32));
    add(
        "attention.layer_norm_rms_epsilon",
        GgufValue::F32(config.rms_norm_eps as f32),
    );
    let plain = config.hidden_size / config.num_attention_heads;
    if config.head_dim != plain || config.model_type == "qwen3" {
        let head_dim = count("head_dim", config.head_dim)?;
        add("attention.key_length", head_dim.clone());
        add("attention.value_length", head_dim);
    }
    for (key, value) in rope_scaling(config)? {
        add(key, value);
    }
    Ok(entries)
}

/// The value of a field of config.json.
fn count(field: &'static str, value: usize) -> Result<GgufValue, GgufError> {
    match u32::try_from(value) {
        Ok(value) => Ok(GgufValue::U32(value)),
        Err(_) => Err(GgufError::TooLarge {
            field,
            found: value,
        }),
    }
}

fn rope_scaling(config: &QwenConfig) -> Result<Vec<(&'static str, GgufValue)>, GgufError> {
    let kind = |kind: &str| ("rope.scaling.type", GgufValue::Text(kind.to_owned()));
    let float = |value: f64| GgufValue::F32(value as f32);
    let refused = |found: &'static str| GgufError::RopeScaling { found };
    match &config.rope_scaling {
        None => Ok(Vec::new()),
        Some(RopeScaling::Linear { factor }) => Ok(vec![
            kind("linear"),
            ("rope.scaling.factor", float(*factor)),
        ]),
        Some(RopeScaling::Yarn(yarn)) if is_plain(yarn) => Ok(vec![
            kind("yarn"),
            ("rope.scaling.factor", float(yarn.factor)),
            (
                "rope.scaling.original_context_length",
                count(
                    "original_max_position_embeddings",
                    yarn.original_max_position_embeddings,
                )?,
            ),
        ]),
        Some(RopeScaling::Yarn(_)) => Err(refused(
            "yarn with an attention_factor, beta_fast, beta_slow or truncate of its own",
        )),
        Some(RopeScaling::Dynamic { .. }) => Err(refused("dynamic")),
        Some(RopeScaling::LongRope(_)) => Err(refused("longrope")),
        Some(RopeScaling::Llama3(_)) => Err(refused("llama3")),
        Some(RopeScaling::Proportional { .. }) => Err(refused("proportional")),
    }
}

/// Whether YaRN is the one that llama.cpp computes without further keys.
fn is_plain(yarn: &Yarn) -> bool {
    let attention_factor = match yarn.factor > 1.0 {
        true => 0.1 * yarn.factor.ln() + 1.0,
        false => 1.0,
    };
    (yarn.attention_factor - attention_factor).abs() < 1e-6
        && yarn.beta_fast == 32.0
        && yarn.beta_slow == 1.0
        && yarn.truncate
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(model_type: &str, attention_bias: bool, max_position_embeddings: u64) -> QwenConfig {
        let json = serde_json::json!({
            "model_type": model_type, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 32, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": attention_bias,
            "max_position_embeddings": max_position_embeddings,
        });
        QwenConfig::from_json(&json.to_string(), Path::new("config.json")).unwrap()
    }

    #[test]
    fn what_the_format_cannot_say_names_its_field() {
        architecture(&config("qwen3", false, 1024)).unwrap();
        let error = |config| architecture(&config).unwrap_err().to_string();
        let biased = error(config("qwen3", true, 1024));
        assert!(biased.contains("`attention_bias`"), "{biased}");
        let long = error(QwenConfig {
            max_position_embeddings: 1 << 32,
            ..config("qwen2", false, 1024)
        });
        let expected = "`max_position_embeddings`: expected a number below 2^32, found 4294967296";
        assert!(long.contains(expected), "{long}");
    }
}
