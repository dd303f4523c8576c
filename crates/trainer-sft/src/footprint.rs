//! The memory that a run takes whatever its batches are, by the shape of its model.

use model_qwen::{Dtype, Quantization, QwenConfig};
use serde::Serialize;

use crate::config::Config;
use crate::space::num_trained;

/// Values of an NF4 block, which have one scale.
const BLOCK: usize = 64;
/// Scales of a block of double quantization.
const NESTED_BLOCK: usize = 256;

/// Bytes that do not depend on the batch. Activations come on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// The weights of the model, as the run holds them.
    pub weights: u64,
    /// What is trained, its gradients, and the two moments of AdamW, in f32; without what `weights` has of it.
    pub trained: u64,
}

impl Footprint {
    /// Of a run with a model of this shape.
    pub fn of(config: &Config, model: &QwenConfig) -> Self {
        let full = config.run.full;
        let size = match (full, config.model.dtype) {
            (true, _) | (false, Dtype::F32) => 4,
            (false, Dtype::Auto) => model.dtype.size(),
            (false, Dtype::Bf16 | Dtype::F16) => 2,
        };
        let bytes = |values: usize| match config.quantization() {
            Quantization::None => values * size,
            Quantization::Nf4 => nf4(values, config.model.double_quant),
        };
        let hidden = model.hidden_size;
        let queries = model.num_attention_heads * model.head_dim;
        let keys = model.num_key_value_heads * model.head_dim;
        let inner = model.intermediate_size;
        // q, k, v and o; gate, up and down.
        let linears = [
            hidden * queries,
            hidden * keys,
            hidden * keys,
            queries * hidden,
            hidden * inner,
            hidden * inner,
            inner * hidden,
        ];
        let biases = match model.attention_bias {
            true => 4 * (queries + 2 * keys),
            false => 0,
        };
        let layer = linears.map(bytes).iter().sum::<usize>() + biases;
        let tables = match model.tie_word_embeddings {
            true => 1,
            false => 2,
        };
        let norms = 4 * hidden * (2 * model.num_hidden_layers + 1);
        let weights = model.num_hidden_layers * layer + tables * model.vocab_size * hidden * size;
        Self {
            weights: (weights + norms) as u64,
            trained: num_trained(config, model) * if full { 12 } else { 16 },
        }
    }
}

/// Bytes of a matrix in NF4.
fn nf4(values: usize, double_quant: bool) -> usize {
    let map = 16 * 4;
    let scales = values.div_ceil(BLOCK);
    let scales = match double_quant {
        // Codes, their map, the scales of the scales, and an offset.
        true => scales + 256 * 4 + 4 * scales.div_ceil(NESTED_BLOCK) + 4,
        false => 4 * scales,
    };
    values.div_ceil(2) + scales + map
}
