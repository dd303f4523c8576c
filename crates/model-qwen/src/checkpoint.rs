//! Weight files: single or sharded safetensors, mapped into memory and handed out without a copy.

mod absent;
mod finite;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use bytes::Bytes as SharedBytes;
use cubecl_environment::bytes::AllocationProperty;
use lora_4bit::bnb;
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::json_file::{read_text, refuse_stand_in};
use crate::links::dangling;
use crate::model_folder::{INDEX, SINGLE};
use crate::sys::map_file::{map_file, release};

/// Why a weight file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No weight file in the folder.
    #[error(
        "{dir}: expected model.safetensors or model.safetensors.index.json, found neither{hint}"
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// What else was found there that explains it.
        hint: String,
    },
    /// A file could not be opened, read or mapped.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor is not in the files.
    #[error("{dir}: tensor `{name}` is missing")]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the config asks for.
    #[error("{dir}: tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that `config.json` asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A weight is no number.
    #[error(
        "{dir}: tensor `{name}`: value {index} is {found}, expected a finite number: the file is broken, or the model's \
             training has diverged"
    )]
    NotFinite {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// Place of the first such value.
        index: usize,
        /// The value.
        found: f32,
    },
    /// A weight is too large for the dtype that it is loaded in.
    #[error(
        "{dir}: tensor `{name}`: {found} is too large for f16, expected at most 65504: choose bf16 or f32"
    )]
    TooLarge {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// The first such value.
        found: f32,
    },
    /// A tensor has a dtype that weights cannot have.
    #[error("{dir}: tensor `{name}`: expected dtype BF16, F16 or F32, found {found}")]
    Dtype {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype in the file.
        found: String,
    },
}

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the shard's map.
    start: usize,
    end: usize,
}

/// The tensors of one model folder.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

/// A mapped file: once for tensors to share, once to advise the system about.
#[derive(Debug)]
struct Shard {
    file: String,
    bytes: SharedBytes,
    map: Arc<Mmap>,
}

