//! Adapters that start as a part of the base weights (PiSSA, OLoRA).
//!
//! While such an adapter is trained, the base is without what the adapter started as: `W - s·B₀·A₀`. What is written is a
//! plain adapter of twice the rank for the base as it was: `s·(B·A - B₀·A₀) = s·[B, -B₀]·[A; A₀]`, as PEFT's
//! `path_initial_model_for_weight_conversion` makes it. Both halves of it are read to go on with a run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Tensor, TensorData};
use lora_4bit::Weight;
use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices};
use model_qwen::QwenModel;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tracing::info;

use super::low_rank::{normal, qr, svd};
use super::read::read_adapter;
use crate::config::InitLora;

/// Time between lines of the log while layers are decomposed, which takes minutes for large models.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// A and B by module.
pub type Matrices = BTreeMap<String, LoraMatrices>;

/// What an adapter in training is, to be read back.
#[derive(Clone, Debug)]
pub struct AdapterForm {
    /// The configuration it is trained with.
    pub config: LoraConfig,
    /// What the base has lost to it.
    pub start: Option<Matrices>,
}

impl AdapterForm {
    /// The adapter in `slot`, for the base as it was.
    #[must_use]
    pub fn read(&self, model: &QwenModel, slot: usize) -> LoraAdapter {
        let adapter = read_adapter(model, slot, &self.config);
        match &self.start {
            Some(start) => converted(adapter, start),
            None => adapter,
        }
    }
}

/// Gives a new adapter the start that `init` says.
pub(super) fn start_from(adapter: &mut LoraAdapter, init: InitLora, model: &QwenModel, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x70_69_73_73_61);
    let linears = model.linears().into_iter();
    let (mut done, mut told) = (0usize, Instant::now());
    for (name, linear) in linears {
        let scaling = adapter.config.scaling_for(&name);
        let Some(matrices) = adapter.modules.get_mut(&name) else {
            continue;
        };
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            info!("--init-lora-weights {init}: {done} layers are taken apart");
        }
        done += 1;
        let rank = matrices.r;
        let weight = || linear.weight.dequantize();
        match init {
            InitLora::Uniform => {}
            InitLora::Gaussian => {
                let deviation = 1.0 / rank as f32;
                let values = matrices.a.iter_mut();
                values.for_each(|value| *value = deviation * normal(&mut rng));
            }
            InitLora::Pissa { iterations } => {
                let found = svd(&weight(), rank, iterations, &mut rng);
                let roots: Vec<f64> = (found.values.iter())
                    .map(|value| (value / scaling).sqrt())
                    .collect();
                let scaled = |rows: &[Vec<f64>]| -> Vec<Vec<f32>> {
                    let rows = rows.iter().zip(&roots);
                    rows.map(|(row, root)| row.iter().map(|x| (x * root) as f32).collect())
                        .collect()
                };
                fill(matrices, &scaled(&found.right), &scaled(&found.left));
            }
            InitLora::Olora => {
                let (q, r) = qr(&weight(), rank);
                fill(matrices, &r, &q);
            }
        }
    }
}

/// Writes the rows of A, `[rank, in]`, and the columns of B, `[rank, out]`.
fn fill(matrices: &mut LoraMatrices, a: &[Vec<f32>], b: &[Vec<f32>]) {
    for (row, values) in matrices.a.chunks_mut(matrices.in_features).zip(a) {
        row.copy_from_slice(values);
    }
    for (k, column) in b.iter().enumerate() {
        let places = matrices.b.iter_mut().skip(k).step_by(matrices.r);
        places
            .zip(column)
            .for_each(|(place, value)| *place = *value);
    }
}

/// Takes `s·B₀·A₀` out of the base weights, which keep their dtype.
///
/// # Errors
/// The name of a layer whose weight is not dense.
pub fn take_out(
    model: &mut QwenModel,
    start: &Matrices,
    config: &LoraConfig,
) -> Result<(), String> {
    for (name, matrices) in start {
        let Some(linear) = model.linear_mut(name) else {
            continue;
        };
        let Weight::Dense(weight) = &linear.weight else {
            return Err(name.clone());
        };
        let upload = |values: &[f32], shape: [usize; 2]| {
            let data = TensorData::new(values.to_vec(), shape);
            Tensor::<2>::from_data(data, (&weight.device(), DType::F32))
        };
        let (a, b) = (
            upload(&matrices.a, [matrices.r, matrices.in_features]),
            upload(&matrices.b, [matrices.out_features, matrices.r]),
        );
        let part = b.matmul(a) * (config.scaling_for(name) as f32); // [out, in]
        let dtype = weight.dtype();
        let rest = weight.clone().cast(DType::F32) - part;
        linear.weight = Weight::Dense(rest.cast(dtype));
    }
    Ok(())
}

/// The plain adapter of twice the rank: the difference to what the base has lost.
fn converted(mut adapter: LoraAdapter, start: &Matrices) -> LoraAdapter {
    let config = &mut adapter.config;
    config.r *= 2;
    config.lora_alpha *= match config.use_rslora {
        true => std::f64::consts::SQRT_2,
        false => 2.0,
    };
    for (name, matrices) in &mut adapter.modules {
        let Some(start) = start.get(name) else {
            continue;
        };
        matrices.a.extend(&start.a);
        let rows = matrices.b.chunks(matrices.r).zip(start.b.chunks(start.r));
        matrices.b = rows
            .flat_map(|(own, start)| own.iter().copied().chain(start.iter().map(|b| -b)))
            .collect();
        matrices.r += start.r;
    }
    adapter
}

/// The two halves of what `converted` made: the adapter as it is trained with `config`, and what the base has lost to it.
/// `None` where the ranks are not twice those of `config`.
#[must_use]
pub fn split(adapter: LoraAdapter, config: &LoraConfig) -> Option<(LoraAdapter, Matrices)> {
    let (mut modules, mut start) = (Matrices::new(), Matrices::new());
    for (name, whole) in adapter.modules {
        let r = config.rank_for(&name);
        if whole.r != 2 * r {
            return None;
        }
        let half = |a: &[f32], from: usize, sign: f32| LoraMatrices {
            a: a.to_vec(),
            b: (whole.b.chunks(whole.r))
                .flat_map(|row| row[from..from + r].iter().map(move |b| sign * b))
                .collect(),
            r,
            magnitude: None,
            ..whole
        };
        let (own, first) = whole.a.split_at(r * whole.in_features);
        modules.insert(name.clone(), half(own, 0, 1.0));
        start.insert(name, half(first, r, -1.0));
    }
    let adapter = LoraAdapter {
        config: LoraConfig {
            base_model_name_or_path: adapter.config.base_model_name_or_path,
            ..config.clone()
        },
        modules,
        saved: adapter.saved,
    };
    Some((adapter, start))
}
