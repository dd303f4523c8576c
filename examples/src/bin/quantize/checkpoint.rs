//! The files of a Hugging Face checkpoint.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

/// Name of the weights of a checkpoint in one file.
pub(crate) const SINGLE: &str = "model.safetensors";

/// Name of the index of a checkpoint in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The longest header that safetensors files may have, in bytes.
const MAX_HEADER_LEN: u64 = 100_000_000;

/// The safetensors files of a checkpoint: the only one, or those that the index names.
pub(crate) fn shard_names(dir: &Path) -> Result<Vec<String>> {
    if dir.join(SINGLE).exists() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let path = dir.join(INDEX);
    ensure!(
        path.exists(),
        "`{}` has neither {SINGLE} nor {INDEX}",
        dir.display()
    );
    let index = read_json(&path)?;
    let invalid = || {
        format!(
            "`{}`: weight_map is not an object from tensors to files",
            path.display()
        )
    };
    let files = index
        .get("weight_map")
        .and_then(Value::as_object)
        .with_context(invalid)?;
    let mut names = BTreeSet::new();
    for file in files.values() {
        let file = file.as_str().with_context(invalid)?;
        if Path::new(file).file_name().is_none_or(|name| name != file) {
            bail!(
                "`{}`: weight_map names `{file}`, expected the name of a file",
                path.display()
            );
        }
        names.insert(file.to_owned());
    }
    Ok(names.into_iter().collect())
}

/// A safetensors file of which only the header is in memory.
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) metadata: Metadata,
    data_start: u64,
}

impl Shard {
    /// Reads and checks the header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let context = || format!("cannot read `{}`", path.display());
        let mut file = File::open(path).with_context(context)?;
        let file_len = file.metadata().with_context(context)?.len();
        let mut header_len = [0; 8];
        file.read_exact(&mut header_len).with_context(context)?;
        let header_len = u64::from_le_bytes(header_len);
        ensure!(
            header_len <= MAX_HEADER_LEN.min(file_len.saturating_sub(8)),
            "`{}` is not a safetensors file: its header is said to have {header_len} bytes",
            path.display()
        );
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).with_context(context)?;
        let metadata: Metadata = serde_json::from_slice(&header).with_context(context)?;
        let data_start = 8 + header_len;
        let expected = data_start + metadata.data_len() as u64;
        ensure!(
            expected == file_len,
            "`{}` has {file_len} bytes, expected {expected} by its header",
            path.display()
        );
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
            data_start,
        })
    }

    /// Reads one tensor.
    pub(crate) fn read(&mut self, name: &str) -> Result<(TensorInfo, Vec<u8>)> {
        let info = self
            .metadata
            .info(name)
            .context("a name of the header is in the header")?
            .clone();
        let (begin, end) = info.data_offsets;
        let mut data = vec![0; end - begin];
        self.file
            .seek(SeekFrom::Start(self.data_start + begin as u64))
            .and_then(|_| self.file.read_exact(&mut data))
            .with_context(|| format!("cannot read tensor `{name}` of `{}`", self.path.display()))?;
        Ok((info, data))
    }
}

/// Copies the tokenizer and whatever else stands next to the weights, but no weights in other formats.
pub(crate) fn copy_other_files(input: &Path, output: &Path) -> Result<()> {
    for entry in
        fs::read_dir(input).with_context(|| format!("cannot read `{}`", input.display()))?
    {
        let path = entry?.path();
        let is_weights = path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| {
                [
                    "safetensors",
                    "bin",
                    "pt",
                    "pth",
                    "gguf",
                    "h5",
                    "msgpack",
                    "onnx",
                ]
                .contains(&extension)
            });
        let Some(name) = path.file_name().filter(|_| path.is_file() && !is_weights) else {
            continue;
        };
        let target = output.join(name);
        if name != INDEX && !target.exists() {
            fs::copy(&path, &target)
                .with_context(|| format!("cannot copy `{}`", path.display()))?;
        }
    }
    Ok(())
}

/// Parses a file that holds a JSON object.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("`{}` is not a JSON object", path.display()))
}

/// Writes a JSON file, indented.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
