//! The weights of a model folder with a LoRA adapter added to them, `W + s B A`, its rows brought to the lengths of DoRA.
//!
//! Sums are f32. A weight is rounded once, when it is written: [`MergedWeights::write`] makes a model folder of it, and
//! [`crate::gguf`] a GGUF file.
//!
//! Source: `merge_and_unload` of PEFT (`peft/tuners/lora/layer.py`).

mod encode;
mod error;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::tensor::DType;
use lora_4bit::bnb;
use lora_4bit::peft::{LoraAdapter, LoraMatrices, SavedModule};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::adapter::{AdapterError, EMBED_TOKENS, LM_HEAD, check_and_warn};
use crate::checkpoint::Checkpoint;
use crate::config::QwenConfig;
use crate::load::{LoadOptions, open};
use crate::model::QwenModel;
use crate::pooling::Architecture;

pub(crate) use encode::encode;
pub use error::MergeError;
pub use write::{MergeProgress, MergeSummary};
pub(crate) use write::{check_largest, sync};

/// Values that are decoded at a time.
const VALUES_AT_A_TIME: usize = 1 << 22;

/// The tensors of a model folder, as an adapter changes them.
///
/// A few rows are in memory at a time; of an NF4 weight of bitsandbytes the whole matrix, unpacked.
#[derive(Debug)]
pub struct MergedWeights {
    checkpoint: Checkpoint,
    config: QwenConfig,
    /// In and out features of the linear layers, by name.
    linears: BTreeMap<String, [usize; 2]>,
    /// What is added, by the name of the tensor.
    changes: BTreeMap<String, Change>,
    /// What takes the place of a tensor, by its name.
    replaced: BTreeMap<String, SavedModule>,
    /// The model had no head of its own, and has one with the adapter: the tensor that it was and, if it is not replaced, is.
    untied: Option<String>,
}

/// The tensor of a head.
const HEAD: &str = "lm_head.weight";

