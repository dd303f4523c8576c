//! The command line, and the `--config` file that has the same names.
//!
//! Every field is optional here: what neither a flag nor the file gives is filled in by [`crate::config::Config::from_args`].
//! Names and meanings follow TRL's `SFTConfig` and PEFT's `LoraConfig`; their spellings are accepted as aliases.

mod data;
mod effect;
mod file;
mod grpo;
mod hints;
mod lora;
mod memory;
mod method;
mod model;
mod output;
mod parse;
mod training;
mod values;
mod words;

use std::path::PathBuf;

use clap::Parser;
use serde::Serialize;

use crate::config::Method;

pub use self::data::DataArgs;
pub use self::grpo::GrpoArgs;
pub(crate) use self::hints::{nearest, with_nearest_flag, with_negative_numbers};
pub use self::lora::LoraArgs;
pub use self::memory::MemoryArgs;
pub use self::method::MethodArgs;
pub use self::model::ModelArgs;
pub use self::output::OutputArgs;
pub use self::parse::ArgsError;
pub use self::training::TrainingArgs;
pub(crate) use self::values::{DTYPE, QUANTIZATION, number, seed, whole};
pub(crate) use self::words::{plain_words, with_hyphens};

/// Fine-tune a Qwen-architecture model with LoRA, QLoRA or in full.
///
/// Learns from chats, instructions or plain text (JSONL) and writes a PEFT adapter folder that the server, PEFT and vLLM
/// load. Without --model it trains the small bundled model; `--data data/train.jsonl` is all it needs.
/// Before training: the commands `init` and `check`; after training: `merge`, `inspect`, `export`, `eval` and `chat`, each with a
/// --help of its own.
#[derive(Clone, Debug, Default, Parser, Serialize)]
#[command(name = "trainer-sft", version, max_term_width = 110)]
pub struct Args {
    /// TOML file with settings: the keys are these flags' names with underscores (`lora_r = 8`). Flags win over the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// What is learnt from.
    #[command(flatten, next_help_heading = "Data")]
    #[serde(flatten)]
    pub data: DataArgs,

    /// The base model.
    #[command(flatten, next_help_heading = "Model")]
    #[serde(flatten)]
    pub model: ModelArgs,

    /// What is learnt.
    #[command(flatten, next_help_heading = "Method")]
    #[serde(flatten)]
    pub method: MethodArgs,

    /// The adapter.
    #[command(flatten, next_help_heading = "LoRA")]
    #[serde(flatten)]
    pub lora: LoraArgs,

    /// The optimizer, and how long it goes on.
    #[command(flatten, next_help_heading = "Training")]
    #[serde(flatten)]
    pub training: TrainingArgs,

    /// How much memory the run may take.
    #[command(flatten, next_help_heading = "Memory")]
    #[serde(flatten)]
    pub memory: MemoryArgs,

    /// Answers and rewards.
    #[command(flatten, next_help_heading = "GRPO")]
    #[serde(flatten)]
    pub grpo: GrpoArgs,

    /// What is written.
    #[command(flatten, next_help_heading = "Output")]
    #[serde(flatten)]
    pub output: OutputArgs,
}

impl Args {
    /// These settings where given, `file`'s otherwise.
    pub(crate) fn over(self, mut file: Self) -> Self {
        let is_other = self.method.method.is_some_and(|own| own != Method::Grpo);
        if is_other && file.method.method == Some(Method::Grpo) {
            // A file's settings of GRPO are none of another method.
            file.grpo = GrpoArgs::default();
        }
        Self {
            config: None,
            data: self.data.over(file.data),
            model: self.model.over(file.model),
            method: self.method.over(&file.method),
            lora: self.lora.over(file.lora),
            training: self.training.over(file.training),
            memory: self.memory.over(file.memory),
            grpo: self.grpo.over(file.grpo),
            output: self.output.over(file.output),
        }
    }
}
