//! A checkpoint in 4 bits (NF4), in the layout that bitsandbytes and transformers load.
//!
//! The weights of the linear layers inside the decoder are quantized; embeddings, norms, biases and the output head stay as they
//! are. Tensors are read one at a time, so that memory holds one quantized file and not the checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lora_4bit::bnb::{QuantizeFileError, TensorFile};
use serde_json::{Value, json};

use crate::model::linear_names;
use crate::model_folder::{
    CONFIG, INDEX, ModelFolderError, SINGLE, copy_other_files, io_error, read_object, write_json,
    wrong,
};

/// Why a checkpoint cannot be quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// There is something where the new folder should be.
    #[error("{}: expected no file or folder, found one: choose another output or remove it", .path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A file of the folder is missing, is not what it should be, or cannot be read, copied or written.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// A weight file.
    #[error(transparent)]
    Weights(QuantizeFileError),
    /// Whoever looked on has stopped it.
    #[error("stopped; nothing is written")]
    Stopped,
    /// Nothing is left to quantize.
    #[error(
        "{}: expected a weight named {}, found none after skipping {skip_modules:?}", .dir.display(), linear_names().join(", ")
    )]
    NothingToDo {
        /// The checkpoint.
        dir: PathBuf,
        /// What was left out.
        skip_modules: Vec<String>,
    },
}

impl From<QuantizeFileError> for QuantizeError {
    fn from(error: QuantizeFileError) -> Self {
        match error {
            QuantizeFileError::Stopped => Self::Stopped,
            error => Self::Weights(error),
        }
    }
}

/// How a checkpoint is quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// Whether scales are stored in 8 bits too: 4.13 instead of 4.5 bits per weight.
    pub double_quant: bool,
    /// Modules to leave as they are, such as `down_proj` or `model.layers.0`.
    pub skip_modules: Vec<String>,
}

impl Default for QuantizeOptions {
    /// Double quantization of all linear layers.
    fn default() -> Self {
        Self {
            double_quant: true,
            skip_modules: Vec::new(),
        }
    }
}

/// How far [`quantize_checkpoint`] is.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeProgress<'a> {
    /// The tensor that is done.
    pub tensor: &'a str,
    /// Bytes of the original's tensors that are done.
    pub num_bytes: u64,
    /// Bytes of all of them.
    pub total_bytes: u64,
}

/// What [`quantize_checkpoint`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeSummary {
    /// Weights that are NF4 now.
    pub num_weights: usize,
    /// Bytes of the tensors before.
    pub bytes_before: u64,
    /// Bytes of the tensors now.
    pub bytes_after: u64,
}

