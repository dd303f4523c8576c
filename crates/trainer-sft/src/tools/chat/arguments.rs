//! The flags of `trainer-sft chat`.

use std::path::PathBuf;

use model_qwen::flags::some_of;
use model_qwen::{Quantization, SamplingParams};

use super::of_flag;
use crate::config::args::{QUANTIZATION, number, seed, whole};
use crate::tools::ToolError;

/// `trainer-sft chat`.
#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    /// Folder or Hugging Face id of the model [default: the base model that --adapter names, else the bundled model]
    #[arg(long, value_name = "MODEL", visible_aliases = ["base-model", "model-name-or-path"])]
    pub model: Option<String>,

    /// Adapter, a PEFT folder
    #[arg(long, value_name = "FOLDER", visible_alias = "lora")]
    pub adapter: Option<PathBuf>,

    /// Let the model answer without the adapter first, and then with it; side by side on a terminal of 100 columns or more
    #[arg(long)]
    pub compare: bool,

    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Most tokens of an answer
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = whole,
        visible_alias = "max-new-tokens"
    )]
    pub max_tokens: usize,

    /// Divides the logits; 0 always takes the likeliest token [default: as generation_config.json of the model says, else 1]
    #[arg(long, value_name = "T", value_parser = number)]
    pub temperature: Option<f64>,

    /// Keep the likeliest tokens that have this much probability together [default: likewise, else 1]
    #[arg(long, value_name = "P", value_parser = number)]
    pub top_p: Option<f64>,

    /// Keep so many of the likeliest tokens; 0 keeps all [default: likewise, else 0]
    #[arg(long, value_name = "K", value_parser = whole)]
    pub top_k: Option<usize>,

    /// Keep tokens with at least this share of the likeliest one's probability [default: likewise, else 0]
    #[arg(long, value_name = "P", value_parser = number)]
    pub min_p: Option<f64>,

    /// Penalty on tokens that were there already [default: likewise, else 1]
    #[arg(long, value_name = "X", value_parser = number)]
    pub repetition_penalty: Option<f64>,

    /// Makes answers reproducible
    #[arg(long, value_name = "SEED", value_parser = seed)]
    pub seed: Option<u64>,

    /// How the linear layers are held: `nf4` (4 bits) or `none` (as in the checkpoint)
    #[arg(long, value_parser = some_of::<Quantization>(&QUANTIZATION), default_value = "none")]
    pub quantization: Quantization,

    /// auto, cpu, cuda and so on
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
}

impl ChatArgs {
    /// Refuses, before a model is loaded, what cannot be honoured.
    pub(super) fn check(&self, has_adapter: bool) -> Result<(), ToolError> {
        let refuse = |flag, expected: &str, found: &str| {
            Err(ToolError::Flag {
                flag,
                expected: expected.to_owned(),
                found: found.to_owned(),
            })
        };
        if self.compare && !has_adapter {
            return refuse("compare", "an adapter (--adapter FOLDER) beside it", "none");
        }
        if self.max_tokens == 0 {
            return refuse("max-tokens", "a whole number, 1 or more", "0");
        }
        let sampling = self.sampling(SamplingParams::default());
        sampling.validate().map_err(of_flag)
    }

    /// The model's own sampling with what the flags say.
    pub(super) fn sampling(&self, default: SamplingParams) -> SamplingParams {
        let or = |given: Option<f64>, own: f32| given.map_or(own, |given| given as f32);
        SamplingParams {
            temperature: or(self.temperature, default.temperature),
            top_p: or(self.top_p, default.top_p),
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: or(self.min_p, default.min_p),
            repetition_penalty: or(self.repetition_penalty, default.repetition_penalty),
            seed: self.seed.or(default.seed),
            ..default
        }
    }
}
