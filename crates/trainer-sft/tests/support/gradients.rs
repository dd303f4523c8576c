//! Gradients of a whole step against PyTorch's: a packed batch of ragged documents against each document by itself.
//!
//! The files come from `xtask/golden/gradients.py`.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::{AdapterSelection, ComputeDtype, Dropout, LoraWeights};
use model_qwen::{Quantization, QwenModel};
use serde::Deserialize;
use trainer_sft::batch::Batch;
use trainer_sft::parameters::{GradientStore, Trainable};
use trainer_sft::step::{Checkpointing, StepOptions};

use crate::files::{Sequence, golden, load, packed, peft_name, read_json, tensors};

/// Tiny models; the sizes of the last two are multiples of what a GPU's kernels take at once.
pub(crate) const CASES: [&str; 4] = ["qwen2-untied", "qwen3", "qwen2-heads64", "qwen3-heads64"];

/// Those of them that are trained over NF4, too.
pub(crate) const OVER_NF4: [&str; 2] = ["qwen2-heads64", "qwen3-heads64"];

/// DoRA's magnitudes, as PEFT names them among the matrices.
const MAGNITUDE: &str = "magnitude_vector";

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every weight.
    Full,
    /// An adapter on all linear layers.
    Adapter,
    /// The same, whose inputs lose a quarter of their values.
    Dropped,
    /// The same with DoRA.
    DoraDropped,
    /// An adapter over a base in NF4 with double quantization.
    Nf4,
}

impl Kind {
    /// What the files have of a case.
    pub(crate) fn of(case: &str) -> &'static [Self] {
        match OVER_NF4.contains(&case) {
            true => &[
                Self::Full,
                Self::Adapter,
                Self::Dropped,
                Self::DoraDropped,
                Self::Nf4,
            ],
            false => &[Self::Full, Self::Adapter, Self::Dropped, Self::DoraDropped],
        }
    }

    /// In the files.
    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Adapter => "lora",
            Self::Dropped => "dropped",
            Self::DoraDropped => "dora_dropped",
            Self::Nf4 => "nf4",
        }
    }
}

