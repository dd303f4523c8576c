//! The adapter of a run, read back from the model.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, SAVABLE, SavedModule};
use model_qwen::QwenModel;

/// The adapter in `slot`, read back from the device.
#[must_use]
pub fn read_adapter(model: &QwenModel, slot: usize, config: &LoraConfig) -> LoraAdapter {
    let read = |tensor: &Tensor<2>| tensor.to_data().iter::<f32>().collect::<Vec<_>>();
    let modules = model
        .linears()
        .into_iter()
        .filter_map(|(name, linear)| linear.adapter(slot).map(|weights| (name, linear, weights)))
        .map(|(name, linear, weights)| {
            let matrices = LoraMatrices {
                a: read(&weights.a),
                b: read(&weights.b_t.clone().transpose()),
                r: weights.a.dims()[0],
                in_features: linear.in_features(),
                out_features: linear.out_features(),
                magnitude: (weights.dora.as_ref())
                    .map(|dora| dora.magnitude.to_data().iter::<f32>().collect()),
            };
            (name, matrices)
        })
        .collect();
    LoraAdapter {
        config: config.clone(),
        modules,
        saved: saved_modules(model, config),
    }
}

/// The weights of the model that the adapter has saved whole: those of each module that `modules_to_save` names.
pub(super) fn saved_modules(
    model: &QwenModel,
    config: &LoraConfig,
) -> BTreeMap<String, SavedModule> {
    let modules = SAVABLE.into_iter().filter(|(short, module)| {
        let mut names = config.modules_to_save.iter();
        names.any(|name| name == short || name == module)
    });
    let modules = modules.map(|(short, module)| {
        let weight = match (short, &model.lm_head.weight) {
            ("lm_head", weight) => weight.dequantize(),
            _ => model.embed_tokens.clone(),
        };
        let saved = SavedModule {
            shape: weight.dims(),
            weight: weight.into_data().iter::<f32>().collect(),
        };
        (module.to_owned(), saved)
    });
    modules.collect()
}
