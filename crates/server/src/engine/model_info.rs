//! What the loaded model brings besides its weights: text to tokens and back.

use std::path::PathBuf;

use burn::tensor::DType;
use lora_4bit::Weight;
use model_qwen::{ChatTemplate, GenerationConfig, QwenConfig, QwenModel, Tokenizer, is_gpu};

use super::memory::MemoryTable;
use super::pooling_model::PoolingInfo;

/// What the loaded model brings for those who make requests.
#[derive(Clone)]
pub struct ModelInfo {
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// The chat template in force: the configuration's, or else the model's own, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Sampling defaults and end-of-sequence ids.
    pub generation_config: GenerationConfig,
    /// Its folder.
    pub dir: PathBuf,
    /// The model as the user named it; the default for `--served-model-name`.
    pub model_id: String,
    /// How texts become vectors or scores; `None` for a model that generates text.
    pub pooling: Option<PoolingInfo>,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// How the memory is divided.
    pub memory_table: MemoryTable,
    /// What kind of model it is.
    pub details: ModelDetails,
    /// Its weights without adapters, which are the engine's own; only where adapters are trained, too.
    pub base: Option<QwenModel>,
}

/// What clients are told of the model itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelDetails {
    /// `qwen2` or `qwen3`.
    pub architecture: String,
    /// Numbers in its weights.
    pub num_parameters: u64,
    /// Bytes of weights in memory.
    pub num_bytes: u64,
    /// `F32`, `F16`, `BF16` or `NF4`: the type of its linear layers.
    pub quantization: &'static str,
    /// Tokens of the longest text, whatever `--max-model-len` is.
    pub context_length: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads per layer.
    pub num_heads: usize,
    /// Key/value heads per layer.
    pub num_kv_heads: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Whether it is on a GPU.
    pub is_on_gpu: bool,
}

impl ModelDetails {
    /// Those of a loaded model.
    pub(super) fn of(model: &QwenModel) -> Self {
        let config = &model.config;
        let linears = model.linears();
        let quantization = match linears.first().map(|(_, linear)| &linear.weight) {
            Some(Weight::Nf4(_)) => "NF4",
            Some(Weight::Dense(weight)) => match weight.dtype() {
                DType::BF16 => "BF16",
                DType::F16 => "F16",
                _ => "F32",
            },
            None => "",
        };
        Self {
            architecture: config.model_type.clone(),
            num_parameters: num_parameters(config),
            num_bytes: model.num_bytes() as u64,
            quantization,
            context_length: config.context_length(),
            num_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            vocab_size: config.vocab_size,
            is_on_gpu: is_gpu(&model.device()),
        }
    }
}

fn num_parameters(config: &QwenConfig) -> u64 {
    let (hidden, head) = (config.hidden_size, config.head_dim);
    let (q, kv) = (
        config.num_attention_heads * head,
        config.num_key_value_heads * head,
    );
    let mut layer = hidden * (2 * q + 2 * kv) + 3 * hidden * config.intermediate_size + 2 * hidden;
    if config.attention_bias {
        layer += q + 2 * kv;
    }
    if config.qk_norm {
        layer += 2 * head;
    }
    let embeddings = if config.tie_word_embeddings { 1 } else { 2 };
    let all = config.num_hidden_layers * layer + embeddings * config.vocab_size * hidden + hidden;
    all as u64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn parameters_are_those_of_the_model_card() {
        let config = r#"{ "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": true,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
            "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu" }"#;
        let config = QwenConfig::from_json(config, Path::new("config.json")).unwrap();
        assert_eq!(num_parameters(&config), 494_032_768);
    }
}
