//! The flags of the commands.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use model_qwen::flags::some_of;
use model_qwen::gguf::TensorType;
use model_qwen::{Dtype, Quantization};

use super::reading::ReadingArgs;
use crate::config::RunConfig;
use crate::config::args::{DTYPE, QUANTIZATION, whole};

/// `trainer-sft merge`.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// The adapter, a PEFT folder
    #[arg(long, value_name = "FOLDER", visible_alias = "lora")]
    pub adapter: PathBuf,

    /// Folder or Hugging Face id of the base model [default: the one that adapter_config.json names]
    #[arg(long, value_name = "MODEL", visible_aliases = ["base-model", "model-name-or-path"])]
    pub model: Option<String>,

    /// Folder to write, a new one; nothing is overwritten
    #[arg(long, short, value_name = "FOLDER", visible_alias = "output-dir")]
    pub output: PathBuf,

    /// Dtype of the merged weights
    #[arg(long, value_parser = some_of::<Dtype>(&DTYPE), default_value = "auto", visible_alias = "torch-dtype")]
    pub dtype: Dtype,

    /// `nf4` writes the merged linear layers in 4 bits, as bitsandbytes stores them; `none` writes them as --dtype says
    #[arg(long, value_parser = some_of::<Quantization>(&QUANTIZATION), default_value = "none")]
    pub quantization: Quantization,

    /// Keep the scales of 4-bit blocks in 32 bits
    #[arg(long)]
    pub no_double_quant: bool,

    /// Print the loss on these records (formats as in training) for the base model and the base model with the adapter, in the
    /// form that the run of the adapter had it in, and for the merged model, dense and in 4 bits; repeat for several
    #[arg(long, value_name = "FILE", visible_alias = "eval-data", num_args = 1..)]
    pub data: Vec<PathBuf>,

    /// How the records of --data are read.
    #[command(flatten)]
    pub reading: ReadingArgs,

    /// auto, cpu, cuda and so on, for --data
    #[arg(long, value_name = "DEVICE", default_value = "auto", requires = "data")]
    pub device: String,
}

/// `trainer-sft inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// Folder of an adapter, a checkpoint, a run or a model
    #[arg(value_name = "FOLDER")]
    pub path: PathBuf,

    /// Base model to compare an adapter with [default: the one that adapter_config.json names, where it is a folder]
    #[arg(long, value_name = "MODEL", visible_alias = "base-model")]
    pub model: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `trainer-sft export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Folder or Hugging Face id of the model [default: the base model that --adapter names, else the bundled model]
    #[arg(long, value_name = "MODEL", visible_alias = "model-name-or-path")]
    pub model: Option<String>,

    /// Adapter, a PEFT folder: merged into the model with `hf` and `gguf`, a file of its own with `gguf-lora` and `ollama` (with
    /// `ollama`, DoRA and whole weights are merged: a file of its own cannot hold them)
    #[arg(long, value_name = "FOLDER", visible_alias = "lora")]
    pub adapter: Option<PathBuf>,

    /// What to write
    #[arg(long, value_enum)]
    pub format: ExportFormat,

    /// File (gguf, gguf-lora) or folder (hf, ollama) to write, a new one; nothing is overwritten
    #[arg(long, short, value_name = "PATH", visible_alias = "outfile")]
    pub output: PathBuf,

    /// Type of the matrices [default: as in the model; f32 for gguf-lora]
    #[arg(
        long = "type",
        value_enum,
        value_name = "TYPE",
        visible_alias = "outtype"
    )]
    pub kind: Option<TensorType>,

    /// Name that programs show for the model [default: its folder's name or its id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// What `export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A Hugging Face folder, as `merge` writes it
    Hf,
    /// One GGUF file with model, tokenizer and chat template
    Gguf,
    /// A GGUF file with the adapter alone, for `llama-server --lora`
    GgufLora,
    /// A folder with GGUF files and a Modelfile, for `ollama create`
    Ollama,
}

/// `trainer-sft eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    /// Folder or Hugging Face id of the model [default: the base model that --adapter names, else the bundled model]
    #[arg(long, value_name = "MODEL", visible_alias = "model-name-or-path")]
    pub model: Option<String>,

    /// Adapter, a PEFT folder
    #[arg(long, value_name = "FOLDER", visible_alias = "lora")]
    pub adapter: Option<PathBuf>,

    /// File to measure on, in the formats of training; repeat for several
    #[arg(long, value_name = "FILE", visible_alias = "eval-data", num_args = 1.., required = true)]
    pub data: Vec<PathBuf>,

    /// How the records are read.
    #[command(flatten)]
    pub reading: ReadingArgs,

    /// Examples computed at once
    #[arg(long, value_name = "N", default_value_t = RunConfig::default().batch_size, value_parser = whole)]
    pub batch_size: usize,

    /// How the linear layers are held
    #[arg(long, value_parser = some_of::<Quantization>(&QUANTIZATION), default_value = "none")]
    pub quantization: Quantization,

    /// auto, cpu, cuda and so on
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
