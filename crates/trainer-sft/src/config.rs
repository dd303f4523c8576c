//! The validated settings of one training run.
//!
//! [`args::Args`] (flags, and the `--config` file with the same names) become one [`Config`]; every later function
//! takes `&Config`. Serialized, a `Config` is a flat table whose keys are the flag names with underscores, so that the
//! `run.toml` kept next to an adapter can be given back through `--config`.

mod adapter;
pub mod args;
mod cause;
mod columns;
mod defaults;
mod devices;
mod error;
mod grpo;
mod init;
mod memory;
mod method;
mod paths;
mod ranges;
mod resolve;
mod resume;
mod run_files;
mod samples;
mod validate;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use lora_4bit::ComputeDtype;
use model_qwen::{Dtype, Quantization};
use serde::{Deserialize, Serialize};

pub use columns::Columns;
pub use devices::AllReduce;
pub(crate) use devices::micro_batches_of;
pub use error::ConfigError;
pub use grpo::{GrpoOptions, ScaleRewards};
pub use init::InitLora;
pub use memory::{BatchSize, MemoryOptions};
pub use method::{LossType, Method, MethodConfig};
pub(crate) use paths::{at_home, value_at_home};
pub use resolve::DEFAULT_EPOCHS;
pub(crate) use resume::{checkpoints_of, find_checkpoint, newest_checkpoint, run_of};
pub(crate) use run_files::{SETTINGS, STATE_FILE};
pub use samples::SampleOptions;
pub use validate::ALL_LINEAR;

/// Everything that determines a training run: from flags with [`Config::from_args`], or in a program with [`Config::new`].
///
/// Settings that depend on other settings may be `None`; [`Config::resolved`] fills them in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Which weights are trained, and in which form they are held.
    #[serde(flatten)]
    pub model: ModelConfig,
    /// What is learnt from, and how.
    #[serde(flatten)]
    pub method: MethodConfig,
    /// What is learnt from.
    #[serde(flatten)]
    pub data: DataConfig,
    /// The adapter; unused when [`RunConfig::full`] is set.
    #[serde(flatten)]
    pub lora: LoraOptions,
    /// AdamW and its learning-rate schedule.
    #[serde(flatten)]
    pub optimizer: OptimizerConfig,
    /// How long, in which portions, and where the results go.
    #[serde(flatten)]
    pub run: RunConfig,
    /// What the model answers while it trains.
    #[serde(flatten)]
    pub samples: SampleOptions,
    /// Answers and rewards; unused unless the method is [`Method::Grpo`].
    #[serde(flatten)]
    pub grpo: GrpoOptions,
    /// How much memory the run may take.
    #[serde(flatten)]
    pub memory: MemoryOptions,
}

/// The base model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Folder or hub id; `None` is the bundled model.
    pub model: Option<String>,
    /// A `config.json` from which a model is initialized at random (only with [`RunConfig::full`]).
    pub init_config: Option<PathBuf>,
    /// Folder with `tokenizer.json`; `None` is the model's own.
    pub tokenizer: Option<PathBuf>,
    /// How the frozen linear weights are held; `None` is NF4, or as in the checkpoint with [`RunConfig::full`].
    pub quantization: Option<Quantization>,
    /// Whether NF4 block scales are quantized too.
    pub double_quant: bool,
    /// The dtype of the base weights that are not quantized.
    pub dtype: Dtype,
    /// The type in which weights are multiplied. `Auto` is bf16, but f32 with [`RunConfig::full`] on a CPU, which takes nothing
    /// else.
    pub compute_dtype: ComputeDtype,
    /// `auto`, `cpu`, `cuda`, `cuda:1`, …; parsed by `model_qwen::parse_device`.
    pub device: String,
    /// Several GPUs that each hold the model and compute a part of each step; empty is [`device`](Self::device).
    pub devices: Vec<String>,
    /// How gradients are summed over them.
    pub all_reduce: AllReduce,
}

/// The data and how it becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataConfig {
    /// Training files, folders, glob patterns or `-` (standard input), at least one.
    #[serde(rename = "data")]
    pub train: Vec<PathBuf>,
    /// Evaluation files, as [`train`](Self::train), possibly none.
    #[serde(rename = "eval_data")]
    pub eval: Vec<PathBuf>,
    /// Part of the records of [`train`](Self::train) that are kept for evaluation, drawn by [`RunConfig::seed`].
    pub eval_split: Option<f64>,
    /// Names of the fields of a record, `OURS=THEIRS`; empty is as the records name them.
    pub columns: Vec<String>,
    /// A record that teaches nothing ends the run, instead of being left out.
    pub strict: bool,
    /// Reads the data while training, a block at a time, instead of before.
    pub streaming: bool,
    /// Longest example in tokens.
    pub max_length: usize,
    /// Whether short examples share a row of `max_length` tokens.
    pub packing: bool,
    /// Which tokens the loss is taken over.
    pub train_on: TrainOn,
    /// What happens to answers without reasoning under a template that opens a think block.
    pub thinking: Thinking,
}

