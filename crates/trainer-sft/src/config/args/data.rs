//! What is learnt from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{columns, list, number, one_or_many, whole};
use crate::config::{DataConfig, Thinking, TrainOn};

/// The flags under "Data".
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct DataArgs {
    /// File to learn from: JSONL, a JSON array or CSV, also as .gz or .zst; a folder of such files, a glob pattern, or `-`
    /// for standard input; repeat for several. Each record is one of: `messages` (OpenAI), `conversations` (ShareGPT),
    /// `instruction`/`input`/`output` (Alpaca), `prompt`/`completion`, `query`/`response`, `segments`, `text`; with --method
    /// dpo, orpo and kto `prompt`/`chosen`/`rejected` or `prompt`/`completion`/`label`, with grpo `prompt` (a text or messages)
    /// and any fields for rewards
    #[arg(long, value_name = "FILE", visible_alias = "train-file", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many")]
    pub data: Vec<PathBuf>,

    /// File to evaluate on (same formats); repeat for several
    #[arg(long, value_name = "FILE", visible_alias = "eval-file", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many")]
    pub eval_data: Vec<PathBuf>,

    /// Keep this part of the records of --data for evaluation, drawn by --seed: 0.05 is one in twenty
    #[arg(long, value_name = "PART", visible_alias = "val-size", value_parser = number)]
    pub eval_split: Option<f64>,

    /// Names of the fields in the data: prompt=question,completion=answer reads `question` as the prompt and `answer` as the
    /// completion, and no other field
    #[arg(long, value_name = "PART=FIELD", value_delimiter = ',', num_args = 1..)]
    #[serde(deserialize_with = "columns")]
    pub columns: Vec<String>,

    /// End with an error at a record that teaches nothing, instead of leaving it out with a warning
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub strict: Option<bool>,

    /// Read the data while training, in blocks of 4096 records that are shuffled, instead of before the first step; needs
    /// --max-steps
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub streaming: Option<bool>,

    /// Longest example in tokens, at most the model's context. Longer ones lose the left of their prompt, never part of
    /// an answer [default: 1024]
    #[arg(
        long,
        value_name = "TOKENS",
        visible_alias = "max-seq-length",
        alias = "cutoff-len",
        value_parser = whole
    )]
    pub max_length: Option<usize>,

    /// Put several short examples into one row of --max-length tokens. They do not see each other
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub packing: Option<bool>,

    /// Tokens the loss is taken over: the assistant's turns with their end token, the rest (`prompt`), or `all`
    /// [default: assistant]
    #[arg(long, value_enum)]
    pub train_on: Option<TrainOn>,

    /// For templates that open a think block (DeepSeek-R1): `keep` learns the reasoning in the data and refuses answers
    /// without any, `empty` gives those an empty block [default: keep]
    #[arg(long, value_enum)]
    pub thinking: Option<Thinking>,

    /// Show the first N examples as tokens, with the learnt tokens highlighted, and stop
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1", value_parser = whole)]
    #[serde(skip)]
    pub preview: Option<usize>,
}

impl DataArgs {
    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: Self) -> Self {
        Self {
            data: list(self.data, file.data),
            // A flag wins over the file's other way of saying the same.
            eval_split: match self.eval_data.is_empty() {
                true => self.eval_split.or(file.eval_split),
                false => self.eval_split,
            },
            eval_data: match (self.eval_data.is_empty(), self.eval_split) {
                (true, None) => file.eval_data,
                _ => self.eval_data,
            },
            columns: list(self.columns, file.columns),
            strict: self.strict.or(file.strict),
            streaming: self.streaming.or(file.streaming),
            max_length: self.max_length.or(file.max_length),
            packing: self.packing.or(file.packing),
            train_on: self.train_on.or(file.train_on),
            thinking: self.thinking.or(file.thinking),
            preview: self.preview,
        }
    }

    /// These settings with the defaults of the others.
    pub(in crate::config) fn to_config(&self) -> DataConfig {
        let default = DataConfig::default();
        DataConfig {
            train: self.data.clone(),
            eval: self.eval_data.clone(),
            eval_split: self.eval_split,
            columns: self.columns.clone(),
            strict: self.strict.unwrap_or(default.strict),
            streaming: self.streaming.unwrap_or(default.streaming),
            max_length: self.max_length.unwrap_or(default.max_length),
            packing: self.packing.unwrap_or(default.packing),
            train_on: self.train_on.unwrap_or(default.train_on),
            thinking: self.thinking.unwrap_or(default.thinking),
        }
    }
}
