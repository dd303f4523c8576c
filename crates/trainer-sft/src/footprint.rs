//! The memory that a run takes whatever its batches are, by the shape of its model.

use lora_4bit::nf4::{BLOCK_SIZE, NESTED_BLOCK_SIZE};
use model_qwen::{Dtype, Quantization, QwenConfig, linear_features};
use serde::Serialize;

use crate::config::{Config, Optim};
use crate::optimizer::moment_bytes;
use crate::space::{saved_tables, trained_tensors};

/// Bytes that do not depend on the batch. Activations come on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// The weights of the model, as the run holds them.
    pub weights: u64,
    /// What is trained, its gradients, and the two moments of AdamW, in f32 or in 8 bits; without what `weights` has of it.
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
        let linears = linear_features(model).map(|(_, [inputs, outputs])| inputs * outputs);
        let biases = match model.attention_bias {
            true => 4 * (queries + 2 * keys),
            false => 0,
        };
        let layer = linears.map(bytes).iter().sum::<usize>() + biases;
        // Embedding and head that are trained take the places of the model's own.
        let saved = if full { 0 } else { saved_tables(config) };
        let tables = match model.tie_word_embeddings {
            true => 1 - saved / 2,
            false => 2 - saved,
        };
        let norms = 4 * hidden * (2 * model.num_hidden_layers + 1);
        let weights = model.num_hidden_layers * layer + tables * model.vocab_size * hidden * size;
        Self {
            weights: (weights + norms) as u64,
            trained: trained_bytes(config, model),
        }
    }
}

/// Bytes of what is trained: the values where they are none of the model's own, gradients and moments.
fn trained_bytes(config: &Config, model: &QwenConfig) -> u64 {
    let values_and_gradients = if config.run.full { 4 } else { 8 };
    let eight_bit = config.optimizer.optim == Optim::Adamw8bit;
    let tensors = trained_tensors(config, model).into_iter();
    let bytes = tensors.map(|[values, count]| {
        let moments = moment_bytes(values, eight_bit);
        (count * (values * values_and_gradients + moments)) as u64
    });
    bytes.sum()
}

/// Bytes of a matrix in NF4.
fn nf4(values: usize, double_quant: bool) -> usize {
    let map = 16 * 4;
    let scales = values.div_ceil(BLOCK_SIZE);
    let scales = match double_quant {
        // Codes, their map, the scales of the scales, and an offset.
        true => scales + 256 * 4 + 4 * scales.div_ceil(NESTED_BLOCK_SIZE) + 4,
        false => 4 * scales,
    };
    values.div_ceil(2) + scales + map
}