/// The bytes of a map, as an owner of [`SharedBytes`].
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Maps the weight files of a model folder.
    ///
    /// # Errors
    /// When there are none, or one is missing, truncated or not safetensors.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            shards: Vec::new(),
            entries: BTreeMap::new(),
        };
        let index = dir.join(INDEX);
        let single = dir.join(SINGLE);
        if single.is_file() {
            checkpoint.add_shard(&single, &BTreeMap::new())?;
        } else if index.is_file() {
            let text = read_text(&index).map_err(|message| CheckpointError::Format {
                path: index.clone(),
                message,
            })?;
            let parsed: ShardIndex =
                serde_json::from_str(&text).map_err(|e| CheckpointError::Format {
                    path: index.clone(),
                    message: format!("expected a `weight_map` of tensor names to files: {e}"),
                })?;
            let files: BTreeSet<&String> = parsed.weight_map.values().collect();
            let missing: Vec<&str> = files
                .iter()
                .filter(|file| !dir.join(file).exists())
                .map(|file| file.as_str())
                .collect();
            if let Some(first) = missing.first() {
                let link = dangling(&dir.join(first));
                let link = link.map_or_else(String::new, |link| format!(" ({first} is {link})"));
                return Err(CheckpointError::Format {
                    path: index.clone(),
                    message: format!(
                        "expected the files of `weight_map` beside it, {} of {} are missing: {}{link}",
                        missing.len(),
                        files.len(),
                        missing.join(", ")
                    ),
                });
            }
            for file in files {
                if Path::new(file).file_name() != Some(file.as_ref()) {
                    return Err(CheckpointError::Format {
                        path: index.clone(),
                        message: format!(
                            "expected plain file names in `weight_map`, found `{file}`"
                        ),
                    });
                }
                checkpoint.add_shard(&dir.join(file), &parsed.weight_map)?;
            }
            for (name, file) in &parsed.weight_map {
                if !checkpoint.entries.contains_key(name) {
                    return Err(CheckpointError::Format {
                        path: dir.join(file),
                        message: format!("expected tensor `{name}`, which the index places here"),
                    });
                }
            }
        } else {
            return Err(CheckpointError::NoWeights {
                dir: dir.to_owned(),
                hint: absent::hint(dir),
            });
        }
        Ok(checkpoint)
    }

    /// Maps one file. Of a tensor that several files have, the one in the file that `weight_map` names is used.
    fn add_shard(
        &mut self,
        path: &Path,
        weight_map: &BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        let read = |source| CheckpointError::Read {
            path: path.to_owned(),
            source,
        };
        let format = |message| CheckpointError::Format {
            path: path.to_owned(),
            message,
        };
        // A pipe would wait for whoever writes into it.
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            return Err(format("expected a plain file".to_owned()));
        }
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.len() == 0 {
            return Err(format(
                "expected safetensors, found an empty file".to_owned(),
            ));
        }
        let map = Arc::new(map_file(&file).map_err(read)?);
        refuse_stand_in(&map).map_err(format)?;
        let bytes = SharedBytes::from_owner(Mapped(map.clone()));
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| format(whole::what_is_wrong(&bytes, &e.to_string())))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        for (name, view) in tensors.iter() {
            if weight_map.get(name).is_some_and(|named| *named != file) {
                continue;
            }
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let entry = Entry {
                shard: self.shards.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                start,
                end: start + view.data().len(),
            };
            if self.entries.insert(name.to_owned(), entry).is_some() {
                return Err(format(format!("tensor `{name}` is also in another shard")));
            }
        }
        self.shards.push(Shard {
            file: file.into_owned(),
            bytes,
            map,
        });
        Ok(())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The weight files, each with the names of its tensors in their order in the file.
    pub fn files(&self) -> Vec<(&str, Vec<&str>)> {
        let files = self.shards.iter().enumerate().map(|(index, shard)| {
            let own = self.entries.iter().filter(|(_, e)| e.shard == index);
            let mut names: Vec<_> = own.map(|(name, e)| (e.start, name.as_str())).collect();
            names.sort_unstable();
            let names = names.into_iter().map(|(_, name)| name).collect();
            (shard.file.as_str(), names)
        });
        files.collect()
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A tensor's name in the files: a decoder that was saved without lm_head has no `model.` in its names.
    pub(crate) fn stored(&self, name: &str) -> String {
        let rest = name.strip_prefix("model.");
        let rest = rest.filter(|_| self.contains("embed_tokens.weight"));
        rest.unwrap_or(name).to_owned()
    }

    /// A tensor as safetensors sees it, without a copy.
    pub fn view(&self, name: &str) -> Option<TensorView<'_>> {
        let entry = self.entries.get(name)?;
        let data = &self.shards[entry.shard].bytes[entry.start..entry.end];
        TensorView::new(entry.dtype, entry.shape.clone(), data).ok()
    }

    /// Gives a tensor another name.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if let Some(entry) = self.entries.remove(from) {
            self.entries.insert(to.to_owned(), entry);
        }
    }

    /// Refuses a tensor of floats with an infinity or what is no number.
    pub(crate) fn check_finite(&self, name: &str) -> Result<(), CheckpointError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(());
        };
        let bytes = &self.shards[entry.shard].bytes[entry.start..entry.end];
        let Some(index) = finite::first_not_finite(entry.dtype, bytes) else {
            return Ok(());
        };
        let size = entry.dtype.bitsize() / 8;
        let found = bnb::decode_floats(entry.dtype, &bytes[index * size..][..size]);
        Err(CheckpointError::NotFinite {
            dir: self.dir.clone(),
            name: name.to_owned(),
            index,
            found: found.map_or(f32::NAN, |(_, values)| values[0]),
        })
    }

    /// Refuses a tensor of floats with a value that f16 would turn into an infinity.
    pub(crate) fn check_fits_f16(&self, name: &str) -> Result<(), CheckpointError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(());
        };
        let bytes = &self.shards[entry.shard].bytes[entry.start..entry.end];
        match finite::first_too_large(entry.dtype, bytes) {
            None => Ok(()),
            Some(found) => Err(CheckpointError::TooLarge {
                dir: self.dir.clone(),
                name: name.to_owned(),
                found,
            }),
        }
    }

    /// Takes the pages of a tensor out of this process's memory: for one that was copied and isn't read again.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            release(&self.shards[entry.shard].map, entry.start..entry.end);
        }
    }

    /// A float tensor on `device`, in the file's dtype. On the CPU it is the mapped file itself.
    ///
    /// # Errors
    /// When it is missing, has another shape, or is not a float tensor.
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Tensor<D>, CheckpointError> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| CheckpointError::Missing {
                dir: self.dir.clone(),
                name: name.to_owned(),
            })?;
        if entry.shape != shape {
            return Err(CheckpointError::Shape {
                dir: self.dir.clone(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let dtype = match entry.dtype {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::F32 => DType::F32,
            other => {
                return Err(CheckpointError::Dtype {
                    dir: self.dir.clone(),
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        let shared = self.shards[entry.shard].bytes.slice(entry.start..entry.end);
        let bytes = if (shared.as_ptr() as usize).is_multiple_of(dtype.size()) {
            Bytes::from_shared(shared, AllocationProperty::File)
        } else {
            // Old writers did not align their data.
            Bytes::from_bytes_vec(shared.to_vec())
        };
        let data = TensorData::from_bytes(bytes, shape, dtype);
        Ok(Tensor::from_data(data, (device, dtype)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, tensors: &[(&str, f32)]) {
        let values: Vec<_> = tensors
            .iter()
            .map(|(name, value)| (name, value.to_le_bytes()))
            .collect();
        let views = values
            .iter()
            .map(|(name, bytes)| (*name, TensorView::new(Dtype::F32, vec![1], bytes).unwrap()));
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    #[test]
    fn a_tensor_of_two_shards_is_the_one_that_the_index_names() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |name: &str| dir.path().join(name);
        write(&shard("1.safetensors"), &[("a", 1.0), ("b", 2.0)]);
        write(&shard("2.safetensors"), &[("a", 3.0), ("c", 4.0)]);
        let index =
            |map: &str| std::fs::write(shard(INDEX), format!("{{\"weight_map\": {map}}}")).unwrap();
        for (file, expected) in [("1", 1.0), ("2", 3.0)] {
            index(&format!(
                r#"{{"a": "{file}.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#
            ));
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let tensor = checkpoint.tensor("a", [1], &Device::flex()).unwrap();
            assert_eq!(tensor.into_scalar::<f32>(), expected);
            assert_eq!(checkpoint.names().count(), 3);
        }
        index(r#"{"b": "1.safetensors", "c": "2.safetensors"}"#);
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("tensor `a` is also in another shard"),
            "{error}"
        );
    }

    #[test]
    fn a_released_tensor_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let values: Vec<u8> = (0..40_000u32)
            .flat_map(|i| (i as f32).to_le_bytes())
            .collect();
        let view = TensorView::new(Dtype::F32, vec![200, 200], &values).unwrap();
        let path = dir.path().join("model.safetensors");
        safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let read = || {
            let tensor = checkpoint.tensor("w", [200, 200], &Device::flex()).unwrap();
            tensor.into_data().iter::<f32>().collect::<Vec<_>>()
        };
        let before = read();
        checkpoint.release("w");
        assert_eq!(read(), before);
        assert_eq!(before[39_999], 39_999.0);
    }
}
