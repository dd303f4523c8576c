//! The weights of a model folder with a LoRA adapter added to them, `W + s B A`, read a few rows at a time.
//!
//! Sums are f32. A weight is rounded once, when it is written: [`MergedWeights::write`] makes a model folder of it, and
//! [`crate::gguf`] a GGUF file.
//!
//! Source: `merge_and_unload` of PEFT (`peft/tuners/lora/layer.py`).

mod encode;
mod error;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::tensor::{DType, Device};
use lora_4bit::bnb;
use lora_4bit::nf4::Nf4Data;
use lora_4bit::peft::{LoraAdapter, LoraMatrices};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::config::QwenConfig;
use crate::load::LoadOptions;
use crate::model::QwenModel;
use crate::pooling::Architecture;

pub(crate) use encode::encode;
pub use error::MergeError;
pub use write::{MergeOptions, MergeProgress, MergeSummary};
pub(crate) use write::{check_range, sync};

use encode::decode;

/// Values that are decoded at a time.
const VALUES_AT_A_TIME: usize = 1 << 22;

/// The tensors of a model folder, as an adapter changes them.
///
/// Only the rows that are asked for are in memory. NF4 weights of bitsandbytes are unpacked.
#[derive(Debug)]
pub struct MergedWeights {
    checkpoint: Checkpoint,
    config: QwenConfig,
    /// What is added, by the name of the tensor.
    changes: BTreeMap<String, Change>,
}

/// What an adapter adds to a tensor: `scaling * B A`.
#[derive(Debug)]
struct Change {
    matrices: LoraMatrices,
    scaling: f32,
}

/// What is known of a tensor before it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The dtype of the file; of an NF4 weight, the dtype that it had before.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of values in a row, the last dimension.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The rows, a few at a time.
    pub(crate) fn row_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = match self.width() {
            0 => 0,
            width => self.len() / width,
        };
        let step = (VALUES_AT_A_TIME / self.width().max(1)).max(1);
        (0..rows)
            .step_by(step)
            .map(move |start| start..(start + step).min(rows))
    }
}

impl MergedWeights {
    /// Opens the model folder `dir`, to be read with `adapter` added to its weights.
    ///
    /// # Errors
    /// When the model cannot be loaded, or the adapter was made for another one.
    pub fn open(dir: &Path, adapter: Option<LoraAdapter>) -> Result<Self, MergeError> {
        // A folder that could not be served makes no good folder.
        let options = LoadOptions {
            lm_head: Architecture::of(dir)? == Architecture::CausalLm,
            ..LoadOptions::default()
        };
        let mut model = QwenModel::load(dir, &options, &Device::flex())?;
        let config = QwenConfig::load(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let mut changes = BTreeMap::new();
        if let Some(adapter) = adapter {
            model.check_adapter(&adapter)?;
            let LoraAdapter { config, modules } = adapter;
            for (module, matrices) in modules {
                let scaling = config.scaling_for(&module) as f32;
                let name = stored_name(&checkpoint, &module);
                changes.insert(name, Change { matrices, scaling });
            }
        }
        Ok(Self {
            checkpoint,
            config,
            changes,
        })
    }

    /// The architecture.
    pub fn config(&self) -> &QwenConfig {
        &self.config
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.checkpoint.dir()
    }

    /// The number of tensors that the adapter changes.
    pub fn num_changed(&self) -> usize {
        self.changes.len()
    }

    /// Whether a tensor is in 4 bits.
    pub fn is_nf4(&self, name: &str) -> bool {
        self.checkpoint.contains(&format!("{name}.{NF4_STATE}"))
    }

    /// Whether a weight of the folder is in 4 bits.
    pub fn is_quantized(&self) -> bool {
        self.checkpoint
            .names()
            .any(|name| name.ends_with(NF4_STATE))
    }

    /// The weight files, each with its tensors in their order. The parts of an NF4 weight are one tensor.
    pub fn files(&self) -> Vec<(&str, Vec<&str>)> {
        let mut files = self.checkpoint.files();
        for (_, names) in &mut files {
            names.retain(|name| !self.is_part_of_nf4(name));
        }
        files
    }

    /// What is known of a tensor.
    ///
    /// # Errors
    /// When the tensor is missing, or is no float tensor.
    pub fn info(&self, name: &str) -> Result<TensorInfo, MergeError> {
        if let Some(nf4) = self.nf4(name)? {
            let dtype = match nf4.dtype {
                DType::BF16 => Dtype::BF16,
                DType::F16 => Dtype::F16,
                _ => Dtype::F32,
            };
            let shape = nf4.shape.to_vec();
            return Ok(TensorInfo { dtype, shape });
        }
        let view = self.view(name)?;
        match view.dtype() {
            Dtype::BF16 | Dtype::F16 | Dtype::F32 => Ok(TensorInfo {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
            }),
            other => Err(MergeError::Dtype {
                dir: self.dir().to_owned(),
                name: name.to_owned(),
                found: other,
            }),
        }
    }

    /// Rows of a tensor, with what the adapter adds. A tensor of one dimension is one row.
    ///
    /// # Errors
    /// As [`Self::info`], and when a sum is no finite number.
    ///
    /// # Panics
    /// When the tensor has fewer rows.
    pub fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, MergeError> {
        let info = self.info(name)?;
        let width = info.width();
        let range = rows.start * width..rows.end * width;
        let mut values = match self.nf4(name)? {
            Some(nf4) => nf4.dequantize()[range.clone()].to_vec(),
            None => {
                let view = self.view(name)?;
                let size = view.dtype().bitsize() / 8;
                decode(
                    view.dtype(),
                    &view.data()[range.start * size..range.end * size],
                )
            }
        };
        if let Some(change) = self.changes.get(name) {
            change.add_to(&mut values, rows);
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(MergeError::NotFinite {
                dir: self.dir().to_owned(),
                name: name.to_owned(),
                index: range.start + index,
                found: values[index],
                is_changed: self.changes.contains_key(name),
            }),
        }
    }

    /// The bytes of the file, where they are what a reader of the merged tensor in `dtype` should see.
    pub(crate) fn unchanged(&self, name: &str, dtype: Dtype) -> Option<Cow<'_, [u8]>> {
        let view = self.checkpoint.view(name)?;
        let is_same = view.dtype() == dtype && !self.changes.contains_key(name);
        is_same.then(|| Cow::Borrowed(view.data()))
    }

