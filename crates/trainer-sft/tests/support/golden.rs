//! Files of `data/golden`, and models and batches made of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use model_qwen::{Dtype, LoadOptions, Quantization, QwenModel};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use trainer_sft::batch::Batch;

/// A file or a folder in `data/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/golden");
    root.join(name)
}

pub(crate) fn read_json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// Tensors in f32 by name, with their shapes.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        let words = data.as_chunks::<4>().0;
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    file.iter()
        .map(|(name, view)| {
            let shape = view.shape().to_vec();
            (name.to_owned(), (shape, values(view.data())))
        })
        .collect()
}

/// PEFT's name of a matrix of an adapter.
pub(crate) fn peft_name(module: &str, matrix: &str) -> String {
    format!("base_model.model.{module}.lora_{matrix}.weight")
}

#[derive(Deserialize)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) labels: Vec<i64>,
}

/// Sequences one after the other.
pub(crate) fn packed(sequences: &[Sequence]) -> Batch {
    let mut batch = Batch::default();
    for Sequence { tokens, labels } in sequences {
        batch.tokens.extend(tokens);
        batch.positions.extend(0..tokens.len() as u32);
        let next = labels[1..].iter().map(|&label| u32::try_from(label).ok());
        batch.targets.extend(next.chain([None]));
        batch.lengths.push(tokens.len());
    }
    batch
}

/// A model in f32, or in NF4 with double quantization.
pub(crate) fn load(folder: &Path, quantization: Quantization, device: &Device) -> QwenModel {
    let options = LoadOptions {
        dtype: Dtype::F32,
        quantization,
        double_quant: true,
        int8_lm_head: false,
        embeddings_on_cpu: false,
        check_finite_now: true,
        lm_head: true,
    };
    QwenModel::load(folder, &options, device).unwrap()
}