/// A way to compute the sums and the gradients of a micro-batch.
pub(crate) type Step =
    fn(&QwenModel, &Batch, StepOptions<'_>, f64, &mut GradientStore) -> Tensor<1>;

#[derive(Deserialize)]
struct Documents {
    documents: Vec<Sequence>,
    losses: BTreeMap<String, BTreeMap<String, f64>>,
    /// Of bitsandbytes.
    bf16_errors: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Meta {
    dropout: f32,
    /// Of the first micro-batch.
    seed: u64,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Compares loss and gradients of a case; `tolerance` is of the norm of a gradient.
pub(crate) fn check(case: &str, kind: Kind, step: Step, device: &Device, tolerance: f64) {
    let (found, expected) = both(case, kind, (step, ComputeDtype::F32), device);
    let (loss, expected_loss) = (found.0, expected.0);
    assert!(
        (loss - expected_loss).abs() < tolerance * expected_loss,
        "{case}, {kind:?}: loss {loss}, not {expected_loss}"
    );
    for (name, [off, all]) in distances(&found.1, &expected.1) {
        assert!(
            off < tolerance * all,
            "{case}, {kind:?}: {name}: {off} of {all}"
        );
    }
}

/// Compares the gradients of a case in bf16 with those of bitsandbytes: they are no further from the exact ones.
pub(crate) fn check_bf16(case: &str, step: Step, device: &Device) {
    let (found, expected) = both(case, Kind::Nf4, (step, ComputeDtype::Bf16), device);
    let distances = distances(&found.1, &expected.1);
    let [off, all] = [0, 1].map(|part| {
        let norms: Vec<f64> = distances.values().map(|norms| norms[part]).collect();
        norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt()
    });
    let file: Documents = read_json("gradients/documents.json");
    let theirs = file.bf16_errors[case];
    assert!(
        off <= theirs * all,
        "{case}: {} of the norm, and bitsandbytes {theirs}",
        off / all
    );
}

type Gradients = BTreeMap<String, Vec<f32>>;

/// Loss and gradients of a case, and PyTorch's.
fn both(
    case: &str,
    kind: Kind,
    (step, compute): (Step, ComputeDtype),
    device: &Device,
) -> ((f64, Gradients), (f64, Gradients)) {
    let own = golden(&format!("gradients/model/{case}"));
    let folder = match own.is_dir() {
        true => own,
        false => golden(&format!("model/{case}")),
    };
    let quantization = match kind {
        Kind::Nf4 => Quantization::Nf4,
        Kind::Full | Kind::Adapter | Kind::Dropped | Kind::DoraDropped => Quantization::None,
    };
    let mut model = load(&folder, quantization, device);
    model.set_compute_dtype(compute);
    let tensors = tensors(&golden(&format!("gradients/{case}.safetensors")));
    let file: Documents = read_json("gradients/documents.json");
    // Two micro-batches, whose gradients are added.
    let (first, second) = file.documents.split_at(2);
    let batches = [packed(first), packed(second)];
    if kind != Kind::Full {
        put_adapter(&mut model, kind, &tensors);
    }
    let (loss, store) = gradients(&model, kind, step, &batches);
    let names = store.names().map(str::to_owned);
    let found = names.map(|name| {
        let values = store.get(&name).unwrap().to_data();
        (name, values.iter::<f32>().collect())
    });
    let expected = expected_gradients(&model, kind, &tensors);
    (
        (loss, found.collect()),
        (file.losses[case][kind.name()], expected),
    )
}

/// Norms of the difference and of what is expected, by name.
fn distances<'g>(found: &'g Gradients, expected: &Gradients) -> BTreeMap<&'g str, [f64; 2]> {
    assert!(expected.len() > 20);
    assert!(expected.keys().eq(found.keys()));
    let pairs = found.iter().zip(expected.values());
    let norms = pairs.map(|((name, found), expected)| {
        assert_eq!(found.len(), expected.len(), "{name}");
        let differences: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        (name.as_str(), [norm(&differences), norm(expected)])
    });
    norms.collect()
}

/// The mean cross-entropy of the batches together, and its gradients.
fn gradients(model: &QwenModel, kind: Kind, step: Step, batches: &[Batch]) -> (f64, GradientStore) {
    let meta: Meta = read_json("gradients/meta.json");
    let num_targets: usize = batches.iter().map(Batch::num_targets).sum();
    let scale = 1.0 / num_targets as f64;
    let (mut store, mut sum) = (GradientStore::default(), 0.0);
    for (seed, batch) in (meta.seed..).zip(batches) {
        let has_dropout = matches!(kind, Kind::Dropped | Kind::DoraDropped);
        let dropout = has_dropout.then_some(Dropout {
            p: meta.dropout,
            seed,
        });
        let (trainable, adapters) = match kind {
            Kind::Full => (Trainable::Full, AdapterSelection::Base),
            Kind::Adapter | Kind::Dropped | Kind::DoraDropped | Kind::Nf4 => (
                Trainable::Adapter { slot: 0 },
                AdapterSelection::All { slot: 0, dropout },
            ),
        };
        let options = StepOptions {
            trainable,
            adapters: &adapters,
            checkpointing: Checkpointing::Auto,
            noise: None,
        };
        let sums = step(model, batch, options, scale, &mut store); // [3]
        sum += f64::from(sums.narrow(0, 0, 1).into_scalar::<f32>());
    }
    (scale * sum, store)
}

/// Puts the adapter of the file on all linear layers.
fn put_adapter(model: &mut QwenModel, kind: Kind, tensors: &Tensors) {
    let device = model.device();
    let modules: Vec<String> = model.linears().into_iter().map(|(name, _)| name).collect();
    for module in &modules {
        let tensor = |matrix| {
            let (shape, values) =
                tensors[&format!("adapter.{}", peft_name(module, matrix))].clone();
            let data = TensorData::new(values, [shape[0], shape[1]]);
            Tensor::<2>::from_data(data, (&device, DType::F32))
        };
        let mut weights = LoraWeights::new(tensor("A"), tensor("B"), 2.0);
        let linear = model.linear_mut(module).unwrap();
        if kind == Kind::DoraDropped {
            let (_, values) = &tensors[&format!("adapter.{}", peft_name(module, MAGNITUDE))];
            let data = TensorData::new(values.clone(), [values.len()]);
            let magnitude = Tensor::<1>::from_data(data, (&device, DType::F32));
            weights = weights.with_magnitude(&linear.weight, Some(magnitude));
        }
        linear.set_adapter(0, Some(weights));
    }
}

/// PyTorch's gradients, by the trainer's names.
fn expected_gradients(
    model: &QwenModel,
    kind: Kind,
    tensors: &Tensors,
) -> BTreeMap<String, Vec<f32>> {
    if kind == Kind::Full {
        let full = tensors.iter();
        let full = full.filter_map(|(name, (_, values))| {
            Some((name.strip_prefix("full.")?.to_owned(), values.clone()))
        });
        return full.collect();
    }
    let modules = model.linears().into_iter();
    let both = modules.flat_map(|(module, _)| {
        let of = |matrix| &tensors[&format!("{}.{}", kind.name(), peft_name(&module, matrix))];
        let (shape, b) = of("B");
        let b_t: Vec<f32> = (0..shape[1])
            .flat_map(|column| b.iter().skip(column).step_by(shape[1]).copied())
            .collect();
        let lengths = (kind == Kind::DoraDropped).then(|| {
            let name = format!("{module}.lora_magnitude_vector");
            (name, of(MAGNITUDE).1.clone())
        });
        let a = (format!("{module}.lora_A"), of("A").1.clone());
        [a, (format!("{module}.lora_B_t"), b_t)]
            .into_iter()
            .chain(lengths)
    });
    both.collect()
}

fn norm(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}