    /// Takes the pages of a tensor out of this process's memory.
    pub(crate) fn release(&self, name: &str) {
        self.checkpoint.release(name);
    }

    fn view(&self, name: &str) -> Result<safetensors::tensor::TensorView<'_>, MergeError> {
        self.checkpoint
            .view(name)
            .ok_or_else(|| MergeError::Missing {
                dir: self.dir().to_owned(),
                name: name.to_owned(),
            })
    }

    fn nf4(&self, name: &str) -> Result<Option<Nf4Data>, MergeError> {
        match name.ends_with(".weight") {
            true => Ok(bnb::read_nf4(&|part| self.checkpoint.view(part), name)?),
            false => Ok(None),
        }
    }

    /// Whether a tensor is a part beside an NF4 weight, such as its scales.
    fn is_part_of_nf4(&self, name: &str) -> bool {
        name.split_once(".weight.").is_some_and(|(module, _)| {
            let state = format!("{module}.weight.{NF4_STATE}");
            self.checkpoint.contains(&state)
        })
    }
}

const NF4_STATE: &str = "quant_state.bitsandbytes__nf4";

/// The tensor of a module. A decoder that was saved without its head has no `model.` in its names.
fn stored_name(checkpoint: &Checkpoint, module: &str) -> String {
    let name = format!("{module}.weight");
    match name.strip_prefix("model.") {
        Some(rest) if !checkpoint.contains(&name) => rest.to_owned(),
        _ => name,
    }
}

impl Change {
    /// Adds rows of `scaling * B A` to rows of the weight.
    fn add_to(&self, values: &mut [f32], rows: Range<usize>) {
        let LoraMatrices {
            a,
            b,
            r,
            in_features,
            ..
        } = &self.matrices;
        let b = &b[rows.start * r..rows.end * r];
        values
            .par_chunks_mut(*in_features)
            .zip(b.par_chunks(*r))
            .for_each_init(
                || vec![0.0f32; *in_features],
                |delta, (row, b)| {
                    delta.fill(0.0);
                    for (factor, a) in b.iter().zip(a.chunks(*in_features)) {
                        for (sum, a) in delta.iter_mut().zip(a) {
                            *sum += factor * a;
                        }
                    }
                    for (value, delta) in row.iter_mut().zip(delta.iter()) {
                        *value += self.scaling * delta;
                    }
                },
            );
    }
}
