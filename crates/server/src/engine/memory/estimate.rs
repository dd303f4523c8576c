//! Bytes that are needed besides weights and KV cache, at most.

use lora_4bit::{ComputeDtype, Linear, Weight};
use model_qwen::{MAX_LOGIT_ROWS, QwenConfig, QwenModel};

use crate::config::Config;

/// Every slot taken by an adapter of the largest rank on all linear layers, in f32; on a GPU a second time, stacked.
pub(super) fn adapter_bytes(config: &Config, model: &QwenConfig, is_gpu: bool) -> u64 {
    let Some(lora) = &config.lora else { return 0 };
    let (hidden, inter) = (model.hidden_size, model.intermediate_size);
    let (q, kv) = (
        model.num_attention_heads * model.head_dim,
        model.num_key_value_heads * model.head_dim,
    );
    let widths = [
        (hidden, q),
        (hidden, kv),
        (hidden, kv),
        (q, hidden),
        (hidden, inter),
        (hidden, inter),
        (inter, hidden),
    ];
    let per_rank: usize = widths.iter().map(|(inp, out)| inp + out).sum();
    let rank = match is_gpu {
        // Ranks of a stack are multiples of eight.
        true => lora.max_lora_rank + lora.max_lora_rank.next_multiple_of(8),
        false => lora.max_lora_rank,
    };
    (4 * per_rank * model.num_hidden_layers * rank * lora.max_loras) as u64
}

/// The f32 tensors that are alive at once in the widest place of a full step: the MLP, or the logits.
pub(super) fn activation_bytes(
    config: &Config,
    max_num_batched_tokens: usize,
    model: &QwenConfig,
) -> u64 {
    let residual = 3 * model.hidden_size;
    let mlp = 3 * model.intermediate_size;
    let attention = 2 * (model.num_attention_heads + model.num_key_value_heads) * model.head_dim;
    let step = max_num_batched_tokens * (residual + mlp.max(attention));
    let logits = MAX_LOGIT_ROWS.min(config.max_num_seqs) * 2 * model.vocab_size;
    4 * (step + logits) as u64
}

/// Weights of a layer in NF4 that a GPU unpacks for a step of many tokens, in the type that it multiplies. Gate, up, down, and
/// those of attention are pages of a pool, which are as large as the largest activation.
pub(super) fn unpacked_bytes(model: &QwenModel, max_num_batched_tokens: usize) -> u64 {
    let is_nf4 = |linear: &Linear| matches!(linear.weight, Weight::Nf4(_));
    if !model.linears().iter().any(|(_, linear)| is_nf4(linear)) {
        return 0;
    }
    let (hidden, inter) = (model.config.hidden_size, model.config.intermediate_size);
    let value = match model.lm_head.compute {
        ComputeDtype::Bf16 => 2,
        _ => 4,
    };
    let (weight, activation) = (value * hidden * inter, 4 * max_num_batched_tokens * inter);
    4 * weight.max(activation) as u64
}
