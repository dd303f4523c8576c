//! A LoRA adapter as a GGUF file.

use std::path::Path;

use lora_4bit::peft::{LoraAdapter, LoraMatrices};

use super::GgufError;
use super::metadata::{Entry, GgufValue};
use super::names::gguf_name;
use super::quants::TensorType;
use super::writer::{GgufWriter, Slot};
use crate::merge::check_largest;

/// Writes an adapter for a model of the architecture `model_type` (`qwen2`, `qwen3`) as the new file `path`.
///
/// llama.cpp multiplies each `B A` by `alpha / rank`, with one alpha for all. Where the adapter's factor is another one (rsLoRA,
/// `alpha_pattern`), `B` is multiplied by the quotient.
///
/// # Errors
/// When the adapter has DoRA or saved modules, a module has no name in GGUF files, a matrix does not fit into its type, or the file cannot be written.
pub fn write_adapter(
    adapter: &LoraAdapter,
    model_type: &str,
    kind: TensorType,
    path: &Path,
) -> Result<(), GgufError> {
    if kind.is_quantized() {
        return Err(GgufError::AdapterType { found: kind.name() });
    }
    if !adapter.saved.is_empty() {
        let found = "whole weights of embedding or head (modules_to_save)";
        return Err(GgufError::AdapterForm { found });
    }
    if adapter.config.use_dora {
        let found = "lora_magnitude_vector (DoRA)";
        return Err(GgufError::AdapterForm { found });
    }
    let mut slots = Vec::new();
    for (module, matrices) in &adapter.modules {
        let name = gguf_name(&format!("{module}.weight")).ok_or_else(|| GgufError::Name {
            dir: path.to_owned(),
            name: module.clone(),
        })?;
        let slot = |end: &str, shape: [usize; 2]| Slot {
            name: format!("{name}.{end}"),
            shape: shape.to_vec(),
            kind,
        };
        slots.push(slot("lora_a", [matrices.r, matrices.in_features]));
        slots.push(slot("lora_b", [matrices.out_features, matrices.r]));
    }
    let alpha = match adapter.config.lora_alpha as f32 {
        // llama.cpp would take the factor 1.
        0.0 => 1.0,
        alpha => alpha,
    };
    let mut file = GgufWriter::create(path, &metadata(model_type, alpha), &slots)?;
    let mut bytes = Vec::new();
    for ((module, matrices), slots) in adapter.modules.iter().zip(slots.chunks_exact(2)) {
        let b = scaled(
            matrices,
            adapter.config.scaling_for(module),
            f64::from(alpha),
        );
        for (values, slot) in [&matrices.a, &b].into_iter().zip(slots) {
            check_largest(module, (kind.name(), kind.largest()), values)?;
            bytes.clear();
            kind.encode(values, &mut bytes);
            file.write(&bytes)?;
            file.end(slot)?;
        }
    }
    file.finish()
}

/// `B` for a reader that multiplies by `alpha / rank`.
fn scaled(matrices: &LoraMatrices, scaling: f64, alpha: f64) -> Vec<f32> {
    let factor = scaling / (alpha / matrices.r as f64);
    match (factor - 1.0).abs() < 1e-12 {
        true => matrices.b.clone(),
        false => {
            let scaled = matrices
                .b
                .iter()
                .map(|value| (f64::from(*value) * factor) as f32);
            scaled.collect()
        }
    }
}

fn metadata(model_type: &str, alpha: f32) -> Vec<Entry> {
    let text = |key: &str, value: &str| (key.to_owned(), GgufValue::Text(value.to_owned()));
    vec![
        text("general.architecture", model_type),
        text("general.type", "adapter"),
        text("adapter.type", "lora"),
        ("adapter.lora.alpha".to_owned(), GgufValue::F32(alpha)),
    ]
}
