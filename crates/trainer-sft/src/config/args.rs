//! The command line, and the `--config` file that has the same names.
//!
//! Every field is optional here: what neither a flag nor the file gives is filled in by [`crate::config::Config::from_args`].
//! Names and meanings follow TRL's `SFTConfig` and PEFT's `LoraConfig`; their spellings are accepted as aliases.

mod hints;
mod merge;
mod parse;
mod values;

use std::path::PathBuf;
use std::str::FromStr as _;

use clap::Parser;
use lora_4bit::ComputeDtype;
use model_qwen::flags::{bytes, fraction, some_of};
use model_qwen::{Dtype, Quantization};
use serde::{Deserialize, Serialize};

pub(crate) use self::hints::{nearest, with_hyphens};
pub use self::parse::ArgsError;
use self::values::{COMPUTE_DTYPE, one_or_many, seed, size};
pub(crate) use self::values::{DTYPE, QUANTIZATION, number, whole};
use crate::config::{
    BatchSize, GradientCheckpointing, InitLora, LossType, LrSchedule, Method, Optim, ScaleRewards,
    Thinking, TrainOn,
};

/// Fine-tune a Qwen-architecture model with LoRA, QLoRA or in full.
///
/// Learns from chats, instructions or plain text (JSONL) and writes a PEFT adapter folder that the server, PEFT and vLLM
/// load. Without --model it trains the small bundled model; `--data data/train.jsonl` is all it needs.
/// Before training: the commands `init` and `check`; after training: `merge`, `inspect`, `export`, `eval` and `chat`, each with a
/// --help of its own.
#[derive(Clone, Debug, Default, Parser, Serialize, Deserialize)]
#[command(name = "trainer-sft", version, max_term_width = 110)]
#[serde(deny_unknown_fields, default)]
pub struct Args {
    /// TOML file with settings: the keys are these flags' names with underscores (`lora_r = 8`). Flags win over the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// File to learn from: JSONL, a JSON array or CSV, also as .gz or .zst; a folder of such files, a glob pattern, or `-`
    /// for standard input; repeat for several. Each record is one of: `messages` (OpenAI), `conversations` (ShareGPT),
    /// `instruction`/`input`/`output` (Alpaca), `prompt`/`completion`, `query`/`response`, `segments`, `text`; with --method
    /// dpo, orpo and kto `prompt`/`chosen`/`rejected` or `prompt`/`completion`/`label`, with grpo `prompt` (a text or messages)
    /// and any fields for rewards
    #[arg(long, value_name = "FILE", help_heading = "Data", visible_alias = "train-file", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many")]
    pub data: Vec<PathBuf>,

    /// File to evaluate on (same formats); repeat for several
    #[arg(long, value_name = "FILE", help_heading = "Data", visible_alias = "eval-file", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many")]
    pub eval_data: Vec<PathBuf>,

    /// Keep this part of the records of --data for evaluation, drawn by --seed: 0.05 is one in twenty
    #[arg(long, value_name = "PART", help_heading = "Data", visible_alias = "val-size", value_parser = number, allow_negative_numbers = true)]
    pub eval_split: Option<f64>,

    /// Names of the fields in the data: prompt=question,completion=answer reads `question` as the prompt and `answer` as the
    /// completion, and no other field
    #[arg(long, value_name = "PART=FIELD", help_heading = "Data", value_delimiter = ',', num_args = 1..)]
    #[serde(deserialize_with = "one_or_many")]
    pub columns: Vec<String>,

    /// End with an error at a record that teaches nothing, instead of leaving it out with a warning
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub strict: Option<bool>,

    /// Read the data while training, in blocks of 4096 records that are shuffled, instead of before the first step; needs
    /// --max-steps
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub streaming: Option<bool>,

