//! `config.json`: the shape of a Qwen model, checked once so that the forward pass need not check.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use serde::Deserialize;
use serde_json::{Map, Value};

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
    /// The file is not JSON, or a field has another type than expected.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the JSON parser said, with line and column.
        message: String,
    },
    /// A field is missing or has a value this crate cannot honour.
    #[error("{path}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: &'static str,
        /// What would be accepted.
        expected: String,
        /// What the file says.
        found: String,
    },
}

/// YaRN context extension (arXiv 2309.00071), as Qwen documents it for Qwen2.5.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer the context becomes.
    pub factor: f64,
    /// The context length the model was trained on, in tokens.
    pub original_max_position_embeddings: usize,
    /// Rotations over the original context above which a dimension keeps its frequency.
    pub beta_fast: f64,
    /// Rotations over the original context below which a dimension is fully interpolated.
    pub beta_slow: f64,
    /// What cos and sin are multiplied by.
    pub attention_factor: f64,
}

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
    /// Context extension, where the file asks for one.
    pub rope_scaling: Option<Yarn>,
    /// Whether `lm_head` is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v projections have a bias (Qwen2: yes, Qwen3: no).
    pub attention_bias: bool,
    /// Whether q and k are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// The longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Tokens that end a text, as far as `config.json` says.
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text, where there is one.
    pub bos_token_id: Option<u32>,
    /// The dtype the checkpoint says it is stored in.
    pub dtype: DType,
}

/// `config.json` as written; every field optional, so that errors can name the field.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    /// The newer spelling of `rope_theta` and `rope_scaling` together.
    rope_parameters: Option<Map<String, Value>>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<u32>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl QwenConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// When the file is missing, is not JSON, or describes something that is not a dense Qwen model.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let text = fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        Self::from_json(&text, &path)
    }

    /// Parses the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`QwenConfig::load`], but for reading.
    pub fn from_json(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = serde_json::from_str(text).map_err(|e| ConfigError::Syntax {
            path: path.to_owned(),
            message: e.to_string(),
        })?;
        Fields { path }.check(raw)
    }

    /// Query heads that share one key/value head.
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
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
        if let Some(yarn) = &self.rope_scaling {
            json["rope_scaling"] = serde_json::json!({
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_position_embeddings,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "attention_factor": yarn.attention_factor,
            });
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

/// Builds errors that name the file.
struct Fields<'a> {
    path: &'a Path,
}