/// Quantizes the Hugging Face checkpoint in the folder `input` and writes the folder `output`, which appears whole or not at
/// all. The tokenizer and whatever else stands next to the weights is copied, weights in other formats are not. `on_progress` is
/// called after each tensor and may stop it.
///
/// # Errors
/// When `output` exists, a file of `input` is missing or broken or quantized already, nothing is left to quantize, a file cannot be
/// written, or `on_progress` stops it.
pub fn quantize_checkpoint(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    on_progress: impl FnMut(QuantizeProgress<'_>) -> ControlFlow<()>,
) -> Result<QuantizeSummary, QuantizeError> {
    if output.exists() {
        return Err(QuantizeError::Exists {
            path: output.to_owned(),
        });
    }
    let Some(name) = output.file_name() else {
        return Err(wrong(output, "a path whose last part is a name", "none").into());
    };
    let name = name.to_string_lossy();
    let staging = output.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    fs::create_dir_all(&staging).map_err(io_error(&staging))?;
    let done = quantize_into(&staging, input, options, on_progress).and_then(|summary| {
        fs::rename(&staging, output).map_err(io_error(output))?;
        Ok(summary)
    });
    if done.is_err() {
        // What is left of it is of no use.
        let _ = fs::remove_dir_all(&staging);
    }
    done
}

fn quantize_into(
    output: &Path,
    input: &Path,
    options: &QuantizeOptions,
    mut on_progress: impl FnMut(QuantizeProgress<'_>) -> ControlFlow<()>,
) -> Result<QuantizeSummary, QuantizeError> {
    let mut config = read_object(&input.join(CONFIG))?;
    if config
        .get("quantization_config")
        .is_some_and(|quantization| !quantization.is_null())
    {
        let expected = "a model that is not quantized";
        return Err(wrong(&input.join(CONFIG), expected, "a quantization_config").into());
    }
    let shards = shard_names(input)?;
    let mut files = Vec::with_capacity(shards.len());
    for shard in &shards {
        files.push(TensorFile::open(&input.join(shard))?);
    }
    let total_bytes = files.iter().map(TensorFile::data_len).sum();
    let mut summary = QuantizeSummary {
        num_weights: 0,
        bytes_before: total_bytes,
        bytes_after: 0,
    };
    let mut weight_map = BTreeMap::new();
    let mut num_bytes = 0;
    for (shard, file) in shards.iter().zip(&mut files) {
        let written = file.quantize_to(
            &output.join(shard),
            options.double_quant,
            |name| is_linear(name, &options.skip_modules),
            |tensor, len| {
                num_bytes += len;
                on_progress(QuantizeProgress {
                    tensor,
                    num_bytes,
                    total_bytes,
                })
            },
        )?;
        summary.num_weights += written.num_weights;
        for (name, len) in written.tensors {
            summary.bytes_after += len as u64;
            weight_map.insert(name, shard.clone());
        }
    }
    if summary.num_weights == 0 {
        return Err(QuantizeError::NothingToDo {
            dir: input.to_owned(),
            skip_modules: options.skip_modules.clone(),
        });
    }
    config.insert(
        "quantization_config".to_owned(),
        quantization_config(options),
    );
    write_json(&output.join(CONFIG), &Value::Object(config))?;
    if shards.iter().any(|shard| shard != SINGLE) {
        let metadata = json!({"total_size": summary.bytes_after});
        let index = json!({"metadata": metadata, "weight_map": weight_map});
        write_json(&output.join(INDEX), &index)?;
    }
    copy_other_files(input, output)?;
    Ok(summary)
}

/// Whether `name` is the weight of a linear layer that no entry of `skip` names.
fn is_linear(name: &str, skip: &[String]) -> bool {
    let Some(module) = name.strip_suffix(".weight") else {
        return false;
    };
    let (_, last) = module.rsplit_once('.').unwrap_or(("", module));
    let skipped = |skip: &String| format!(".{module}.").contains(&format!(".{skip}."));
    linear_names().contains(&last) && !skip.iter().any(skipped)
}

/// What transformers reads to load the weights with bitsandbytes.
fn quantization_config(options: &QuantizeOptions) -> Value {
    let skip = if options.skip_modules.is_empty() {
        Value::Null
    } else {
        let mut skip = options.skip_modules.clone();
        skip.push("lm_head".to_owned());
        json!(skip)
    };
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": options.double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skip,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

/// The safetensors files of a checkpoint: the only one, or those that the index names.
fn shard_names(dir: &Path) -> Result<Vec<String>, ModelFolderError> {
    if dir.join(SINGLE).exists() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let path = dir.join(INDEX);
    if !path.exists() {
        let expected = "model.safetensors or model.safetensors.index.json";
        return Err(wrong(dir, expected, crate::hub::describe::folder(dir)));
    }
    let index = read_object(&path)?;
    let expected = "weight_map, an object from tensors to files of this folder";
    let Some(files) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(wrong(&path, expected, "none"));
    };
    let mut names = BTreeSet::new();
    for file in files.values() {
        // A name must not lead out of the folder.
        let name = file
            .as_str()
            .filter(|&name| Path::new(name).file_name().is_some_and(|last| last == name));
        match name {
            Some(name) => names.insert(name.to_owned()),
            None => return Err(wrong(&path, expected, file.to_string())),
        };
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linears_of_the_decoder_are_chosen() {
        let skip = ["down_proj".to_owned(), "layers.3".to_owned()];
        for (name, expected) in [
            ("model.layers.0.self_attn.q_proj.weight", true),
            ("model.layers.30.mlp.up_proj.weight", true),
            ("model.layers.3.mlp.up_proj.weight", false),
            ("model.layers.0.mlp.down_proj.weight", false),
            ("model.layers.0.self_attn.q_proj.bias", false),
            ("model.layers.0.input_layernorm.weight", false),
            ("model.embed_tokens.weight", false),
            ("lm_head.weight", false),
        ] {
            assert_eq!(is_linear(name, &skip), expected, "{name}");
        }
    }
}