    /// Longest example in tokens, at most the model's context. Longer ones lose the left of their prompt, never part of
    /// an answer [default: 1024]
    #[arg(
        long,
        value_name = "TOKENS",
        help_heading = "Data",
        visible_alias = "max-seq-length",
        alias = "cutoff-len",
        value_parser = whole, allow_negative_numbers = true
    )]
    pub max_length: Option<usize>,

    /// Put several short examples into one row of --max-length tokens. They do not see each other
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub packing: Option<bool>,

    /// Tokens the loss is taken over: the assistant's turns with their end token, the rest (`prompt`), or `all`
    /// [default: assistant]
    #[arg(long, value_enum, help_heading = "Data")]
    pub train_on: Option<TrainOn>,

    /// For templates that open a think block (DeepSeek-R1): `keep` learns the reasoning in the data and refuses answers
    /// without any, `empty` gives those an empty block [default: keep]
    #[arg(long, value_enum, help_heading = "Data")]
    pub thinking: Option<Thinking>,

    /// Show the first N examples as tokens, with the learnt tokens highlighted, and stop
    #[arg(long, value_name = "N", help_heading = "Data", num_args = 0..=1, default_missing_value = "1", value_parser = whole, allow_negative_numbers = true)]
    #[serde(skip)]
    pub preview: Option<usize>,

    /// Folder or Hugging Face id of the base model [default: the bundled model]
    #[arg(
        long,
        value_name = "MODEL",
        help_heading = "Model",
        visible_alias = "model-name-or-path"
    )]
    pub model: Option<String>,

    /// Base weights: `nf4` (4-bit, QLoRA) or `none` (as in the checkpoint, LoRA) [default: nf4; none with --full]
    #[arg(long, value_parser = some_of::<Quantization>(&QUANTIZATION), help_heading = "Model")]
    pub quantization: Option<Quantization>,

    /// Quantize the scales of 4-bit blocks too, which saves 0.37 bits per weight [default: on]
    #[arg(long, help_heading = "Model", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub double_quant: Option<bool>,

    /// Keep the scales of 4-bit blocks in 32 bits
    #[arg(long, help_heading = "Model", conflicts_with = "double_quant")]
    #[serde(skip)]
    pub no_double_quant: bool,

    /// Dtype of the base weights that are not quantized [default: auto, as in the checkpoint]
    #[arg(
        long,
        value_parser = some_of::<Dtype>(&DTYPE),
        help_heading = "Model",
        visible_alias = "torch-dtype"
    )]
    pub dtype: Option<Dtype>,

    /// Type in which frozen weights are multiplied: `bf16` rounds the factors where that is faster (a CPU with
    /// AVX-512-BF16, a GPU with tensor cores), sums stay in f32; `f32` does not round them to it. --full trains in f32
    /// [default: bf16]
    #[arg(
        long,
        value_parser = some_of::<ComputeDtype>(&COMPUTE_DTYPE),
        help_heading = "Model",
        visible_alias = "bnb-4bit-compute-dtype"
    )]
    pub compute_dtype: Option<ComputeDtype>,

    /// auto, cpu, cuda, cuda:N, wgpu, vulkan, metal or rocm, as far as compiled in [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "Model")]
    pub device: Option<String>,

    /// Train every parameter and write a whole model instead of an adapter
    #[arg(long, help_heading = "Model", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub full: Option<bool>,

    /// With --full: start from random weights of the shape in this config.json (needs --tokenizer)
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub init_config: Option<PathBuf>,

    /// Folder with tokenizer.json and the chat template [default: the model's]
    #[arg(long, value_name = "FOLDER", help_heading = "Model")]
    pub tokenizer: Option<PathBuf>,

    /// What is learnt: `sft` learns to say the answers; `dpo` and `orpo` learn from pairs (`prompt`, `chosen`, `rejected`), `kto`
    /// from judged answers (`prompt`, `completion`, `label`), `grpo` from rewards for the model's own answers [default: sft]
    #[arg(long, value_enum, help_heading = "Method")]
    pub method: Option<Method>,

    /// dpo, kto: how much a difference from the reference weighs; orpo: how much the comparison weighs; grpo: weight of the
    /// divergence (KL) from the model with the adapter switched off [default: 0.1; 0 with grpo]
    #[arg(long, value_name = "BETA", help_heading = "Method", value_parser = number, allow_negative_numbers = true)]
    pub beta: Option<f64>,

    /// Loss of dpo (sigmoid, ipo, hinge, robust), or how grpo averages the losses of tokens (grpo, dr_grpo, dapo) [default:
    /// sigmoid; dapo with grpo]
    #[arg(long, value_enum, help_heading = "Method")]
    pub loss_type: Option<LossType>,

    /// dpo: part of the pairs that are taken to be the wrong way round, for --loss-type sigmoid and robust [default: 0]
    #[arg(long, value_name = "PART", help_heading = "Method", value_parser = number, allow_negative_numbers = true)]
    pub label_smoothing: Option<f64>,

    /// kto: weight of the answers whose label is true [default: 1]
    #[arg(long, value_name = "W", help_heading = "Method", value_parser = number, allow_negative_numbers = true)]
    pub desirable_weight: Option<f64>,

    /// kto: weight of the answers whose label is false [default: 1]
    #[arg(long, value_name = "W", help_heading = "Method", value_parser = number, allow_negative_numbers = true)]
    pub undesirable_weight: Option<f64>,

    /// dpo, kto: the reference is the model with this adapter (a PEFT folder) [default: that of --adapter, or the model without
    /// an adapter]
    #[arg(long, value_name = "FOLDER", help_heading = "Method")]
    pub ref_adapter: Option<PathBuf>,

    /// Start from this adapter (a PEFT folder) instead of a new one, for example with other data. Its rank, alpha and layers
    /// stay
    #[arg(long, value_name = "FOLDER", help_heading = "LoRA")]
    pub adapter: Option<PathBuf>,

    /// Rank of the adapter [default: 16]
    #[arg(
        long,
        value_name = "R",
        help_heading = "LoRA",
        visible_alias = "lora-rank",
        alias = "rank",
        value_parser = whole, allow_negative_numbers = true
    )]
    pub lora_r: Option<usize>,

    /// Scale of the adapter: its output is multiplied by alpha / r [default: 32]
    #[arg(long, value_name = "ALPHA", help_heading = "LoRA", value_parser = number, allow_negative_numbers = true)]
    pub lora_alpha: Option<f64>,

    /// Probability of zeroing an input of the adapter while training [default: 0]
    #[arg(long, value_name = "P", help_heading = "LoRA", value_parser = number, allow_negative_numbers = true)]
    pub lora_dropout: Option<f64>,

    /// Layers that get an adapter: `all-linear`, or a list such as q_proj,v_proj [default: all-linear]
    #[arg(long, value_name = "NAMES", help_heading = "LoRA", value_delimiter = ',', num_args = 1..,
          visible_alias = "lora-target-modules")]
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,

    /// Rank-stabilized scale: alpha / sqrt(r)
    #[arg(long, help_heading = "LoRA", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub use_rslora: Option<bool>,

    /// DoRA: train the length of each row of the weights beside the adapter. On a CPU; costs time and memory
    #[arg(long, help_heading = "LoRA", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub use_dora: Option<bool>,

    /// Train the whole weight of these modules, too, for tokens that were added: embed_tokens,lm_head. On a CPU; the server
    /// loads the merged model (command `merge`) [default: none]
    #[arg(long, value_name = "NAMES", help_heading = "LoRA", value_delimiter = ',', num_args = 1..,
          visible_alias = "additional-target")]
    #[serde(deserialize_with = "one_or_many")]
    pub modules_to_save: Vec<String>,

    /// How A and B start: `true` (A uniform, B zero), `gaussian`, `pissa`, `pissa_niter_N` (N iterations, faster) or `olora`.
    /// The last three start as a part of the weights and need --quantization none; the adapter is written as a plain one of
    /// twice the rank [default: true]
    #[arg(long, value_name = "INIT", help_heading = "LoRA", value_parser = InitLora::from_str)]
    pub init_lora_weights: Option<InitLora>,

    /// LoRA+: the learning rate of B is this times that of A, for example 16 [default: 1]
    #[arg(long, value_name = "RATIO", help_heading = "LoRA", value_parser = number, allow_negative_numbers = true)]
    pub loraplus_lr_ratio: Option<f64>,

    /// Optimizer: `adamw`, or `adamw_8bit`, whose moments take 8 bits a value as in bitsandbytes (on a CPU)
    /// [default: adamw]
    #[arg(long, value_enum, help_heading = "Training")]
    pub optim: Option<Optim>,

    /// Peak learning rate of AdamW [default: 2e-4; 5e-6 with --method dpo, orpo and kto, 1e-5 with grpo; for LoRA on the bundled
    /// model 2e-3, 1e-4 and 1e-5]
    #[arg(long, value_name = "LR", help_heading = "Training", visible_alias = "lr", value_parser = number, allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,

    /// Learning rate after the warm-up [default: cosine]
    #[arg(
        long,
        value_enum,
        help_heading = "Training",
        visible_alias = "lr-scheduler-type"
    )]
    pub lr_schedule: Option<LrSchedule>,

    /// Part of all steps in which the learning rate rises to its peak [default: 0.03]
    #[arg(long, value_name = "PART", help_heading = "Training", value_parser = number, allow_negative_numbers = true)]
    pub warmup_ratio: Option<f64>,

    /// Number of steps in which the learning rate rises; replaces --warmup-ratio
    #[arg(long, value_name = "STEPS", help_heading = "Training", value_parser = whole, allow_negative_numbers = true)]
    pub warmup_steps: Option<usize>,

    /// Lowest learning rate of the schedules cosine_with_min_lr, warmup_stable_decay and polynomial
    #[arg(long, value_name = "LR", help_heading = "Training", value_parser = number, allow_negative_numbers = true)]
    pub min_lr: Option<f64>,

    /// The same as a part of the peak: 0.1 is a tenth of --learning-rate
    #[arg(long, value_name = "PART", help_heading = "Training", visible_alias = "min-lr-ratio", value_parser = number, allow_negative_numbers = true)]
    pub min_lr_rate: Option<f64>,

    /// Power of the schedule polynomial [default: 1]
    #[arg(long, value_name = "POWER", help_heading = "Training", value_parser = number, allow_negative_numbers = true)]
    pub lr_power: Option<f64>,

    /// Steps at the end in which the schedule warmup_stable_decay lowers the learning rate
    #[arg(long, value_name = "STEPS", help_heading = "Training", visible_alias = "num-decay-steps", value_parser = whole, allow_negative_numbers = true)]
    pub lr_decay_steps: Option<usize>,

    /// Decoupled weight decay of AdamW [default: 0]
    #[arg(long, value_name = "W", help_heading = "Training", value_parser = number, allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,

    /// NEFTune: add noise to the embeddings while training, uniform within ±ALPHA / √(tokens × hidden size) of an example, for
    /// example 5 [default: none]
    #[arg(long, value_name = "ALPHA", help_heading = "Training", value_parser = number, allow_negative_numbers = true)]
    pub neftune_noise_alpha: Option<f64>,

    /// Gradients are scaled down to this global L2 norm; 0 switches it off [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Training", value_parser = number, allow_negative_numbers = true)]
    pub max_grad_norm: Option<f64>,

    /// Passes over the data; may be a fraction [default: 3; 10 for LoRA on the bundled model]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Training",
        visible_alias = "num-train-epochs",
        value_parser = number, allow_negative_numbers = true
    )]
    pub epochs: Option<f64>,

    /// Stop after so many optimizer steps; replaces --epochs
    #[arg(long, value_name = "STEPS", help_heading = "Training", value_parser = whole, allow_negative_numbers = true)]
    pub max_steps: Option<usize>,

    /// Examples (rows, with --packing; answers, with --method grpo) computed at once, or `auto`: of 4 × --gradient-accumulation
    /// as many as fit into memory [default: 4; --num-generations with grpo]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Training",
        visible_alias = "per-device-train-batch-size",
        allow_negative_numbers = true
    )]
    pub batch_size: Option<BatchSize>,

    /// Batches per optimizer step; the loss is the mean over the learnt tokens of all of them [default: 1]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Training",
        visible_alias = "gradient-accumulation-steps",
        value_parser = whole, allow_negative_numbers = true
    )]
    pub gradient_accumulation: Option<usize>,

    /// Compute activations a second time in the backward pass instead of keeping them: `true`, `false`, or `auto`, which
    /// on a CPU keeps those of as many layers as fit into half of the free memory, and none on other devices
    /// [default: auto]
    #[arg(long, value_enum, help_heading = "Training", num_args = 0..=1, default_missing_value = "true")]
    pub gradient_checkpointing: Option<GradientCheckpointing>,

    /// Fraction of the device's memory that the run may take. A run that would take more is refused with the flags that would
    /// fit [default: 0.9 on a GPU]
    #[arg(long, value_name = "FRACTION", help_heading = "Memory", value_parser = fraction, allow_negative_numbers = true)]
    pub gpu_memory_utilization: Option<f64>,

    /// Pretend that the device has this much memory (8GiB, 6000MB, bytes), to share it or to test a fit
    #[arg(long, value_name = "SIZE", help_heading = "Memory", value_parser = bytes)]
    #[serde(deserialize_with = "size")]
    pub device_memory: Option<u64>,

    /// Print what memory the run takes, before anything is loaded, and stop
    #[arg(long, help_heading = "Memory")]
    #[serde(skip)]
    pub dry_run: bool,

    /// Seed of shuffling, initialization and dropout [default: 42]
    #[arg(long, value_name = "SEED", help_heading = "Training", value_parser = seed, allow_negative_numbers = true)]
    pub seed: Option<u64>,

    /// Answers to each prompt, which are compared with each other [default: 8]
    #[arg(long, value_name = "N", help_heading = "GRPO", value_parser = whole, allow_negative_numbers = true)]
    pub num_generations: Option<usize>,

    /// Temperature that answers are drawn with [default: 1]
    #[arg(long, value_name = "T", help_heading = "GRPO", value_parser = number, allow_negative_numbers = true)]
    pub temperature: Option<f64>,

    /// The most tokens of an answer [default: 512]
    #[arg(long, value_name = "TOKENS", help_heading = "GRPO", value_parser = whole, allow_negative_numbers = true)]
    pub max_completion_length: Option<usize>,

    /// Optimizer steps on the same answers [default: 1]
    #[arg(long, value_name = "N", help_heading = "GRPO", value_parser = whole, allow_negative_numbers = true)]
    pub num_iterations: Option<usize>,

    /// How far such steps may change the probability of a token: its ratio is clipped to 1 ± EPSILON [default: 0.2]
    #[arg(long, value_name = "EPSILON", help_heading = "GRPO", value_parser = number, allow_negative_numbers = true)]
    pub epsilon: Option<f64>,

    /// The bound upwards, where it is another one [default: --epsilon]
    #[arg(long, value_name = "EPSILON", help_heading = "GRPO", value_parser = number, allow_negative_numbers = true)]
    pub epsilon_high: Option<f64>,

    /// What rewards are divided by, after the mean of their group was subtracted [default: group]
    #[arg(long, value_enum, help_heading = "GRPO")]
    pub scale_rewards: Option<ScaleRewards>,

    /// Reward of an answer, from 0 to 1; repeat for several, which are added: `exact_match` (the record's `answer`, or
    /// exact_match:COLUMN), `regex:PATTERN` (found in the answer), `json` (an object or a list), `json_schema:FILE`,
    /// `length:MIN-MAX` (in tokens)
    #[arg(long, value_name = "REWARD", help_heading = "GRPO")]
    #[serde(deserialize_with = "one_or_many")]
    pub reward: Vec<String>,

    /// Program that gives rewards: it gets a POST with `prompts`, `completions` and `columns`, and answers {"rewards": […]};
    /// repeat for several
    #[arg(long, value_name = "URL", help_heading = "GRPO")]
    #[serde(deserialize_with = "one_or_many")]
    pub reward_url: Vec<String>,

    /// Weights of the rewards, in the order of --reward and then of --reward-url [default: 1 each]
    #[arg(long, value_name = "WEIGHTS", help_heading = "GRPO", value_delimiter = ',', num_args = 1.., value_parser = number, allow_negative_numbers = true)]
    pub reward_weights: Vec<f64>,

    /// Seconds that --reward-url may take to answer [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = "GRPO", value_parser = number, allow_negative_numbers = true)]
    pub reward_timeout: Option<f64>,

    /// Folder to write, a new or empty one; nothing is overwritten [default: adapters/DATA-N; models/… with --full]
    #[arg(
        long,
        short,
        value_name = "FOLDER",
        help_heading = "Output",
        visible_alias = "output-dir"
    )]
    pub output: Option<PathBuf>,

    /// Write a checkpoint every so many steps [default: only the result at the end]
    #[arg(long, value_name = "STEPS", help_heading = "Output", value_parser = whole, allow_negative_numbers = true)]
    pub save_steps: Option<usize>,

    /// Write metrics every so many steps [default: 1]
    #[arg(long, value_name = "STEPS", help_heading = "Output", visible_alias = "logging-steps", value_parser = whole, allow_negative_numbers = true)]
    pub log_steps: Option<usize>,

    /// Keep so many checkpoints, the newest and the best one of --load-best [default: all]
    #[arg(long, value_name = "N", help_heading = "Output", value_parser = whole, allow_negative_numbers = true)]
    pub save_total_limit: Option<usize>,

    /// Evaluate every so many steps (needs --eval-data or --eval-split) [default: at the end]
    #[arg(long, value_name = "STEPS", help_heading = "Output", value_parser = whole, allow_negative_numbers = true)]
    pub eval_steps: Option<usize>,

    /// Write a checkpoint after each evaluation with a lower loss than all before (needs --eval-steps), and make the best one
    /// the result
    #[arg(long, help_heading = "Output", visible_alias = "load-best-model-at-end", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub load_best: Option<bool>,

    /// End the run when so many evaluations in a row (needs --eval-steps) have not improved the loss
    #[arg(long, value_name = "N", help_heading = "Output", value_parser = whole, allow_negative_numbers = true)]
    pub early_stopping_patience: Option<usize>,

    /// How far a loss has to be below the best one to count for --early-stopping-patience [default: 0]
    #[arg(long, value_name = "LOSS", help_heading = "Output", value_parser = number, allow_negative_numbers = true)]
    pub early_stopping_threshold: Option<f64>,

    /// Write the numbers of the steps also as event files of `tensorboard`, or `none` [default: none]
    #[arg(long, value_name = "PROGRAM", help_heading = "Output", value_delimiter = ',', num_args = 1..)]
    #[serde(deserialize_with = "one_or_many")]
    pub report_to: Vec<String>,

    /// Prompts to answer before the first step, at each evaluation and at the end, with greedy decoding: a text on each line, or
    /// JSON objects with `prompt` or `messages`. The answers are in the log, in samples.jsonl and in report.html
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub sample_prompts: Option<PathBuf>,

    /// Answer --sample-prompts every so many steps instead of at each evaluation
    #[arg(long, value_name = "STEPS", help_heading = "Output", value_parser = whole, allow_negative_numbers = true)]
    pub sample_steps: Option<usize>,

    /// The most tokens of such an answer [default: 128]
    #[arg(long, value_name = "TOKENS", help_heading = "Output", value_parser = whole, allow_negative_numbers = true)]
    pub sample_max_tokens: Option<usize>,

    /// Folder of the event files for TensorBoard, which are written then [default: `runs` in the output folder]
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    pub logging_dir: Option<PathBuf>,

    /// Continue from this checkpoint, or from the newest one of this run, bit for bit as if the run had not stopped. The
    /// settings are those of its run.toml
    #[arg(
        long,
        value_name = "FOLDER",
        help_heading = "Output",
        visible_alias = "resume-from-checkpoint"
    )]
    #[serde(skip)]
    pub resume: Option<PathBuf>,

    /// Continue although model, data or settings differ from those of the checkpoint
    #[arg(long, help_heading = "Output")]
    #[serde(skip)]
    pub resume_anyway: bool,
}