impl Fields<'_> {
    fn error(&self, field: &'static str, expected: &str, found: impl ToString) -> ConfigError {
        ConfigError::Field {
            path: self.path.to_owned(),
            field,
            expected: expected.to_owned(),
            found: found.to_string(),
        }
    }

    fn positive(&self, field: &'static str, value: Option<usize>) -> Result<usize, ConfigError> {
        match value {
            Some(n) if n > 0 => Ok(n),
            Some(n) => Err(self.error(field, "a positive number", n)),
            None => Err(self.error(field, "a positive number", "nothing")),
        }
    }

    fn check(&self, raw: RawConfig) -> Result<QwenConfig, ConfigError> {
        let model_type = raw.model_type.unwrap_or_default();
        if !matches!(model_type.as_str(), "qwen2" | "qwen3") {
            let found = format!("`{model_type}`");
            return Err(self.error("model_type", "`qwen2` or `qwen3`", found));
        }
        let qwen3 = model_type == "qwen3";
        if let Some(act) = raw.hidden_act.filter(|act| act != "silu") {
            return Err(self.error("hidden_act", "`silu`", format!("`{act}`")));
        }
        let sliding = raw
            .layer_types
            .iter()
            .flatten()
            .any(|t| t != "full_attention");
        if raw.use_sliding_window == Some(true) || sliding {
            let field = if sliding {
                "layer_types"
            } else {
                "use_sliding_window"
            };
            return Err(self.error(
                field,
                "full attention in every layer",
                "sliding-window attention",
            ));
        }

        let hidden_size = self.positive("hidden_size", raw.hidden_size)?;
        let num_attention_heads = self.positive("num_attention_heads", raw.num_attention_heads)?;
        let num_key_value_heads = raw.num_key_value_heads.unwrap_or(num_attention_heads);
        if num_key_value_heads == 0 || num_attention_heads % num_key_value_heads != 0 {
            let expected = format!("a divisor of num_attention_heads ({num_attention_heads})");
            return Err(self.error("num_key_value_heads", &expected, num_key_value_heads));
        }
        if raw.head_dim.is_none() && hidden_size % num_attention_heads != 0 {
            let expected = format!("a multiple of num_attention_heads ({num_attention_heads})");
            return Err(self.error("hidden_size", &expected, hidden_size));
        }
        let head_dim = raw.head_dim.unwrap_or(hidden_size / num_attention_heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(self.error("head_dim", "a positive even number", head_dim));
        }

        let rope = raw.rope_parameters.or(raw.rope_scaling).unwrap_or_default();
        let rope_theta = raw
            .rope_theta
            .or_else(|| rope.get("rope_theta").and_then(Value::as_f64))
            .unwrap_or(10_000.0);
        if !(rope_theta.is_finite() && rope_theta > 1.0) {
            return Err(self.error("rope_theta", "a number above 1", rope_theta));
        }
        let rms_norm_eps = raw.rms_norm_eps.unwrap_or(1e-6);
        if !(rms_norm_eps.is_finite() && rms_norm_eps > 0.0) {
            return Err(self.error("rms_norm_eps", "a positive number", rms_norm_eps));
        }

        Ok(QwenConfig {
            hidden_size,
            intermediate_size: self.positive("intermediate_size", raw.intermediate_size)?,
            num_hidden_layers: self.positive("num_hidden_layers", raw.num_hidden_layers)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: self.positive("vocab_size", raw.vocab_size)?,
            rms_norm_eps,
            rope_theta,
            rope_scaling: self.rope_scaling(&rope)?,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            attention_bias: if qwen3 {
                raw.attention_bias.unwrap_or(false)
            } else {
                true
            },
            qk_norm: qwen3,
            max_position_embeddings: self
                .positive("max_position_embeddings", raw.max_position_embeddings)?,
            eos_token_ids: match raw.eos_token_id {
                None => Vec::new(),
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
            },
            bos_token_id: raw.bos_token_id,
            dtype: self.dtype(raw.torch_dtype.or(raw.dtype))?,
            model_type,
        })
    }

    fn dtype(&self, name: Option<String>) -> Result<DType, ConfigError> {
        match name.as_deref() {
            None | Some("float32") => Ok(DType::F32),
            Some("bfloat16") => Ok(DType::BF16),
            Some("float16") => Ok(DType::F16),
            Some(other) => Err(self.error(
                "torch_dtype",
                "`float32`, `bfloat16` or `float16`",
                format!("`{other}`"),
            )),
        }
    }

    fn rope_scaling(&self, rope: &Map<String, Value>) -> Result<Option<Yarn>, ConfigError> {
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        match kind.map(|k| k.as_str().unwrap_or_default()) {
            None | Some("default") => return Ok(None),
            Some("yarn") => {}
            Some(other) => {
                let found = format!("`{other}`");
                return Err(self.error("rope_scaling.rope_type", "`default` or `yarn`", found));
            }
        }
        let number = |key: &str| rope.get(key).and_then(Value::as_f64);
        let factor = number("factor").unwrap_or_default();
        if !(factor.is_finite() && factor >= 1.0) {
            return Err(self.error("rope_scaling.factor", "a number of at least 1", factor));
        }
        let original = number("original_max_position_embeddings").unwrap_or_default() as usize;
        if original == 0 {
            return Err(self.error(
                "rope_scaling.original_max_position_embeddings",
                "the context length the model was trained on",
                "nothing",
            ));
        }
        Ok(Some(Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: number("beta_fast").unwrap_or(32.0),
            beta_slow: number("beta_slow").unwrap_or(1.0),
            attention_factor: number("attention_factor").unwrap_or(if factor > 1.0 {
                0.1 * factor.ln() + 1.0
            } else {
                1.0
            }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let config = parse(|json| {
            json["rope_scaling"] = serde_json::json!({"type": "yarn", "factor": 4.0,
                "original_max_position_embeddings": 128});
        })
        .unwrap();
        let text = config.to_json().to_string();
        assert_eq!(
            QwenConfig::from_json(&text, Path::new("x")).unwrap(),
            config
        );
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
        assert!(error(|json| json["use_sliding_window"] = true.into()).contains("sliding-window"));
        assert!(error(|json| json["hidden_size"] = 0.into()).contains("found 0"));
        assert!(error(|json| json["hidden_size"] = "x".into()).contains("line 1"));
        let linear = serde_json::json!({"rope_type": "linear", "factor": 2.0});
        assert!(error(|json| json["rope_scaling"] = linear).contains("`linear`"));
    }
}
