//! The optimizer, and how long it goes on.

use serde::{Deserialize, Serialize};

use super::values::{number, seed, warmup_steps, whole};
use crate::config::{BatchSize, GradientCheckpointing, LrSchedule, Optim, OptimizerConfig};

/// The flags under "Training".
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingArgs {
    /// Optimizer: `adamw`, or `adamw_8bit`, whose moments take 8 bits a value as in bitsandbytes
    /// [default: adamw]
    #[arg(long, value_enum)]
    pub optim: Option<Optim>,

    /// Peak learning rate of AdamW [default: 2e-4; 5e-6 with --method dpo, orpo and kto, 1e-5 with grpo; for LoRA on the bundled
    /// model 2e-3, 1e-4 and 1e-5]
    #[arg(
        long,
        value_name = "LR",
        visible_alias = "lr",
        value_parser = number
    )]
    pub learning_rate: Option<f64>,

    /// Learning rate after the warm-up [default: cosine]
    #[arg(long, value_enum, visible_alias = "lr-scheduler-type")]
    pub lr_schedule: Option<LrSchedule>,

    /// Part of all steps in which the learning rate rises to its peak [default: 0.03]
    #[arg(long, value_name = "PART", value_parser = number)]
    pub warmup_ratio: Option<f64>,

    /// Number of steps in which the learning rate rises, in the place of --warmup-ratio
    #[arg(long, value_name = "STEPS", value_parser = warmup_steps)]
    pub warmup_steps: Option<usize>,

    /// Lowest learning rate of the schedules cosine_with_min_lr, warmup_stable_decay and polynomial
    #[arg(long, value_name = "LR", value_parser = number)]
    pub min_lr: Option<f64>,

    /// The same as a part of the peak: 0.1 is a tenth of --learning-rate
    #[arg(long, value_name = "PART", visible_alias = "min-lr-ratio", value_parser = number)]
    pub min_lr_rate: Option<f64>,

    /// Power of the schedule polynomial [default: 1]
    #[arg(long, value_name = "POWER", value_parser = number)]
    pub lr_power: Option<f64>,

    /// Steps at the end in which the schedule warmup_stable_decay lowers the learning rate
    #[arg(long, value_name = "STEPS", visible_alias = "num-decay-steps", value_parser = whole)]
    pub lr_decay_steps: Option<usize>,

    /// Decoupled weight decay of AdamW [default: 0]
    #[arg(long, value_name = "W", value_parser = number)]
    pub weight_decay: Option<f64>,

    /// NEFTune: add noise to the embeddings while training, uniform within ±ALPHA / √(tokens × hidden size) of an example, for
    /// example 5 [default: none]
    #[arg(long, value_name = "ALPHA", value_parser = number)]
    pub neftune_noise_alpha: Option<f64>,

    /// Gradients are scaled down to this global L2 norm; 0 switches it off [default: 1]
    #[arg(long, value_name = "NORM", value_parser = number)]
    pub max_grad_norm: Option<f64>,

    /// Passes over the data; may be a fraction [default: 3; 10 for LoRA on the bundled model]
    #[arg(
        long,
        value_name = "N",
        visible_alias = "num-train-epochs",
        value_parser = number
    )]
    pub epochs: Option<f64>,

    /// Stop after so many optimizer steps; replaces --epochs
    #[arg(long, value_name = "STEPS", value_parser = whole)]
    pub max_steps: Option<usize>,

    /// Examples (rows, with --packing; answers, with --method grpo) computed at once, or `auto`: of 4 × --gradient-accumulation
    /// as many as fit into memory [default: 4; --num-generations with grpo]
    #[arg(long, value_name = "N", visible_alias = "per-device-train-batch-size")]
    pub batch_size: Option<BatchSize>,

    /// Batches per optimizer step; the loss is the mean over the learnt tokens of all of them [default: 1]
    #[arg(
        long,
        value_name = "N",
        visible_alias = "gradient-accumulation-steps",
        value_parser = whole
    )]
    pub gradient_accumulation: Option<usize>,

    /// Compute activations a second time in the backward pass instead of keeping them: `true`, `false`, how many layers do so, or
    /// `auto`. That keeps on a GPU those of as many layers as the memory holds that --device-memory or --gpu-memory-utilization
    /// allows, and none without these flags; on a CPU those of as many as fit into half of the free memory (all or none with these
    /// flags) [default: auto]
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = "true")]
    pub gradient_checkpointing: Option<GradientCheckpointing>,

    /// Keep in the host's memory what gradient checkpointing keeps of each layer between the forward and the backward pass (on a
    /// GPU). Takes less of the GPU's memory and a little more time; the losses are the same
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub offload_activations: Option<bool>,

    /// Seed of shuffling, initialization and dropout [default: 42]
    #[arg(long, value_name = "SEED", value_parser = seed)]
    pub seed: Option<u64>,
}

