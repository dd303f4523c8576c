//! `config.json`: the shape of a Qwen model, checked once so that the forward pass need not check.

mod check;
mod keys;
mod load;
mod quantization;
mod rope;

use std::path::PathBuf;

use burn::tensor::DType;
use serde_json::Value;

use crate::json_file::JsonFileError;

pub use rope::{Llama3, LongRope, RopeScaling, Yarn};

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error(
        "cannot read {path}: {source}; expected a Hugging Face model folder with a config.json"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not JSON, or a field has a value that this crate cannot honour.
    #[error(transparent)]
    File(#[from] JsonFileError),
}

/// Tokens of the longest text that positions of 32 bits can count.
const MAX_CONTEXT: usize = i32::MAX as usize;

/// The architecture of one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct QwenConfig {
    /// `qwen2` or `qwen3`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads per layer.
    pub num_attention_heads: usize,
    /// Key/value heads per layer; query heads are a multiple of them (GQA).
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies differ from the plain ones.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether `lm_head` is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v projections have a bias (Qwen2: yes, Qwen3: no).
    pub attention_bias: bool,
    /// Whether q and k are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// What the file says of the longest text, in tokens; see [`QwenConfig::context_length`].
    pub max_position_embeddings: usize,
    /// Tokens that the sliding window of some layers reaches, where that is less than the longest text: up to there, a text has
    /// full attention.
    pub sliding_window: Option<usize>,
    /// Tokens that end a text, as far as `config.json` says.
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text, where there is one.
    pub bos_token_id: Option<u32>,
    /// The dtype the checkpoint says it is stored in.
    pub dtype: DType,
}

impl QwenConfig {
    /// Tokens of the longest text: `max_position_embeddings`, or as far as the scaling of RoPE reaches; no more than a sliding
    /// window shows.
    pub fn context_length(&self) -> usize {
        let max = self.max_position_embeddings;
        let max = match &self.rope_scaling {
            Some(scaling) => scaling.context_length(max).min(MAX_CONTEXT),
            None => max,
        };
        self.sliding_window.map_or(max, |window| window.min(max))
    }

    /// The `config.json` that describes this model to transformers and to [`QwenConfig::load`].
    pub fn to_json(&self) -> Value {
        let qwen3 = self.model_type == "qwen3";
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => Value::from(*one),
            many => Value::from(many.to_vec()),
        };
        let mut json = serde_json::json!({
            "architectures": [if qwen3 { "Qwen3ForCausalLM" } else { "Qwen2ForCausalLM" }],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "use_sliding_window": false,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "torch_dtype": dtype_name(self.dtype),
        });
        if qwen3 {
            json["attention_bias"] = Value::from(self.attention_bias);
        }
        if let Some(window) = self.sliding_window {
            json["use_sliding_window"] = true.into();
            json["sliding_window"] = window.into();
            json["max_window_layers"] = 0.into();
        }
        if let Some(scaling) = &self.rope_scaling {
            json["rope_scaling"] = scaling.to_json();
        }
        json
    }
}

