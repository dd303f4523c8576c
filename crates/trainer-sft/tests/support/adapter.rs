//! Adapters that change what a model computes.

use lora_4bit::peft::LoraAdapter;
use model_qwen::QwenModel;
use trainer_sft::config::LoraOptions;
use trainer_sft::lora::new_adapter;

/// An adapter of rank `r` on all linear layers, whose B is not zero.
pub(crate) fn adapter(model: &QwenModel, r: usize) -> LoraAdapter {
    let lora = LoraOptions {
        r,
        alpha: 2.0 * r as f64,
        ..LoraOptions::default()
    };
    let mut adapter = new_adapter(&lora, None, model, 11);
    for matrices in adapter.modules.values_mut() {
        for (i, b) in matrices.b.iter_mut().enumerate() {
            *b = ((i * 37 % 19) as f32 - 9.0) * 0.01;
        }
    }
    adapter
}