/// What a file holds of a tensor.
enum Values<'a> {
    Floats(TensorView<'a>),
    /// Dequantized whole.
    Nf4(Vec<f32>),
    /// Of the adapter.
    Saved(&'a [f32]),
}

/// What an adapter adds to a tensor: `scaling * B A`; with DoRA the sum's rows have their lengths.
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
        let model = QwenModel::load_to_check(dir, &options)?;
        let checkpoint = open(dir, &model.config)?;
        let mut weights = Self {
            checkpoint,
            linears: model.linear_shapes(),
            config: model.config,
            changes: BTreeMap::new(),
            replaced: BTreeMap::new(),
            untied: None,
        };
        if let Some(mut adapter) = adapter {
            weights.check_adapter(&adapter)?;
            adapter.share_saved(weights.config.tie_word_embeddings);
            let LoraAdapter {
                config,
                modules,
                saved,
            } = adapter;
            for (module, matrices) in modules {
                let scaling = config.scaling_for(&module) as f32;
                let name = weights.checkpoint.stored(&format!("{module}.weight"));
                weights.changes.insert(name, Change { matrices, scaling });
            }
            weights.replace(saved);
        }
        Ok(weights)
    }

    /// Puts what an adapter brings in the place of the model's own. A head that was the embedding becomes one of its own unless
    /// both are replaced by the same.
    fn replace(&mut self, mut saved: BTreeMap<String, SavedModule>) {
        let embedding = self.checkpoint.stored(&format!("{EMBED_TOKENS}.weight"));
        let are_equal = saved.get(EMBED_TOKENS) == saved.get(LM_HEAD);
        if self.config.tie_word_embeddings && !saved.is_empty() {
            if are_equal {
                saved.remove(LM_HEAD);
            } else {
                self.config.tie_word_embeddings = false;
                self.untied = Some(embedding.clone());
            }
        }
        for (module, weight) in saved {
            let name = match module == LM_HEAD {
                true => HEAD.to_owned(),
                false => embedding.clone(),
            };
            self.replaced.insert(name, weight);
        }
    }

    /// The tensor of the files that a name means: a head that has become one of its own was the embedding.
    fn source<'n>(&'n self, name: &'n str) -> &'n str {
        match &self.untied {
            Some(embedding) if name == HEAD => embedding,
            _ => name,
        }
    }

    /// Whether the model has the layers that an adapter has matrices for. Layers that the adapter targets and has no matrices of are
    /// named in a warning.
    ///
    /// # Errors
    /// When the adapter was made for another architecture.
    pub fn check_adapter(&self, adapter: &LoraAdapter) -> Result<(), AdapterError> {
        let embedding = [self.config.vocab_size, self.config.hidden_size];
        check_and_warn(adapter, &self.linears, embedding)
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
        self.changes.len() + self.replaced.len()
    }

    /// Whether a tensor is in 4 bits.
    pub fn is_nf4(&self, name: &str) -> bool {
        self.checkpoint.contains(&format!("{name}.{NF4_STATE}"))
    }

    /// The weight files, each with its tensors in their order. The parts of an NF4 weight are one tensor.
    pub fn files(&self) -> Vec<(&str, Vec<&str>)> {
        let mut files = self.checkpoint.files();
        for (_, names) in &mut files {
            names.retain(|name| !self.is_part_of_nf4(name));
            let has_head = names.contains(&HEAD);
            if let Some(embedding) = &self.untied
                && names.contains(&embedding.as_str())
                && !has_head
                && !self.checkpoint.contains(HEAD)
            {
                names.push(HEAD);
            }
        }
        files
    }

    /// What is known of a tensor.
    ///
    /// # Errors
    /// When the tensor is missing, or is no float tensor.
    pub fn info(&self, name: &str) -> Result<TensorInfo, MergeError> {
        let name = self.source(name);
        let nf4 = match name.ends_with(".weight") {
            true => bnb::read_nf4_shape(&|part| self.checkpoint.view(part), name)?,
            false => None,
        };
        if let Some((shape, dtype)) = nf4 {
            let dtype = match dtype {
                DType::BF16 => Dtype::BF16,
                DType::F16 => Dtype::F16,
                _ => Dtype::F32,
            };
            let shape = shape.to_vec();
            return Ok(TensorInfo { dtype, shape });
        }
        let view = self.view(name)?;
        match view.dtype() {
            Dtype::BF16 | Dtype::F16 | Dtype::F32 => Ok(TensorInfo {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
            }),
            other => Err(self.wrong_dtype(name, other)),
        }
    }

    /// Calls `each` with the values of a tensor, with what the adapter adds, a few whole rows at a time. A tensor of one
    /// dimension is one row.
    pub(crate) fn for_each_block<E: From<MergeError>>(
        &self,
        name: &str,
        mut each: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let info = self.info(name)?;
        let values = self.values(name)?;
        for rows in info.row_blocks() {
            let range = rows.start * info.width()..rows.end * info.width();
            let mut block = match &values {
                Values::Nf4(values) => values[range.clone()].to_vec(),
                Values::Saved(values) => values[range.clone()].to_vec(),
                Values::Floats(view) => {
                    let size = view.dtype().bitsize() / 8;
                    let bytes = &view.data()[range.start * size..range.end * size];
                    let decoded = bnb::decode_floats(view.dtype(), bytes);
                    decoded
                        .ok_or_else(|| self.wrong_dtype(name, view.dtype()))?
                        .1
                }
            };
            let change = self.changes.get(name);
            if let Some(change) = change {
                change.add_to(&mut block, rows);
            }
            if let Some(index) = block.iter().position(|value| !value.is_finite()) {
                return Err(E::from(MergeError::NotFinite {
                    dir: self.dir().to_owned(),
                    name: name.to_owned(),
                    index: range.start + index,
                    found: block[index],
                    is_changed: change.is_some() || self.replaced.contains_key(name),
                }));
            }
            each(&block)?;
        }
        Ok(())
    }

    /// The bytes of the file, where they are what a reader of the merged tensor in `dtype` should see.
    pub(crate) fn unchanged(&self, name: &str, dtype: Dtype) -> Option<&[u8]> {
        let view = self.checkpoint.view(self.source(name))?;
        let is_changed = self.changes.contains_key(name) || self.replaced.contains_key(name);
        let is_same = view.dtype() == dtype && !is_changed;
        is_same.then(|| view.data())
    }

    /// Takes the pages of a tensor out of this process's memory.
    pub(crate) fn release(&self, name: &str) {
        self.checkpoint.release(name);
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>, MergeError> {
        self.checkpoint
            .view(name)
            .ok_or_else(|| MergeError::Missing {
                dir: self.dir().to_owned(),
                name: name.to_owned(),
            })
    }

    /// What the file holds of a tensor.
    fn values(&self, name: &str) -> Result<Values<'_>, MergeError> {
        if let Some(saved) = self.replaced.get(name) {
            return Ok(Values::Saved(&saved.weight));
        }
        let name = self.source(name);
        let nf4 = match name.ends_with(".weight") {
            true => bnb::read_nf4(&|part| self.checkpoint.view(part), name)?,
            false => None,
        };
        match nf4 {
            Some(nf4) => Ok(Values::Nf4(nf4.dequantize())),
            None => self.view(name).map(Values::Floats),
        }
    }

    fn wrong_dtype(&self, name: &str, found: Dtype) -> MergeError {
        MergeError::Dtype {
            dir: self.dir().to_owned(),
            name: name.to_owned(),
            found,
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

impl Change {
    /// Adds rows of `scaling * B A` to rows of the weight.
    fn add_to(&self, values: &mut [f32], rows: Range<usize>) {
        let LoraMatrices {
            a,
            b,
            r,
            in_features,
            magnitude,
            ..
        } = &self.matrices;
        let b = &b[rows.start * r..rows.end * r];
        let lengths = magnitude.as_ref().map(|lengths| &lengths[rows]);
        values
            .par_chunks_mut(*in_features)
            .zip(b.par_chunks(*r))
            .enumerate()
            .for_each_init(
                || vec![0.0f32; *in_features],
                |delta, (index, (row, b))| {
                    let length = lengths.and_then(|lengths| lengths.get(index));
                    delta.fill(0.0);
                    for (factor, a) in b.iter().zip(a.chunks(*in_features)) {
                        for (sum, a) in delta.iter_mut().zip(a) {
                            *sum += factor * a;
                        }
                    }
                    for (value, delta) in row.iter_mut().zip(delta.iter()) {
                        *value += self.scaling * delta;
                    }
                    if let Some(&length) = length {
                        scale_to(row, length);
                    }
                },
            );
    }
}

/// Brings a row to a length; one of zeros stays as it is.
fn scale_to(row: &mut [f32], length: f32) {
    let squares = row.iter().map(|value| f64::from(*value).powi(2));
    let found = squares.sum::<f64>().sqrt();
    if found > 0.0 {
        let factor = (f64::from(length) / found) as f32;
        row.iter_mut().for_each(|value| *value *= factor);
    }
}
