//! Gradients of a whole step against PyTorch: a packed batch of ragged documents against each document by itself.
//!
//! The files come from `xtask/golden/gradients.py`.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::LoraWeights;
use model_qwen::{Quantization, QwenModel};
use serde::Deserialize;
use trainer_sft::batch::Batch;
use trainer_sft::parameters::{GradientStore, Trainable};
use trainer_sft::trainer::Trainer;

use super::{Sequence, cosine, golden, load, packed, peft_name, read_json, tensors};

/// Of the norm of a gradient.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Documents {
    documents: Vec<Sequence>,
    losses: BTreeMap<String, Losses>,
}

#[derive(Deserialize)]
struct Losses {
    full: f64,
    lora: f64,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A model of `data/golden/model` with what PyTorch says of it.
fn case(name: &str) -> (QwenModel, Tensors, Vec<Batch>, Losses) {
    let model = load(
        &golden(&format!("model/{name}")),
        Quantization::None,
        &Device::flex(),
    );
    let mut documents: Documents = read_json("gradients/documents.json");
    // Two micro-batches, whose gradients are added.
    let (first, second) = documents.documents.split_at(2);
    let batches = vec![packed(first), packed(second)];
    let tensors = tensors(&golden(&format!("gradients/{name}.safetensors")));
    (
        model,
        tensors,
        batches,
        documents.losses.remove(name).unwrap(),
    )
}

fn gradients(model: QwenModel, trainable: Trainable, batches: &[Batch]) -> (f64, GradientStore) {
    let trainer = Trainer::new(model, cosine(trainable, 1e-3, 0, 1));
    let (loss, gradients) = trainer.gradients(batches);
    (f64::from(loss.into_scalar::<f32>()), gradients)
}

fn check_loss(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-5 * expected,
        "{found}, not {expected}"
    );
}

fn check(name: &str, found: &Tensor<1>, expected: &[f32]) {
    let found: Vec<f32> = found.to_data().iter::<f32>().collect();
    assert_eq!(found.len(), expected.len(), "{name}");
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values
            .map(|value| f64::from(value).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let all = norm(&mut expected.iter().copied());
    assert!(off < TOLERANCE * all, "{name}: {off} of {all}");
}

#[test]
fn those_of_all_weights_are_pytorchs() {
    for name in ["qwen2-untied", "qwen3"] {
        let (model, expected, batches, losses) = case(name);
        let (loss, found) = gradients(model, Trainable::Full, &batches);
        check_loss(loss, losses.full);
        let expected = expected
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("full.")?, &value.1)));
        let mut count = 0;
        for (key, values) in expected {
            check(&format!("{name}: {key}"), found.get(key).unwrap(), values);
            count += 1;
        }
        assert_eq!(count, found.names().count());
        assert!(count > 20);
    }
}

#[test]
fn those_of_an_adapter_are_pytorchs() {
    for name in ["qwen2-untied", "qwen3"] {
        let (mut model, expected, batches, losses) = case(name);
        let modules: Vec<String> = model.linears().into_iter().map(|(name, _)| name).collect();
        assert_eq!(modules.len(), 14);
        let of = |kind: &str, module: &str, matrix| {
            &expected[&format!("{kind}.{}", peft_name(module, matrix))]
        };
        for module in &modules {
            let tensor = |matrix| {
                let (shape, values) = of("adapter", module, matrix).clone();
                let data = TensorData::new(values, [shape[0], shape[1]]);
                Tensor::<2>::from_data(data, (&Device::flex(), DType::F32))
            };
            let weights = LoraWeights::new(tensor("A"), tensor("B"), 2.0);
            model
                .linear_mut(module)
                .unwrap()
                .set_adapter(0, Some(weights));
        }
        let (loss, found) = gradients(model, Trainable::Adapter { slot: 0 }, &batches);
        check_loss(loss, losses.lora);
        for module in &modules {
            let (_, a) = of("lora", module, "A");
            let (shape, b) = of("lora", module, "B");
            let b: Tensor<2> = Tensor::from_data(
                TensorData::new(b.clone(), [shape[0], shape[1]]),
                (&Device::flex(), DType::F32),
            );
            let b_t: Vec<f32> = b.transpose().to_data().iter::<f32>().collect();
            for (matrix, values) in [("lora_A", a), ("lora_B_t", &b_t)] {
                let key = format!("{module}.{matrix}");
                check(&format!("{name}: {key}"), found.get(&key).unwrap(), values);
            }
        }
        assert_eq!(found.names().count(), 28);
    }
}
