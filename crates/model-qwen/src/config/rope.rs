//! What `rope_scaling` and `rope_parameters` ask for.
//!
//! Source: `modeling_rope_utils.py` of transformers 5.24, and `get_rope` of vLLM for `attn_factor` and the limits of a context.

mod read;

use serde_json::{Value, json};

pub(super) use read::{RopeShape, read_rope};

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
    /// Whether both bounds are rounded to whole dimensions.
    pub truncate: bool,
    /// What cos and sin are multiplied by.
    pub attention_factor: f64,
}

/// LongRoPE (arXiv 2402.13753) within the original context: each frequency is divided by a factor of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// One divisor for each pair of head dimensions, for texts up to the original context.
    pub short_factor: Vec<f64>,
    /// One divisor for each pair of head dimensions, for longer texts.
    pub long_factor: Vec<f64>,
    /// The context length the model was trained on, in tokens.
    pub original_max_position_embeddings: usize,
    /// What cos and sin are multiplied by.
    pub attention_factor: f64,
}

/// The scaling of Llama 3.1: low frequencies are divided, high ones kept, those between interpolated.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// The divisor.
    pub factor: f64,
    /// The original context divided by the wavelength above which a frequency is divided.
    pub low_freq_factor: f64,
    /// The original context divided by the wavelength below which a frequency is kept.
    pub high_freq_factor: f64,
    /// The context length the model was trained on, in tokens.
    pub original_max_position_embeddings: usize,
}

/// How the rotary frequencies differ from the plain ones.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// All positions are divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK scaling that grows with the text. Up to `max_position_embeddings` the frequencies are the plain ones; beyond, those
    /// of transformers depend on the length of the whole batch, so that the context ends there.
    Dynamic {
        /// How many times longer the context could become.
        factor: f64,
    },
    /// YaRN.
    Yarn(Yarn),
    /// LongRoPE.
    LongRope(LongRope),
    /// Llama 3.1.
    Llama3(Llama3),
    /// Only the first dimensions of a head are turned.
    Proportional {
        /// A divisor of the frequencies.
        factor: f64,
        /// The share of a head that is turned, at most 1.
        partial_rotary_factor: f64,
    },
}

impl RopeScaling {
    /// Tokens of the longest text, where the file says that it is `max_position_embeddings`.
    pub(super) fn context_length(&self, max_position_embeddings: usize) -> usize {
        let times = |length: usize, factor: f64| (length as f64 * factor) as usize;
        match self {
            Self::Linear { factor } => times(max_position_embeddings, factor.max(1.0)),
            Self::Yarn(yarn) => {
                let original = yarn.original_max_position_embeddings;
                times(original, yarn.factor).max(max_position_embeddings.min(original))
            }
            Self::LongRope(long) => long
                .original_max_position_embeddings
                .min(max_position_embeddings),
            Self::Dynamic { .. } | Self::Llama3(_) | Self::Proportional { .. } => {
                max_position_embeddings
            }
        }
    }

    /// As `rope_scaling` of a `config.json`.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
            Self::Yarn(yarn) => json!({
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_position_embeddings,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "truncate": yarn.truncate,
                "attention_factor": yarn.attention_factor,
            }),
            Self::LongRope(long) => json!({
                "rope_type": "longrope",
                "short_factor": long.short_factor,
                "long_factor": long.long_factor,
                "original_max_position_embeddings": long.original_max_position_embeddings,
                "attention_factor": long.attention_factor,
            }),
            Self::Llama3(llama) => json!({
                "rope_type": "llama3",
                "factor": llama.factor,
                "low_freq_factor": llama.low_freq_factor,
                "high_freq_factor": llama.high_freq_factor,
                "original_max_position_embeddings": llama.original_max_position_embeddings,
            }),
            Self::Proportional {
                factor,
                partial_rotary_factor,
            } => json!({
                "rope_type": "proportional",
                "factor": factor,
                "partial_rotary_factor": partial_rotary_factor,
            }),
        }
    }
}
