//! Weight files: single or sharded safetensors, mapped into memory and handed out without a copy.

mod finite;

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
            checkpoint.add_shard(&single)?;
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
            if !missing.is_empty() {
                return Err(CheckpointError::Format {
                    path: index.clone(),
                    message: format!(
                        "expected the files of `weight_map` beside it, {} of {} are missing: {}",
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
                checkpoint.add_shard(&dir.join(file))?;
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
                hint: other_weights(dir),
            });
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), CheckpointError> {
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
            .map_err(|e| format(format!("not a whole safetensors file: {e}")))?;
        for (name, view) in tensors.iter() {
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
        let file = path.file_name().unwrap_or_default().to_string_lossy();
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

/// What explains that a folder has no weights by the names that they are looked for.
fn other_weights(dir: &Path) -> String {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let is_adapter = |name: &&String| name.starts_with("adapter_");
    let safetensors = names.iter().filter(|name| name.ends_with(".safetensors"));
    let safetensors: Vec<&str> = safetensors
        .filter(|name| !is_adapter(name))
        .map(String::as_str)
        .collect();
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    match safetensors.as_slice() {
        [one] => {
            format!(" ({one} has another name: call it model.safetensors if it is the whole model)")
        }
        [first, .., last] => format!(
            " ({} files from {first} to {last} are shards without the index that belongs to them: fetch it, too)",
            safetensors.len()
        ),
        [] if names.iter().any(|name| name.starts_with("pytorch_model")) => {
            " (pytorch_model.bin must be converted to safetensors)".to_owned()
        }
        [] if has(".gguf") => " (GGUF files are not read)".to_owned(),
        [] if has("adapter_config.json") => {
            " (this is an adapter: name its base model, and load the adapter on it)".to_owned()
        }
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_by_other_names_are_named() {
        let hint = |names: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                std::fs::write(dir.path().join(name), "").unwrap();
            }
            match Checkpoint::open(dir.path()) {
                Err(CheckpointError::NoWeights { hint, .. }) => hint,
                _ => panic!("{names:?} are weights"),
            }
        };
        for name in ["consolidated.safetensors", "pytorch_model.safetensors"] {
            let found = hint(&[name, "config.json"]);
            assert!(
                found.starts_with(&format!(" ({name} has another name")),
                "{found}"
            );
        }
        let shards = [
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
        ];
        let found = hint(&shards);
        let expected = format!(
            "2 files from {} to {} are shards without",
            shards[1], shards[0]
        );
        assert!(found.contains(&expected), "{found}");
        let bin = hint(&["pytorch_model-00001-of-00002.bin"]);
        assert!(bin.contains("must be converted"), "{bin}");
        let adapter = hint(&["adapter_config.json", "adapter_model.safetensors"]);
        assert!(adapter.contains("this is an adapter"), "{adapter}");
        assert_eq!(hint(&["config.json"]), "");
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
