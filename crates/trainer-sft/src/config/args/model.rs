//! The base model, and how it is held.

use std::path::PathBuf;

use lora_4bit::ComputeDtype;
use model_qwen::flags::some_of;
use model_qwen::{Dtype, Quantization};
use serde::{Deserialize, Serialize};

use super::values::{COMPUTE_DTYPE, DTYPE, QUANTIZATION};
use crate::config::ModelConfig;

/// The flags under "Model".
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelArgs {
    /// Folder or Hugging Face id of the base model [default: the bundled model]
    #[arg(long, value_name = "MODEL", visible_alias = "model-name-or-path")]
    pub model: Option<String>,

    /// Base weights: `nf4` (4-bit, QLoRA) or `none` (as in the checkpoint, LoRA) [default: nf4; none with --full]
    #[arg(long, value_parser = some_of::<Quantization>(&QUANTIZATION))]
    pub quantization: Option<Quantization>,

    /// Quantize the scales of 4-bit blocks too, which saves 0.37 bits per weight [default: on]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub double_quant: Option<bool>,

    /// Keep the scales of 4-bit blocks in 32 bits
    #[arg(long, conflicts_with = "double_quant")]
    #[serde(skip)]
    pub no_double_quant: bool,

    /// Dtype of the base weights that are not quantized [default: auto, as in the checkpoint]
    #[arg(
        long,
        value_parser = some_of::<Dtype>(&DTYPE),
        visible_alias = "torch-dtype"
    )]
    pub dtype: Option<Dtype>,

    /// Type in which weights are multiplied: `bf16` rounds the factors where that is faster (a CPU with AVX-512-BF16, a GPU
    /// with tensor cores), sums stay in f32; `f32` does not round them to it. What is trained is f32 either way [default:
    /// bf16; f32 with --full on a CPU or with another --method than sft, which take nothing else]
    #[arg(
        long,
        value_parser = some_of::<ComputeDtype>(&COMPUTE_DTYPE),
        visible_alias = "bnb-4bit-compute-dtype"
    )]
    pub compute_dtype: Option<ComputeDtype>,

    /// auto, cpu, cuda, cuda:N, wgpu, vulkan, metal or rocm, as far as compiled in [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Train every parameter and write a whole model instead of an adapter
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub full: Option<bool>,

    /// With --full: start from random weights of the shape in this config.json (needs --tokenizer)
    #[arg(long, value_name = "FILE")]
    pub init_config: Option<PathBuf>,

    /// Folder with tokenizer.json and the chat template [default: the model's]
    #[arg(long, value_name = "FOLDER")]
    pub tokenizer: Option<PathBuf>,
}

impl ModelArgs {
    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: Self) -> Self {
        Self {
            model: self.model.or(file.model),
            quantization: self.quantization.or(file.quantization),
            double_quant: self.double_quant.or(file.double_quant),
            no_double_quant: false,
            dtype: self.dtype.or(file.dtype),
            compute_dtype: self.compute_dtype.or(file.compute_dtype),
            device: self.device.or(file.device),
            full: self.full.or(file.full),
            init_config: self.init_config.or(file.init_config),
            tokenizer: self.tokenizer.or(file.tokenizer),
        }
    }

    /// These settings with the defaults of the others.
    pub(in crate::config) fn to_config(&self) -> ModelConfig {
        let default = ModelConfig::default();
        ModelConfig {
            model: self.model.clone(),
            init_config: self.init_config.clone(),
            tokenizer: self.tokenizer.clone(),
            quantization: self.quantization,
            double_quant: self.double_quant.unwrap_or(default.double_quant),
            dtype: self.dtype.unwrap_or(default.dtype),
            compute_dtype: self.compute_dtype.unwrap_or(default.compute_dtype),
            device: self.device.clone().unwrap_or(default.device),
        }
    }
}