/// The LoRA adapter, with the names of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraOptions {
    /// Rank of A and B.
    #[serde(rename = "lora_r")]
    pub r: usize,
    /// Scale: the update is multiplied by `alpha / r` (`alpha / sqrt(r)` with rsLoRA).
    #[serde(rename = "lora_alpha")]
    pub alpha: f64,
    /// Probability that an input of A is zeroed during training; `None` is 0, or that of [`RunConfig::adapter`].
    #[serde(rename = "lora_dropout")]
    pub dropout: Option<f64>,
    /// `["all-linear"]`, or module names such as `q_proj`.
    pub target_modules: Vec<String>,
    /// Rank-stabilized scale.
    pub use_rslora: bool,
    /// DoRA: the length of each row of the weights is trained, too.
    pub use_dora: bool,
    /// Modules whose whole weight is trained, too: `embed_tokens`, `lm_head`.
    pub modules_to_save: Vec<String>,
    /// How A and B start.
    #[serde(rename = "init_lora_weights")]
    pub init: InitLora,
}

impl LoraOptions {
    /// [`dropout`](Self::dropout) or its default.
    pub fn dropout(&self) -> f64 {
        self.dropout.unwrap_or(0.0)
    }

    /// Whether every linear layer but the output head gets an adapter.
    pub fn is_all_linear(&self) -> bool {
        self.target_modules.iter().any(|name| name == ALL_LINEAR)
    }
}

/// AdamW (betas 0.9 and 0.999, epsilon 1e-8) and its schedule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// How the moments are kept.
    pub optim: Optim,
    /// Peak learning rate; `None` is 2e-4, or 2e-3 for an adapter of the bundled model; 5e-6 and 1e-4 where answers are
    /// compared, 1e-5 for GRPO.
    pub learning_rate: Option<f64>,
    /// Shape after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Part of all steps spent warming up; used when `warmup_steps` is `None`.
    pub warmup_ratio: f64,
    /// Steps spent warming up.
    pub warmup_steps: Option<usize>,
    /// Lowest learning rate, for the schedules that have one.
    pub min_lr: Option<f64>,
    /// The same as a part of the peak.
    pub min_lr_rate: Option<f64>,
    /// The power of [`LrSchedule::Polynomial`]; `None` is 1.
    pub lr_power: Option<f64>,
    /// Steps at the end of [`LrSchedule::WarmupStableDecay`] in which the rate falls.
    pub lr_decay_steps: Option<usize>,
    /// LoRA+: the rate of B is this times that of A; `None` is 1.
    pub loraplus_lr_ratio: Option<f64>,
    /// NEFTune: uniform noise on the embeddings while training, within this over the root of a document's values.
    pub neftune_noise_alpha: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest L2 norm of all gradients together; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Which activations are computed again in the backward pass.
    pub gradient_checkpointing: GradientCheckpointing,
    /// What gradient checkpointing keeps of each layer waits in the host's memory. Only on a GPU.
    pub offload_activations: bool,
}

impl OptimizerConfig {
    /// Number of warm-up steps in a run of `total_steps`.
    ///
    /// A ratio leaves at least one step: the first step of a warm-up has the rate 0, so that a run of one step would learn
    /// nothing.
    pub fn num_warmup_steps(&self, total_steps: usize) -> usize {
        match self.warmup_steps {
            Some(steps) => steps.min(total_steps),
            None => {
                let steps = (self.warmup_ratio * total_steps as f64).ceil() as usize;
                steps.min(total_steps.saturating_sub(1))
            }
        }
    }
}

/// The value of `--report-to` that means event files of TensorBoard.
const TENSORBOARD: &str = "tensorboard";
/// The value of `--report-to` that means nothing.
const NO_REPORT: &str = "none";

