//! What a run writes, when, and where it goes on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{between_commas, list, number, steps, whole};
use crate::config::{NO_REPORT, SampleOptions};

/// The flags under "Output".
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputArgs {
    /// Folder to write, a new or empty one; nothing is overwritten [default: adapters/DATA-N; models/… with --full]
    #[arg(long, short, value_name = "FOLDER", visible_alias = "output-dir")]
    pub output: Option<PathBuf>,

    /// Write a checkpoint every so many steps [default: only the result at the end]
    #[arg(long, value_name = "STEPS", value_parser = steps)]
    pub save_steps: Option<usize>,

    /// Write metrics every so many steps [default: 1]
    #[arg(
        long,
        value_name = "STEPS",
        visible_alias = "logging-steps",
        value_parser = steps
    )]
    pub log_steps: Option<usize>,

    /// Keep so many checkpoints, the newest and the best one of --load-best [default: all]
    #[arg(long, value_name = "N", value_parser = whole)]
    pub save_total_limit: Option<usize>,

    /// Evaluate every so many steps (needs --eval-data or --eval-split) [default: at the end]
    #[arg(long, value_name = "STEPS", value_parser = steps)]
    pub eval_steps: Option<usize>,

    /// Write a checkpoint after each evaluation with a lower loss (--method grpo: a higher reward) than all before (needs
    /// --eval-steps), and make the best one the result
    #[arg(long, visible_alias = "load-best-model-at-end", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub load_best: Option<bool>,

    /// End the run when so many evaluations in a row (needs --eval-steps) have not improved the loss (--method grpo: the reward)
    #[arg(long, value_name = "N", value_parser = whole)]
    pub early_stopping_patience: Option<usize>,

    /// How far a loss has to be below the best one (--method grpo: a reward above it) to count for --early-stopping-patience [default: 0]
    #[arg(long, value_name = "LOSS", value_parser = number)]
    pub early_stopping_threshold: Option<f64>,

    /// Write the numbers of the steps also as event files of `tensorboard`, or `none` [default: none]
    #[arg(long, value_name = "PROGRAM", value_delimiter = ',', num_args = 1..)]
    #[serde(deserialize_with = "between_commas")]
    pub report_to: Vec<String>,

    /// Prompts to answer before the first step, at each evaluation and at the end, with greedy decoding: a text on each line, or
    /// JSON objects with `prompt` or `messages`. The answers are in the log, in samples.jsonl and in report.html
    #[arg(long, value_name = "FILE")]
    pub sample_prompts: Option<PathBuf>,

    /// Answer --sample-prompts every so many steps instead of at each evaluation
    #[arg(long, value_name = "STEPS", value_parser = steps)]
    pub sample_steps: Option<usize>,

    /// The most tokens of such an answer [default: 128]
    #[arg(long, value_name = "TOKENS", value_parser = whole)]
    pub sample_max_tokens: Option<usize>,

    /// Folder of the event files for TensorBoard, which are written then [default: `runs` in the output folder]
    #[arg(long, value_name = "FOLDER")]
    pub logging_dir: Option<PathBuf>,

    /// Continue from this checkpoint, or from the newest one of this run, bit for bit as if the run had not stopped. The
    /// settings are those of its run.toml
    #[arg(long, value_name = "FOLDER", visible_alias = "resume-from-checkpoint")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,

    /// Continue although model, data or settings differ from those of the checkpoint
    #[arg(long)]
    #[serde(skip)]
    pub resume_anyway: bool,
}

impl OutputArgs {
    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: Self) -> Self {
        let is_none = self.report_to == [NO_REPORT];
        Self {
            output: self.output.or(file.output),
            save_steps: self.save_steps.or(file.save_steps),
            log_steps: self.log_steps.or(file.log_steps),
            save_total_limit: self.save_total_limit.or(file.save_total_limit),
            eval_steps: self.eval_steps.or(file.eval_steps),
            load_best: self.load_best.or(file.load_best),
            early_stopping_patience: self
                .early_stopping_patience
                .or(file.early_stopping_patience),
            early_stopping_threshold: self
                .early_stopping_threshold
                .or(file.early_stopping_threshold),
            report_to: list(self.report_to, file.report_to),
            logging_dir: self.logging_dir.or(file.logging_dir.filter(|_| !is_none)),
            sample_prompts: self.sample_prompts.or(file.sample_prompts),
            sample_steps: self.sample_steps.or(file.sample_steps),
            sample_max_tokens: self.sample_max_tokens.or(file.sample_max_tokens),
            resume: self.resume,
            resume_anyway: self.resume_anyway,
        }
    }

    /// The settings of the answers that are shown.
    pub(in crate::config) fn to_samples(&self) -> SampleOptions {
        SampleOptions {
            prompts: self.sample_prompts.clone(),
            steps: self.sample_steps,
            max_tokens: self.sample_max_tokens,
        }
    }
}