/// The name `config.json` uses for a dtype.
pub(crate) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::json_file::JsonFile;

    const QWEN2: &str = r#"{"model_type":"qwen2","hidden_size":64,"intermediate_size":128,
        "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":256,
        "max_position_embeddings":512,"rope_theta":1000000.0,"tie_word_embeddings":true,
        "torch_dtype":"bfloat16","eos_token_id":[1,2]}"#;

    fn parse(edit: impl FnOnce(&mut Value)) -> Result<QwenConfig, ConfigError> {
        let mut json: Value = serde_json::from_str(QWEN2).unwrap();
        edit(&mut json);
        QwenConfig::from_json(&json.to_string(), Path::new("config.json"))
    }

    fn error(edit: impl FnOnce(&mut Value)) -> String {
        parse(edit).unwrap_err().to_string()
    }

    #[test]
    fn reads_qwen2() {
        let config = parse(|_| {}).unwrap();
        assert_eq!(config.head_dim, 16);
        assert!(config.attention_bias && !config.qk_norm);
        assert_eq!(config.dtype, DType::BF16);
        assert_eq!(config.eos_token_ids, [1, 2]);
    }

    #[test]
    fn writes_what_it_reads() {
        let factors = vec![1.5; 8];
        for scaling in [
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
            json!({"type": "linear", "factor": 2.0}),
            json!({"type": "dynamic", "factor": 2.0}),
            json!({"type": "longrope", "short_factor": factors, "long_factor": factors}),
            json!({"type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4}),
            json!({"type": "proportional", "partial_rotary_factor": 0.5}),
        ] {
            let config = parse(|json| json["rope_scaling"] = scaling).unwrap();
            let text = config.to_json().to_string();
            let read = QwenConfig::from_json(&text, Path::new("x")).unwrap();
            assert_eq!(read, config);
        }
    }

    #[test]
    fn names_file_field_expected_and_found() {
        assert_eq!(
            error(|json| json["model_type"] = "llama".into()),
            "config.json: field `model_type`: expected `qwen2` or `qwen3`, found `llama`"
        );
        assert!(
            error(|json| json["num_key_value_heads"] = 3.into()).contains("num_key_value_heads")
        );
        assert!(error(|json| json["hidden_size"] = 0.into()).contains("found 0"));
        assert!(
            error(|json| json["num_hidden_layers"] = 1_000_000_000.into())
                .contains("`num_hidden_layers`: expected at most 4096 layers")
        );
        assert!(error(|json| json["hidden_size"] = "x".into()).contains("`hidden_size`"));
        assert!(error(|json| json["mlp_bias"] = true.into()).contains("`mlp_bias`"));
        assert!(error(|json| json["is_causal"] = false.into()).contains("`is_causal`"));
        let reward = json!(["Qwen2ForRewardModel"]);
        assert!(error(|json| json["architectures"] = reward).contains("`Qwen2ForCausalLM`"));
    }

    #[test]
    fn what_says_nothing_is_read_as_absent() {
        let plain = parse(|_| {}).unwrap();
        for (key, value) in [
            ("rope_scaling", Value::Null),
            ("rope_scaling", json!({})),
            ("rope_parameters", json!({"rope_type": "default"})),
            ("head_dim", Value::Null),
            ("hidden_size", json!(64.0)),
            ("quantization_config", json!({})),
            ("quantization_config", json!({"quant_method": null})),
            ("eos_token_id", json!([1, -1, 2])),
            ("bos_token_id", json!(-1)),
            ("pad_token_id", json!(-1)),
            ("hidden_act", json!("swish")),
            ("torch_dtype", json!("torch.bfloat16")),
            ("mlp_bias", json!(false)),
            ("use_mrope", json!(false)),
            ("partial_rotary_factor", json!(1.0)),
            ("sliding_window", json!(16)),
            ("architectures", json!([])),
        ] {
            let read = parse(|json| json[key] = value.clone()).unwrap();
            assert_eq!(read, plain, "{key}: {value}");
        }
        let auto = parse(|json| json["torch_dtype"] = "auto".into()).unwrap();
        assert_eq!(auto.dtype, DType::F32);
        let renamed = parse(|json| {
            json["torch_dtype"] = Value::Null;
            json["dtype"] = "float16".into();
        });
        assert_eq!(renamed.unwrap().dtype, DType::F16);
    }

    #[test]
    fn a_head_of_qwen3_is_128_wide_unless_the_file_says_otherwise() {
        let qwen3 = |edit: fn(&mut Value)| {
            parse(|json| {
                json["model_type"] = "qwen3".into();
                edit(json);
            })
        };
        assert_eq!(qwen3(|_| {}).unwrap().head_dim, 128);
        assert_eq!(
            qwen3(|json| json["head_dim"] = Value::Null)
                .unwrap()
                .head_dim,
            16
        );
        assert_eq!(
            qwen3(|json| json["head_dim"] = 32.into()).unwrap().head_dim,
            32
        );
    }

    #[test]
    fn a_text_is_no_longer_than_a_window() {
        let window = |layers: Value, window: Value| {
            let config = parse(|json| {
                json["use_sliding_window"] = true.into();
                json["max_window_layers"] = layers;
                json["sliding_window"] = window;
            });
            config.unwrap()
        };
        for (layers, tokens, expected) in [
            (json!(1), json!(100), 100),
            // No layer has one.
            (json!(2), json!(100), 512),
            // It is as long as the context.
            (json!(0), json!(512), 512),
            (json!(0), Value::Null, 512),
        ] {
            let config = window(layers, tokens);
            assert_eq!(config.context_length(), expected);
            let text = config.to_json().to_string();
            let read = QwenConfig::from_json(&text, Path::new("x")).unwrap();
            assert_eq!(read, config);
        }
        let mut json: Value = serde_json::from_str(QWEN2).unwrap();
        json["use_sliding_window"] = true.into();
        json["sliding_window"] = 100.into();
        let types = json!(["full_attention", "sliding_attention"]);
        for (types, expected) in [
            (types, 100),
            (json!(["full_attention", "full_attention"]), 512),
        ] {
            json["layer_types"] = types;
            let file = JsonFile::parse(&json.to_string(), "config.json".into()).unwrap();
            let (config, notes) = check::read(&file).unwrap();
            assert_eq!(config.context_length(), expected);
            let is_told = notes
                .iter()
                .any(|note| note.contains("up to 100 tokens, not up to 512"));
            assert_eq!(is_told, expected == 100, "{notes:?}");
        }
        let types = |types: Value| parse(|json| json["layer_types"] = types);
        assert!(types(json!(["full_attention", "full_attention"])).is_ok());
        for wrong in [
            json!(["full_attention", "sliding_attention"]),
            json!(["full_attention"]),
            json!(["full_attention", "linear_attention"]),
        ] {
            let message = types(wrong).unwrap_err().to_string();
            assert!(message.contains("`layer_types`"), "{message}");
        }
    }

    #[test]
    fn scalings_are_refused_by_name() {
        for (scaling, expected) in [
            (json!({"type": "mrope"}), "`mrope`"),
            (
                json!({"rope_type": "default", "mrope_section": [4, 2, 2]}),
                "mrope_section",
            ),
            (json!({"type": "ntk"}), "rope_scaling.rope_type"),
            (json!({"factor": 4.0}), "rope_scaling.rope_type"),
            (json!({"type": "linear"}), "rope_scaling.factor"),
            (
                json!({"type": "linear", "factor": "2"}),
                "rope_scaling.factor",
            ),
            (json!({"type": "yarn", "factor": -1}), "rope_scaling.factor"),
            (
                json!({"type": "yarn", "factor": 4, "extrapolation_factor": 2}),
                "extrapolation_factor",
            ),
            (
                json!({"type": "yarn", "factor": 4, "attn_factor": 2, "attention_factor": 1}),
                "attn_factor",
            ),
            (
                json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
                "8 numbers",
            ),
            (json!({"type": "llama3", "factor": 8}), "low_freq_factor"),
            (
                json!({"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}),
                "partial_rotary_factor",
            ),
            (
                json!({"full_attention": {"rope_type": "default"}}),
                "rope_scaling.full_attention",
            ),
        ] {
            let message = error(|json| json["rope_scaling"] = scaling.clone());
            assert!(message.contains(expected), "{scaling}: {message}");
        }
        let lost = error(|json| {
            json["rope_theta"] = Value::Null;
            json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1e6});
            json["rope_scaling"] = json!({"type": "yarn", "factor": 4.0});
        });
        assert!(
            lost.contains("rope_scaling.rope_theta") && lost.contains("rope_parameters"),
            "{lost}"
        );
    }

    #[test]
    fn the_context_reaches_as_far_as_rope() {
        let length = |max: usize, scaling: Value| {
            let config = parse(|json| {
                json["max_position_embeddings"] = max.into();
                json["rope_scaling"] = scaling;
            });
            config.unwrap().context_length()
        };
        let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024});
        assert_eq!(length(1024, yarn.clone()), 4096);
        assert_eq!(length(4096, yarn), 4096);
        assert_eq!(length(1024, json!({"type": "yarn", "factor": 2.0})), 2048);
        assert_eq!(length(1024, json!({"type": "linear", "factor": 2.5})), 2560);
        assert_eq!(
            length(1024, json!({"type": "dynamic", "factor": 2.0})),
            1024
        );
        let factors = vec![1.0; 8];
        let long = json!({"type": "longrope", "short_factor": factors, "long_factor": factors,
            "original_max_position_embeddings": 256});
        assert_eq!(length(1024, long), 256);
        assert_eq!(length(1024, Value::Null), 1024);
    }

    #[test]
    fn formats_of_quantization_are_named() {
        for (config, found) in [
            (json!({"quant_method": "gptq", "bits": 4}), "`gptq`"),
            (json!({"quant_method": "awq"}), "`awq`"),
            (json!({"quant_method": "fp8"}), "`fp8`"),
            (json!({"quant_method": "mxfp4"}), "`mxfp4`"),
            (
                json!({"quant_method": "compressed-tensors"}),
                "`compressed-tensors`",
            ),
            (json!({"quant_method": "hqq"}), "`hqq`"),
            (json!({"quant_method": "eetq"}), "`eetq`"),
            (json!({"quant_method": "quanto"}), "`quanto`"),
            (json!({"quant_method": "torchao"}), "`torchao`"),
            (json!({"quant_algo": "NVFP4"}), "`NVFP4`"),
            (
                json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
                "LLM.int8",
            ),
            (
                json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}),
                "`fp4`",
            ),
            (
                json!({"bits": 4, "group_size": 64}),
                "nothing beside bits, group_size",
            ),
        ] {
            let message = error(|json| json["quantization_config"] = config.clone());
            assert!(message.contains("field `quantization_config."), "{message}");
            assert!(
                message.contains(&format!("found {found}")) || message.contains(found),
                "{message}"
            );
            assert!(message.contains("bitsandbytes NF4"), "{message}");
        }
        let nf4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
        assert!(parse(|json| json["quantization_config"] = nf4).is_ok());
        assert!(error(|json| json["quantization"] = json!({"bits": 4})).contains("`quantization."));
    }

    #[test]
    fn unknown_keys_are_named_once() {
        let mut json: Value = serde_json::from_str(QWEN2).unwrap();
        json["logit_scale"] = json!(2.0);
        json["my_key"] = json!(1);
        json["initializer_range"] = json!(0.02);
        let file = JsonFile::parse(&json.to_string(), "config.json".into()).unwrap();
        let (_, notes) = check::read(&file).unwrap();
        assert_eq!(notes, ["unknown keys are not read: logit_scale, my_key"]);
    }
}