/// Length, batches, seed and outputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunConfig {
    /// The folder that is written: a new one, or one that is empty.
    #[serde(skip)]
    pub output: PathBuf,
    /// `output` ends with a number: when another run has taken it meanwhile, the next number that is free is taken.
    #[serde(skip)]
    pub numbered: bool,
    /// Train every parameter instead of an adapter.
    pub full: bool,
    /// Passes over the data; used when `max_steps` is `None`. `None` is 3, or 10 for the bundled model.
    pub epochs: Option<f64>,
    /// Optimizer steps in all.
    pub max_steps: Option<usize>,
    /// Examples (rows, with packing) per micro-batch.
    pub batch_size: usize,
    /// `batch_size` and `gradient_accumulation` only say how many examples a step has: as many are computed at once as fit.
    #[serde(skip)]
    pub batch_size_auto: bool,
    /// Micro-batches per optimizer step, of each of several devices.
    pub gradient_accumulation: usize,
    /// Seed of shuffling, initialization and dropout.
    pub seed: u64,
    /// Write a checkpoint every so many steps.
    pub save_steps: Option<usize>,
    /// Write metrics every so many steps.
    pub log_steps: usize,
    /// Keep so many checkpoints; `None` is all.
    pub save_total_limit: Option<usize>,
    /// Evaluate every so many steps; `None` is once at the end.
    pub eval_steps: Option<usize>,
    /// The checkpoint with the lowest evaluation loss is the result, and not the last step.
    pub load_best: bool,
    /// End the run after so many evaluations in a row that have not improved the loss.
    pub early_stopping_patience: Option<usize>,
    /// How far below the best loss counts as improved; `None` is 0.
    pub early_stopping_threshold: Option<f64>,
    /// Programs that get the numbers of the steps besides the metrics file: `tensorboard` or `none`.
    pub report_to: Vec<String>,
    /// Folder of TensorBoard's event files; `None` is `runs` in the output folder.
    pub logging_dir: Option<PathBuf>,
    /// Checkpoint to continue from, or the folder of a run: then its newest checkpoint.
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// Continue although data or settings differ from those of the checkpoint.
    #[serde(skip)]
    pub resume_anyway: bool,
    /// Adapter folder to start from, instead of a new adapter.
    pub adapter: Option<PathBuf>,
    /// Show so many examples instead of training.
    #[serde(skip)]
    pub preview: Option<usize>,
}

impl RunConfig {
    /// Where TensorBoard's event files go; `None` where none are written.
    pub(crate) fn events_folder(&self, output: &Path) -> Option<PathBuf> {
        let is_asked_for = self.report_to.iter().any(|name| name == TENSORBOARD);
        match &self.logging_dir {
            Some(folder) => Some(folder.clone()),
            None => is_asked_for.then(|| output.join("runs")),
        }
    }

    /// Whether the evaluations change the result.
    pub(crate) fn decides_by_evaluations(&self) -> bool {
        self.load_best || self.early_stopping_patience.is_some()
    }

    /// Optimizer steps of the whole run, given those of one epoch.
    pub fn num_steps(&self, steps_per_epoch: usize) -> usize {
        self.max_steps.unwrap_or_else(|| {
            ((self.epochs.unwrap_or(DEFAULT_EPOCHS) * steps_per_epoch as f64).ceil() as usize)
                .max(1)
        })
    }
}

/// Which activations are computed a second time; see [`Checkpointing`](crate::step::Checkpointing).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BoolOrAuto", into = "BoolOrAuto")]
pub enum GradientCheckpointing {
    /// As few as the memory allows.
    Auto,
    /// Those of every layer.
    True,
    /// None.
    False,
    /// Those of so many layers, the first ones; two at least.
    Layers(usize),
}

impl GradientCheckpointing {
    /// 0 and 1 are what other programs write for `false` and `true`.
    fn of_layers(layers: usize) -> Result<Self, String> {
        match layers {
            0 | 1 => Err(format!(
                "{layers} may be meant as false or true: expected true or false, \"auto\", or a number of layers from 2 on"
            )),
            _ => Ok(Self::Layers(layers)),
        }
    }
}

impl FromStr for GradientCheckpointing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "true" => Ok(Self::True),
            "false" => Ok(Self::False),
            _ => match text.parse() {
                Ok(layers) => Self::of_layers(layers),
                Err(_) => Err("expected `true`, `false`, `auto` or a number of layers".to_owned()),
            },
        }
    }
}

/// How a file may say it: `true` without quotes is no string in most formats.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected true, false, \"auto\" or a number of layers"
)]
enum BoolOrAuto {
    Bool(bool),
    Layers(usize),
    Text(Text),
}

/// `"true"` and `"false"` are what files of earlier runs say.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Text {
    Auto,
    True,
    False,
}

