//! Writing a model as a Hugging Face folder: `config.json` and `model.safetensors`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use half::f16;
use lora_4bit::{Linear, Weight};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::Value;

use crate::config::{QwenConfig, dtype_name};
use crate::load::{LoadError, open};
use crate::model::QwenModel;
use crate::model_folder::{SINGLE, dense_config};

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A file or folder could not be written.
    #[error("cannot write {path}: {message}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// Only dense models are written; NF4 weights have lost what a checkpoint should hold.
    #[error(
        "cannot write layer `{0}`: expected a dense weight, found NF4; load without quantization"
    )]
    Quantized(String),
    /// A weight is too large for f16.
    #[error("tensor `{name}`: {found} is too large for f16, expected at most 65504")]
    TooLarge {
        /// The tensor.
        name: String,
        /// The first such value.
        found: f32,
    },
}

/// The dtype that a model folder has its embedding in: a model that is made from it is written in the same one.
///
/// # Errors
/// When `config.json` or the weight files cannot be read.
pub fn stored_dtype(dir: &Path) -> Result<DType, LoadError> {
    let config = QwenConfig::load(dir)?;
    let checkpoint = open(dir, &config)?;
    let embedding = checkpoint.view(&checkpoint.stored("model.embed_tokens.weight"));
    Ok(match embedding.map(|embedding| embedding.dtype()) {
        Some(Dtype::BF16) => DType::BF16,
        Some(Dtype::F16) => DType::F16,
        Some(Dtype::F32) => DType::F32,
        // What is wrong with it is said where the model is loaded.
        _ => config.dtype,
    })
}

/// One tensor ready to be written.
struct Part {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl QwenModel {
    /// Writes `config.json` and `model.safetensors` in `dtype` (F32, BF16 or F16); each file
    /// appears whole or not at all. Adapters are not written.
    ///
    /// # Errors
    /// When a file cannot be written or the model is quantized.
    pub fn save(&self, dir: &Path, dtype: DType) -> Result<(), SaveError> {
        self.save_as(dir, dtype, None)
    }

    /// [`Self::save`] for a model with other weights than those of the folder `origin`, whose `config.json` may say more than
    /// this crate reads: the new one keeps it.
    ///
    /// # Errors
    /// As [`Self::save`], and when that file cannot be read.
    pub fn save_as(
        &self,
        dir: &Path,
        dtype: DType,
        origin: Option<&Path>,
    ) -> Result<(), SaveError> {
        let parts = self.parts(dtype)?;
        let stored = match dtype {
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        let path = dir.join(SINGLE);
        let error = |path: &Path, message: String| SaveError::Write {
            path: path.to_owned(),
            message,
        };
        fs::create_dir_all(dir).map_err(|e| error(dir, e.to_string()))?;
        let views = parts
            .iter()
            .map(|part| {
                TensorView::new(stored, part.shape.clone(), &part.bytes).map(|v| (&part.name, v))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| error(&path, e.to_string()))?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let partial = dir.join("model.safetensors.part");
        serialize_to_file(views, Some(metadata), &partial)
            .map_err(|e| error(&partial, e.to_string()))?;
        fs::rename(&partial, &path).map_err(|e| error(&path, e.to_string()))?;

        let mut config = self.config.clone();
        config.dtype = dtype;
        let path = dir.join("config.json");
        let partial = dir.join("config.json.part");
        let json = match origin {
            None => config.to_json(),
            Some(origin) => {
                let name = Some(dtype_name(dtype));
                dense_config(origin, config.tie_word_embeddings, name)
                    .map(Value::Object)
                    .map_err(|e| error(&path, e.to_string()))?
            }
        };
        let text = format!("{json:#}\n");
        fs::write(&partial, text).map_err(|e| error(&partial, e.to_string()))?;
        fs::rename(&partial, &path).map_err(|e| error(&path, e.to_string()))
    }

    fn parts(&self, dtype: DType) -> Result<Vec<Part>, SaveError> {
        let mut parts = vec![
            part("model.embed_tokens.weight", &self.embed_tokens, dtype)?,
            part("model.norm.weight", &self.norm, dtype)?,
        ];
        if !self.config.tie_word_embeddings {
            linear_parts("lm_head", &self.lm_head, dtype, &mut parts)?;
        }
        for (name, linear) in self.linears() {
            linear_parts(&name, linear, dtype, &mut parts)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let norms = [
                ("input_layernorm", Some(&layer.input_layernorm)),
                (
                    "post_attention_layernorm",
                    Some(&layer.post_attention_layernorm),
                ),
                ("self_attn.q_norm", layer.self_attn.q_norm.as_ref()),
                ("self_attn.k_norm", layer.self_attn.k_norm.as_ref()),
            ];
            for (name, weight) in norms {
                let name = format!("model.layers.{i}.{name}.weight");
                parts.extend(weight.map(|w| part(&name, w, dtype)).transpose()?);
            }
        }
        Ok(parts)
    }
}

fn linear_parts(
    name: &str,
    linear: &Linear,
    dtype: DType,
    parts: &mut Vec<Part>,
) -> Result<(), SaveError> {
    let Weight::Dense(weight) = &linear.weight else {
        return Err(SaveError::Quantized(name.to_owned()));
    };
    parts.push(part(&format!("{name}.weight"), weight, dtype)?);
    let bias = linear.bias.as_ref();
    let bias = bias.map(|bias| part(&format!("{name}.bias"), bias, dtype));
    parts.extend(bias.transpose()?);
    Ok(())
}

fn part<const D: usize>(name: &str, tensor: &Tensor<D>, dtype: DType) -> Result<Part, SaveError> {
    let shape = tensor.dims().to_vec();
    // Converted on the host: not every device has each type.
    let data = tensor.clone().inner().into_data();
    if dtype == DType::F16 && data.dtype() != DType::F16 {
        let largest = f16::MAX.to_f32();
        if let Some(found) = data.iter::<f32>().find(|value| value.abs() > largest) {
            return Err(SaveError::TooLarge {
                name: name.to_owned(),
                found,
            });
        }
    }
    Ok(Part {
        name: name.to_owned(),
        shape,
        bytes: data.convert_dtype(dtype).bytes().to_vec(),
    })
}
