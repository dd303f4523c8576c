//! Merged weights as a model folder.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo as FileEntry};
use safetensors::{Dtype, SafeTensorError};
use serde_json::{Value, json};

use super::encode::encode;
use super::error::io_error;
use super::{MergeError, MergedWeights, TensorInfo};
use crate::model_folder::{CONFIG, INDEX, SINGLE, copy_other_files, dense_config, write_json};

/// How far [`MergedWeights::write`] is.
#[derive(Clone, Copy, Debug)]
pub struct MergeProgress<'a> {
    /// The tensor that is done.
    pub tensor: &'a str,
    /// Bytes that are written.
    pub num_bytes: u64,
    /// Bytes of all tensors.
    pub total_bytes: u64,
}

/// What [`MergedWeights::write`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeSummary {
    /// Tensors that were written.
    pub num_tensors: usize,
    /// Tensors that the adapter changes.
    pub num_changed: usize,
    /// Bytes of all tensors.
    pub num_bytes: u64,
}

impl MergedWeights {
    /// Bytes of all tensors as [`Self::write`] would write them in `dtype`.
    ///
    /// # Errors
    /// When a tensor is no float tensor.
    pub fn num_bytes(&self, dtype: crate::Dtype) -> Result<u64, MergeError> {
        let mut total = 0;
        for (_, names) in self.files() {
            for name in names {
                total += stored_len(&self.stored_info(name, dtype)?);
            }
        }
        Ok(total)
    }

    /// Writes a model folder with all weights in `dtype` into the empty folder `output`: weight files named as those of the
    /// model, `config.json`, and what else lies beside the weights. `on_progress` is called after each tensor and may stop it.
    ///
    /// # Errors
    /// When a weight that is computed or converted is no finite number in its dtype, a file cannot be read or written, or
    /// `on_progress` stops it; then a part of the folder is there.
    pub fn write(
        &self,
        output: &Path,
        dtype: crate::Dtype,
        mut on_progress: impl FnMut(MergeProgress<'_>) -> ControlFlow<()>,
    ) -> Result<MergeSummary, MergeError> {
        let total_bytes = self.num_bytes(dtype)?;
        let mut summary = MergeSummary {
            num_changed: self.num_changed(),
            ..MergeSummary::default()
        };
        let files = self.files();
        let mut weight_map = BTreeMap::new();
        for (file, names) in &files {
            let mut infos = Vec::with_capacity(names.len());
            for name in names {
                infos.push((*name, self.stored_info(name, dtype)?));
                weight_map.insert(*name, *file);
            }
            let path = output.join(file);
            let create = File::create_new(&path).map_err(io_error(&path))?;
            let mut out = BufWriter::with_capacity(1 << 20, create);
            // As the safetensors crate does, so that each tensor is aligned.
            infos.sort_by_key(|(_, info)| Reverse(info.dtype));
            let header = header(&infos).map_err(|e| io_error(&path)(io::Error::other(e)))?;
            out.write_all(&header).map_err(io_error(&path))?;
            for (name, info) in &infos {
                self.write_tensor(name, info, &mut out, &path)?;
                self.release(name);
                summary.num_tensors += 1;
                summary.num_bytes += stored_len(info);
                let progress = MergeProgress {
                    tensor: name,
                    num_bytes: summary.num_bytes,
                    total_bytes,
                };
                if on_progress(progress).is_break() {
                    return Err(MergeError::Stopped);
                }
            }
            sync(out).map_err(io_error(&path))?;
        }
        self.write_config(output, dtype)?;
        if files.iter().any(|(file, _)| *file != SINGLE) {
            let metadata = json!({"total_size": summary.num_bytes});
            let index = json!({"metadata": metadata, "weight_map": weight_map});
            write_json(&output.join(INDEX), &index)?;
        }
        copy_other_files(self.dir(), output)?;
        Ok(summary)
    }

    /// What a tensor is in the new folder.
    fn stored_info(&self, name: &str, dtype: crate::Dtype) -> Result<TensorInfo, MergeError> {
        let mut info = self.info(name)?;
        info.dtype = match dtype {
            crate::Dtype::Auto => info.dtype,
            crate::Dtype::F32 => Dtype::F32,
            crate::Dtype::Bf16 => Dtype::BF16,
            crate::Dtype::F16 => Dtype::F16,
        };
        Ok(info)
    }

    fn write_tensor(
        &self,
        name: &str,
        info: &TensorInfo,
        out: &mut impl Write,
        path: &Path,
    ) -> Result<(), MergeError> {
        if let Some(bytes) = self.unchanged(name, info.dtype) {
            return out.write_all(bytes).map_err(io_error(path));
        }
        let mut bytes = Vec::new();
        self.for_each_block(name, |values| {
            check_range(name, info.dtype, values)?;
            bytes.clear();
            encode(info.dtype, values, &mut bytes);
            out.write_all(&bytes).map_err(io_error(path))
        })
    }

    /// `config.json` of the model, which says of the weights what they are now.
    fn write_config(&self, output: &Path, dtype: crate::Dtype) -> Result<(), MergeError> {
        let name = match dtype {
            crate::Dtype::Auto => None,
            crate::Dtype::F32 => Some("float32"),
            crate::Dtype::Bf16 => Some("bfloat16"),
            crate::Dtype::F16 => Some("float16"),
        };
        let is_tied = self.config().tie_word_embeddings;
        let config = dense_config(self.dir(), is_tied, name)?;
        Ok(write_json(&output.join(CONFIG), &Value::Object(config))?)
    }
}

/// Refuses what would become infinite.
pub(crate) fn check_range(name: &str, dtype: Dtype, values: &[f32]) -> Result<(), MergeError> {
    let (dtype, largest) = match dtype {
        Dtype::F16 => ("f16", half::f16::MAX.to_f32()),
        Dtype::BF16 => ("bf16", half::bf16::MAX.to_f32()),
        _ => return Ok(()),
    };
    check_largest(name, (dtype, largest), values)
}

/// Refuses what is larger than the largest number of a type.
pub(crate) fn check_largest(
    name: &str,
    (dtype, largest): (&'static str, f32),
    values: &[f32],
) -> Result<(), MergeError> {
    match values.iter().find(|value| value.abs() > largest) {
        None => Ok(()),
        Some(&found) => Err(MergeError::TooLarge {
            name: name.to_owned(),
            found,
            dtype,
            largest,
        }),
    }
}

fn stored_len(info: &TensorInfo) -> u64 {
    (info.len() * info.dtype.bitsize() / 8) as u64
}

/// Length and header of a safetensors file.
fn header(infos: &[(&str, TensorInfo)]) -> Result<Vec<u8>, SafeTensorError> {
    let mut start = 0;
    let entries = infos.iter().map(|(name, info)| {
        let end = start + stored_len(info) as usize;
        let entry = FileEntry {
            dtype: info.dtype,
            shape: info.shape.clone(),
            data_offsets: (start, end),
        };
        start = end;
        ((*name).to_owned(), entry)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), entries.collect())?;
    let mut text = serde_json::to_string(&metadata)?;
    // So that the data is aligned.
    let padding = text.len().next_multiple_of(8) - text.len();
    text.extend(std::iter::repeat_n(' ', padding));
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.into_bytes());
    Ok(header)
}

/// Waits until a file is on the disk.
pub(crate) fn sync(out: BufWriter<File>) -> io::Result<()> {
    let file = out.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()
}