impl TrainingArgs {
    /// Whether two settings of these say the same, so that one of them would have no effect.
    pub(super) fn says_twice(&self) -> Option<[&'static str; 2]> {
        let both = self.warmup_ratio.is_some() && self.warmup_steps.is_some();
        both.then_some(["warmup-ratio", "warmup-steps"])
    }

    /// These settings of a file, without the default of `warmup_ratio`, which a run writes beside `warmup_steps`, too.
    pub(super) fn without_idle_default(mut self) -> Self {
        let default = OptimizerConfig::default().warmup_ratio;
        if self.warmup_steps.is_some() && self.warmup_ratio == Some(default) {
            self.warmup_ratio = None;
        }
        self
    }

    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: Self) -> Self {
        // The file's settings of another schedule are no settings of this one.
        let changed = (self.lr_schedule).filter(|own| file.lr_schedule != Some(*own));
        let fits = |has: fn(LrSchedule) -> bool| changed.is_none_or(has);
        Self {
            optim: self.optim.or(file.optim),
            learning_rate: self.learning_rate.or(file.learning_rate),
            lr_schedule: self.lr_schedule.or(file.lr_schedule),
            // A flag wins over the file's other way of saying the same.
            warmup_steps: match self.warmup_ratio {
                Some(_) => self.warmup_steps,
                None => self.warmup_steps.or(file.warmup_steps),
            },
            warmup_ratio: match self.warmup_steps {
                Some(_) => self.warmup_ratio,
                None => self.warmup_ratio.or(file.warmup_ratio),
            },
            min_lr: match self.min_lr_rate {
                Some(_) => self.min_lr,
                None => self
                    .min_lr
                    .or(file.min_lr.filter(|_| fits(LrSchedule::has_min_lr))),
            },
            min_lr_rate: match self.min_lr {
                Some(_) => self.min_lr_rate,
                None => self
                    .min_lr_rate
                    .or(file.min_lr_rate.filter(|_| fits(LrSchedule::has_min_lr))),
            },
            lr_power: self
                .lr_power
                .or(file.lr_power.filter(|_| fits(LrSchedule::has_power))),
            lr_decay_steps: self.lr_decay_steps.or(file
                .lr_decay_steps
                .filter(|_| fits(LrSchedule::has_decay_steps))),
            neftune_noise_alpha: self.neftune_noise_alpha.or(file.neftune_noise_alpha),
            weight_decay: self.weight_decay.or(file.weight_decay),
            max_grad_norm: self.max_grad_norm.or(file.max_grad_norm),
            max_steps: match self.epochs {
                Some(_) => self.max_steps,
                None => self.max_steps.or(file.max_steps),
            },
            epochs: self.epochs.or(file.epochs),
            batch_size: self.batch_size.or(file.batch_size),
            gradient_accumulation: self.gradient_accumulation.or(file.gradient_accumulation),
            gradient_checkpointing: self.gradient_checkpointing.or(file.gradient_checkpointing),
            offload_activations: self.offload_activations.or(file.offload_activations),
            seed: self.seed.or(file.seed),
        }
    }

    /// The settings of the optimizer with the defaults of the others.
    pub(in crate::config) fn to_config(&self, loraplus_lr_ratio: Option<f64>) -> OptimizerConfig {
        let default = OptimizerConfig::default();
        OptimizerConfig {
            optim: self.optim.unwrap_or(default.optim),
            learning_rate: self.learning_rate,
            lr_schedule: self.lr_schedule.unwrap_or(default.lr_schedule),
            warmup_ratio: self.warmup_ratio.unwrap_or(default.warmup_ratio),
            warmup_steps: self.warmup_steps,
            min_lr: self.min_lr,
            min_lr_rate: self.min_lr_rate,
            lr_power: self.lr_power,
            lr_decay_steps: self.lr_decay_steps,
            loraplus_lr_ratio,
            neftune_noise_alpha: self.neftune_noise_alpha,
            weight_decay: self.weight_decay.unwrap_or(default.weight_decay),
            max_grad_norm: self.max_grad_norm.unwrap_or(default.max_grad_norm),
            gradient_checkpointing: self
                .gradient_checkpointing
                .unwrap_or(default.gradient_checkpointing),
            offload_activations: self
                .offload_activations
                .unwrap_or(default.offload_activations),
        }
    }
}
