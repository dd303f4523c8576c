//! Quantizing the weights of one safetensors file, tensor by tensor.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorView, serialize_to_file};

use super::{BnbError, OwnedTensor, decode_floats, nf4_tensors, quantize_tensor};

/// The longest header that safetensors files may have, in bytes.
const MAX_HEADER_LEN: u64 = 100_000_000;

/// Why a file cannot be quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeFileError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// It is no safetensors file.
    #[error("{}: expected a safetensors file, found {found}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// A tensor that cannot be quantized.
    #[error("{}: {error}", .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor, and what is wrong with it.
        error: BnbError,
    },
    /// The new file cannot be written.
    #[error("cannot write {}: {message}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Whoever looked on has stopped it.
    #[error("stopped")]
    Stopped,
}

/// A safetensors file of which only the header is in memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

/// What [`TensorFile::quantize_to`] has written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantizedFile {
    /// Name and size in bytes of each tensor.
    pub tensors: Vec<(String, usize)>,
    /// Weights that were quantized.
    pub num_weights: usize,
}

impl TensorFile {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// If the file cannot be read, is no safetensors file, or has another length than its header says.
    pub fn open(path: &Path) -> Result<Self, QuantizeFileError> {
        let read = |error| QuantizeFileError::Read {
            path: path.to_owned(),
            error,
        };
        let format = |found: String| QuantizeFileError::Format {
            path: path.to_owned(),
            found,
        };
        let mut file = File::open(path).map_err(read)?;
        let file_len = file.metadata().map_err(read)?.len();
        if file_len < 8 {
            return Err(format(format!("{file_len} bytes")));
        }
        let mut header_len = [0; 8];
        file.read_exact(&mut header_len).map_err(read)?;
        if header_len == *b"version " {
            let found =
                "a Git LFS pointer: run `git lfs pull` in the folder, or download the model again";
            return Err(format(found.to_owned()));
        }
        let header_len = u64::from_le_bytes(header_len);
        if header_len > MAX_HEADER_LEN.min(file_len - 8) {
            return Err(format(format!(
                "a header that is said to have {header_len} bytes, in {file_len} bytes"
            )));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(read)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| format(format!("a broken header: {error}")))?;
        let data_start = 8 + header_len;
        let expected = data_start + metadata.data_len() as u64;
        if expected != file_len {
            return Err(format(format!(
                "{file_len} bytes, where the header describes {expected}"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
            data_start,
        })
    }

    /// The dtype of each tensor.
    pub fn dtypes(&self) -> impl Iterator<Item = Dtype> {
        let tensors = self.metadata.tensors().into_values();
        tensors.map(|info| info.dtype)
    }

    /// Bytes of all tensors.
    pub fn data_len(&self) -> u64 {
        self.metadata.data_len() as u64
    }

    /// Writes the file `output`, in which the weights that `choose` picks by name are NF4 as bitsandbytes stores it, with their
    /// scales quantized too if `double_quant`; other tensors are copied. `on_tensor` gets the name of each tensor when it is
    /// done, and its bytes in this file; it may stop the work.
    ///
    /// The `__metadata__` of this file is kept. Memory holds one tensor of this file and all of the new one.
    ///
    /// # Errors
    /// If a tensor cannot be read or quantized, `on_tensor` stops it, or the new file cannot be written. `output` is then as it was, unless only its
    /// permissions could not be set.
    pub fn quantize_to(
        &mut self,
        output: &Path,
        double_quant: bool,
        choose: impl Fn(&str) -> bool,
        mut on_tensor: impl FnMut(&str, u64) -> ControlFlow<()>,
    ) -> Result<QuantizedFile, QuantizeFileError> {
        let mut tensors: Vec<(String, OwnedTensor)> = Vec::new();
        let mut written = QuantizedFile::default();
        for name in self.metadata.offset_keys() {
            let tensor = self.read(&name)?;
            let num_bytes = tensor.data.len() as u64;
            let wrong = |error| QuantizeFileError::Tensor {
                path: self.path.clone(),
                error,
            };
            if choose(&name) {
                let view = TensorView::new(tensor.dtype, tensor.shape, &tensor.data);
                let view = view.map_err(|error| QuantizeFileError::Format {
                    path: self.path.clone(),
                    found: format!("tensor `{name}`: {error}"),
                })?;
                let quantized = quantize_tensor(&name, &view, double_quant);
                let quantized = quantized.map_err(wrong)?;
                tensors.extend(nf4_tensors(&name, &quantized));
                written.num_weights += 1;
            } else {
                check_floats(&name, &tensor).map_err(wrong)?;
                tensors.push((name.clone(), tensor));
            }
            if on_tensor(&name, num_bytes).is_break() {
                return Err(QuantizeFileError::Stopped);
            }
        }
        let sizes = tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.data.len()));
        written.tensors = sizes.collect();
        let write = |message: String| QuantizeFileError::Write {
            path: output.to_owned(),
            message,
        };
        let mut metadata = self.metadata.metadata().clone().unwrap_or_default();
        let format = metadata.entry("format".to_owned());
        format.or_insert_with(|| "pt".to_owned());
        serialize_to_file(tensors, Some(metadata), output)
            .map_err(|error| write(error.to_string()))?;
        // The safetensors crate writes files that only their owner may read.
        let permissions = self.file.metadata().map(|metadata| metadata.permissions());
        permissions
            .and_then(|permissions| fs::set_permissions(output, permissions))
            .map_err(|error| write(error.to_string()))?;
        Ok(written)
    }

    fn read(&mut self, name: &str) -> Result<OwnedTensor, QuantizeFileError> {
        let info = self.metadata.info(name);
        let info = info.ok_or_else(|| QuantizeFileError::Format {
            path: self.path.clone(),
            found: format!("no tensor `{name}`"),
        })?;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        let (begin, end) = info.data_offsets;
        let mut data = vec![0; end - begin];
        self.file
            .seek(SeekFrom::Start(self.data_start + begin as u64))
            .and_then(|_| self.file.read_exact(&mut data))
            .map_err(|error| QuantizeFileError::Read {
                path: self.path.clone(),
                error,
            })?;
        Ok(OwnedTensor { dtype, shape, data })
    }
}

/// Refuses floats that are no numbers, in a tensor that stays as it is.
fn check_floats(name: &str, tensor: &OwnedTensor) -> Result<(), BnbError> {
    const BYTES: usize = 1 << 22;
    let size = tensor.dtype.bitsize().max(8) / 8;
    for (part, bytes) in tensor.data.chunks(BYTES).enumerate() {
        let Some((_, values)) = decode_floats(tensor.dtype, bytes) else {
            break;
        };
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(BnbError::NotFinite {
                name: name.to_owned(),
                found: values[at],
                index: part * BYTES / size + at,
            });
        }
    }
    Ok(())
}