impl TryFrom<BoolOrAuto> for GradientCheckpointing {
    type Error = String;

    fn try_from(value: BoolOrAuto) -> Result<Self, String> {
        match value {
            BoolOrAuto::Bool(true) | BoolOrAuto::Text(Text::True) => Ok(Self::True),
            BoolOrAuto::Bool(false) | BoolOrAuto::Text(Text::False) => Ok(Self::False),
            BoolOrAuto::Text(Text::Auto) => Ok(Self::Auto),
            BoolOrAuto::Layers(layers) => Self::of_layers(layers),
        }
    }
}

impl From<GradientCheckpointing> for BoolOrAuto {
    fn from(value: GradientCheckpointing) -> Self {
        match value {
            GradientCheckpointing::True => Self::Bool(true),
            GradientCheckpointing::False => Self::Bool(false),
            GradientCheckpointing::Auto => Self::Text(Text::Auto),
            GradientCheckpointing::Layers(layers) => Self::Layers(layers),
        }
    }
}

/// The optimizer, by the names of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Optim {
    /// Moments in f32.
    #[serde(rename = "adamw", alias = "adamw_torch", alias = "adamw_torch_fused")]
    #[value(alias = "adamw_torch", alias = "adamw_torch_fused")]
    Adamw,
    /// Moments in 8 bits a value and a scale for each 256 values.
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit")]
    #[value(name = "adamw_8bit", alias = "adamw_bnb_8bit")]
    Adamw8bit,
}

/// Which tokens are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// What the assistant says, in every turn, and the token that ends it.
    Assistant,
    /// Everything except what the assistant says.
    Prompt,
    /// Every token.
    All,
}

/// Treatment of answers without reasoning when the template's generation prompt opens a think block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Thinking {
    /// The data's reasoning is learnt; an answer without any is an error.
    Keep,
    /// An answer without reasoning gets an empty think block; an answer with reasoning keeps it.
    Empty,
}

/// Learning rate after the warm-up, by the names of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Half a cosine wave down to 0.
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// Stays at the peak (constant_with_warmup).
    #[serde(alias = "constant_with_warmup")]
    #[value(alias = "constant_with_warmup")]
    Constant,
    /// Half a cosine wave down to --min-lr or --min-lr-rate.
    CosineWithMinLr,
    /// Stays at the peak, then half a cosine wave over the last --lr-decay-steps (wsd).
    #[serde(alias = "wsd")]
    #[value(alias = "wsd")]
    WarmupStableDecay,
    /// A power of the part of the steps that is left, down to --min-lr [default: 1e-7].
    Polynomial,
    /// √(W / step), W being the warm-up steps; without a warm-up √(10000 / (10000 + step)).
    InverseSqrt,
}

impl LrSchedule {
    /// Whether `--min-lr` and `--min-lr-rate` are settings of it.
    fn has_min_lr(self) -> bool {
        matches!(
            self,
            Self::CosineWithMinLr | Self::WarmupStableDecay | Self::Polynomial
        )
    }

    /// Whether `--lr-power` is.
    fn has_power(self) -> bool {
        self == Self::Polynomial
    }

    /// Whether `--lr-decay-steps` is.
    fn has_decay_steps(self) -> bool {
        self == Self::WarmupStableDecay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_of_checkpointing_is_read_again() {
        use GradientCheckpointing::{Auto, False, True};
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct File {
            value: GradientCheckpointing,
        }
        for (value, text) in [(Auto, "\"auto\""), (True, "true"), (False, "false")] {
            let written = toml::to_string(&File { value }).unwrap();
            assert_eq!(written.trim(), format!("value = {text}"));
            assert_eq!(toml::from_str::<File>(&written).unwrap(), File { value });
            // Files of earlier versions.
            let old = format!("value = \"{}\"", text.trim_matches('"'));
            assert_eq!(toml::from_str::<File>(&old).unwrap(), File { value });
        }
        let some = File {
            value: GradientCheckpointing::Layers(12),
        };
        assert_eq!(toml::to_string(&some).unwrap().trim(), "value = 12");
        assert_eq!(toml::from_str::<File>("value = 12").unwrap(), some);
        assert_eq!("12".parse(), Ok(some.value));
        for text in ["value = -1", "value = 0", "value = 1"] {
            assert!(toml::from_str::<File>(text).is_err(), "{text}");
        }
        assert!("1".parse::<GradientCheckpointing>().is_err());
        assert!("some".parse::<GradientCheckpointing>().is_err());
    }
}
