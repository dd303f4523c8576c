//! A model folder as one GGUF file.

use std::path::Path;

use super::GgufError;
use super::metadata::{Entry, architecture, general};
use super::names::gguf_name;
use super::quants::{BLOCK_LEN, TensorType};
use super::vocabulary::vocabulary;
use super::writer::{GgufWriter, Slot, data_len};
use crate::merge::{MergeError, MergeProgress, MergedWeights, TensorInfo, check_largest};
use crate::pooling::Architecture;

/// What a GGUF file of a model will hold.
#[derive(Debug)]
pub struct GgufPlan {
    metadata: Vec<Entry>,
    /// The tensors' names in the model folder.
    names: Vec<String>,
    /// The tensors in the file, in the same order.
    slots: Vec<Slot>,
    notes: Vec<String>,
}

impl GgufPlan {
    /// The file of a model whose matrices have the type `kind`. `name` is what programs show as its name.
    ///
    /// The output head has at least 8 bits: with [`TensorType::Q4_0`] it is [`TensorType::Q8_0`]. Vectors are
    /// [`TensorType::F32`], and so is nothing else unless `kind` says so. A matrix whose rows aren't whole blocks is
    /// [`TensorType::F16`].
    ///
    /// # Errors
    /// When the model has no lm_head, or the format has no words for a tensor, the frequencies or the tokenizer.
    pub fn new(weights: &MergedWeights, name: &str, kind: TensorType) -> Result<Self, GgufError> {
        let (dir, config) = (weights.dir(), weights.config());
        if Architecture::of(dir)? != Architecture::CausalLm {
            return Err(GgufError::NoHead {
                dir: dir.to_owned(),
            });
        }
        let mut metadata = general(config, name, kind);
        metadata.extend(architecture(config)?);
        metadata.extend(vocabulary(dir, config)?);
        let mut plan = Self {
            metadata,
            names: Vec::new(),
            slots: Vec::new(),
            notes: Vec::new(),
        };
        let is_tied = config.tie_word_embeddings;
        for name in weights.files().into_iter().flat_map(|(_, names)| names) {
            // Old files store the frequencies; a tied head may be stored once more.
            let is_left_out =
                name.ends_with("rotary_emb.inv_freq") || (is_tied && name == "lm_head.weight");
            if is_left_out {
                continue;
            }
            // A decoder that was saved alone has no `model.` in its names.
            let gguf_name = gguf_name(name).or_else(|| gguf_name(&format!("model.{name}")));
            let Some(gguf_name) = gguf_name else {
                return Err(GgufError::Name {
                    dir: dir.to_owned(),
                    name: name.to_owned(),
                });
            };
            let head = match is_tied {
                true => "token_embd.weight",
                false => "output.weight",
            };
            plan.add(name, gguf_name, &weights.info(name)?, (kind, head));
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        name: &str,
        gguf_name: String,
        info: &TensorInfo,
        (kind, head): (TensorType, &str),
    ) {
        let kind = match kind {
            _ if info.shape.len() < 2 => TensorType::F32,
            kind if kind.is_quantized() && !info.width().is_multiple_of(BLOCK_LEN) => {
                let width = info.width();
                self.notes.push(format!(
                    "{gguf_name}: F16, because its rows of {width} values are no whole blocks of {BLOCK_LEN}"
                ));
                TensorType::F16
            }
            TensorType::Q4_0 if gguf_name == head => TensorType::Q8_0,
            kind => kind,
        };
        let slot = Slot {
            name: gguf_name,
            shape: info.shape.clone(),
            kind,
        };
        self.names.push(name.to_owned());
        self.slots.push(slot);
    }

    /// What the user should know of the file.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Number of tensors.
    pub fn num_tensors(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of all tensors.
    pub fn num_bytes(&self) -> u64 {
        data_len(&self.slots)
    }
}

/// Writes a model as the new file `path`. `on_progress` is called after each tensor and may stop it.
///
/// # Errors
/// When a weight cannot be read, one that is converted is no finite number in its type, the file cannot be written, or
/// `on_progress` stops it; a part of the file may be there.
pub fn write_model(
    weights: &MergedWeights,
    plan: &GgufPlan,
    path: &Path,
    mut on_progress: impl FnMut(MergeProgress<'_>) -> std::ops::ControlFlow<()>,
) -> Result<(), GgufError> {
    let mut file = GgufWriter::create(path, &plan.metadata, &plan.slots)?;
    let (mut num_bytes, total_bytes) = (0, plan.num_bytes());
    for (name, slot) in plan.names.iter().zip(&plan.slots) {
        write_tensor(weights, (name, slot), &mut file)?;
        weights.release(name);
        num_bytes += slot.num_bytes() as u64;
        let progress = MergeProgress {
            tensor: name,
            num_bytes,
            total_bytes,
        };
        if on_progress(progress).is_break() {
            return Err(MergeError::Stopped.into());
        }
    }
    file.finish()
}

fn write_tensor(
    weights: &MergedWeights,
    (name, slot): (&str, &Slot),
    file: &mut GgufWriter,
) -> Result<(), GgufError> {
    let dtype = slot.kind.dtype();
    if let Some(bytes) = dtype.and_then(|dtype| weights.unchanged(name, dtype)) {
        file.write(bytes)?;
        return file.end(slot);
    }
    let mut bytes = Vec::new();
    weights.for_each_block(name, |values| {
        check_largest(name, (slot.kind.name(), slot.kind.largest()), values)?;
        bytes.clear();
        slot.kind.encode(values, &mut bytes);
        file.write(&bytes)
    })?;
    file.end(slot)
}
