//! The base model, and how it is held.

use std::path::PathBuf;

use lora_4bit::ComputeDtype;
use model_qwen::flags::some_of;
use model_qwen::{Dtype, Quantization};
use serde::{Deserialize, Serialize};

use super::values::{COMPUTE_DTYPE, DTYPE, QUANTIZATION, one_or_many};
use crate::config::{AllReduce, ModelConfig};

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
    /// bf16; f32 with --full on a CPU, which takes nothing else]
    #[arg(
        long,
        value_parser = some_of::<ComputeDtype>(&COMPUTE_DTYPE),
        visible_alias = "bnb-4bit-compute-dtype"
    )]
    pub compute_dtype: Option<ComputeDtype>,

    /// auto, cpu, cuda, cuda:N, wgpu, vulkan, metal or rocm, as far as compiled in [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Several GPUs, as in cuda:0,cuda:1: each holds the model and computes a part of each step, --batch-size times
    /// --gradient-accumulation rows of it
    #[arg(
        long,
        value_name = "DEVICES",
        value_delimiter = ',',
        conflicts_with = "device"
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub devices: Vec<String>,

    /// How gradients are summed over --devices: by `nccl`, from card to card, or in the memory of the `host`; `auto` is
    /// NCCL where that works [default: auto]
    #[arg(long, value_enum, hide_possible_values = true)]
    pub all_reduce: Option<AllReduce>,

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
    pub(super) fn over(self, mut file: Self) -> Self {
        // Either flag takes the place of both settings.
        if self.device.is_some() {
            file.devices.clear();
        }
        if !self.devices.is_empty() {
            file.device = None;
        }
        Self {
            model: self.model.or(file.model),
            quantization: self.quantization.or(file.quantization),
            double_quant: self.double_quant.or(file.double_quant),
            no_double_quant: false,
            dtype: self.dtype.or(file.dtype),
            compute_dtype: self.compute_dtype.or(file.compute_dtype),
            device: self.device.or(file.device),
            devices: match self.devices.is_empty() {
                true => file.devices,
                false => self.devices,
            },
            all_reduce: self.all_reduce.or(file.all_reduce),
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
            devices: self.devices.clone(),
            all_reduce: self.all_reduce.unwrap_or(default.all_reduce),
        }
    }
}
