//! The adapter.

use std::path::PathBuf;
use std::str::FromStr as _;

use serde::{Deserialize, Serialize};

use super::values::{between_commas, list, number, whole};
use crate::config::{InitLora, LoraOptions};

/// The flags under "LoRA".
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraArgs {
    /// Start from this adapter (a PEFT folder) instead of a new one, for example with other data. Its rank, alpha and layers
    /// stay, and its dropout unless --lora-dropout is given
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,

    /// Rank of the adapter [default: 16]
    #[arg(
        long,
        value_name = "R",
        visible_alias = "lora-rank",
        alias = "rank",
        value_parser = whole
    )]
    pub lora_r: Option<usize>,

    /// Scale of the adapter: its output is multiplied by alpha / r [default: 32]
    #[arg(long, value_name = "ALPHA", value_parser = number)]
    pub lora_alpha: Option<f64>,

    /// Probability of zeroing an input of the adapter while training [default: 0; with --adapter that of the adapter]
    #[arg(long, value_name = "P", value_parser = number)]
    pub lora_dropout: Option<f64>,

    /// Layers that get an adapter: `all-linear`, or a list such as q_proj,v_proj [default: all-linear]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 1..,
          visible_alias = "lora-target-modules")]
    #[serde(deserialize_with = "between_commas")]
    pub target_modules: Vec<String>,

    /// Rank-stabilized scale: alpha / sqrt(r)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub use_rslora: Option<bool>,

    /// DoRA: train the length of each row of the weights beside the adapter. Costs time and memory; on a GPU it is slow with
    /// --lora-dropout
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub use_dora: Option<bool>,

    /// Train the whole weight of these modules, too, for tokens that were added: embed_tokens,lm_head. The server loads the
    /// merged model (command `merge`) [default: none]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 1..,
          visible_alias = "additional-target")]
    #[serde(deserialize_with = "between_commas")]
    pub modules_to_save: Vec<String>,

    /// How A and B start: `true` (A uniform, B zero), `gaussian`, `pissa`, `pissa_niter_N` (N iterations, faster) or `olora`.
    /// The last three start as a part of the weights and need --quantization none; the adapter is written as a plain one of
    /// twice the rank [default: true]
    #[arg(long, value_name = "INIT", value_parser = InitLora::from_str)]
    pub init_lora_weights: Option<InitLora>,

    /// LoRA+: the learning rate of B is this times that of A, for example 16 [default: 1]
    #[arg(long, value_name = "RATIO", value_parser = number)]
    pub loraplus_lr_ratio: Option<f64>,
}

impl LoraArgs {
    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: Self) -> Self {
        Self {
            adapter: self.adapter.or(file.adapter),
            lora_r: self.lora_r.or(file.lora_r),
            lora_alpha: self.lora_alpha.or(file.lora_alpha),
            lora_dropout: self.lora_dropout.or(file.lora_dropout),
            target_modules: list(self.target_modules, file.target_modules),
            use_rslora: self.use_rslora.or(file.use_rslora),
            use_dora: self.use_dora.or(file.use_dora),
            modules_to_save: list(self.modules_to_save, file.modules_to_save),
            init_lora_weights: self.init_lora_weights.or(file.init_lora_weights),
            loraplus_lr_ratio: self.loraplus_lr_ratio.or(file.loraplus_lr_ratio),
        }
    }

    /// These settings with the defaults of the others.
    pub(in crate::config) fn to_config(&self) -> LoraOptions {
        let default = LoraOptions::default();
        LoraOptions {
            r: self.lora_r.unwrap_or(default.r),
            alpha: self.lora_alpha.unwrap_or(default.alpha),
            dropout: self.lora_dropout,
            target_modules: list(self.target_modules.clone(), default.target_modules),
            use_rslora: self.use_rslora.unwrap_or(default.use_rslora),
            use_dora: self.use_dora.unwrap_or(default.use_dora),
            modules_to_save: self.modules_to_save.clone(),
            init: self.init_lora_weights.unwrap_or(default.init),
        }
    }
}
