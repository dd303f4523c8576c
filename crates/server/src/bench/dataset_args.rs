//! Flags that say what is asked: of `bench serve` and of `bench throughput`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::ConfigError;

/// Where prompts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    /// Tokens without meaning, as many as the flags say
    Random,
    /// First questions of chats: a JSON list of `{"conversations": [{"value": …}, {"value": …}]}`
    Sharegpt,
    /// One object per line: `{"prompt": …}`, with `output_tokens` or without
    Custom,
}

/// Prompts and lengths.
#[derive(Clone, Debug, Args)]
pub struct DatasetArgs {
    /// Where prompts come from [default: random, or sharegpt with --dataset-path]
    #[arg(long, value_name = "NAME", value_enum)]
    pub dataset_name: Option<DatasetName>,

    /// File of sharegpt or custom
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,

    /// Requests to send
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub num_prompts: usize,

    /// Tokens of each prompt of the data set random; the same as --random-input-len
    #[arg(long, value_name = "TOKENS")]
    pub input_len: Option<usize>,

    /// Tokens of each answer, whatever the data set says
    #[arg(long, value_name = "TOKENS")]
    pub output_len: Option<usize>,

    /// Tokens of each prompt of the data set random
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub random_input_len: usize,

    /// Tokens of each answer to the data set random
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub random_output_len: usize,

    /// How far lengths of the data set random differ: between (1 - R) and (1 + R) times what the flags say
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    pub random_range_ratio: f64,

    /// Further tokens before each prompt of the data set random, the same for all
    #[arg(long, alias = "prefix-len", value_name = "TOKENS", default_value_t = 0)]
    pub random_prefix_len: usize,

    /// Tokens of each answer to the data set sharegpt [default: as many as the answer in the file]
    #[arg(long, value_name = "TOKENS")]
    pub sharegpt_output_len: Option<usize>,

    /// Tokens of each answer to the data set custom [default: the line's `output_tokens`, or else 256]
    #[arg(long, value_name = "TOKENS")]
    pub custom_output_len: Option<usize>,

    /// Send the prompts of custom as they are, not as chats
    #[arg(long)]
    pub skip_chat_template: bool,

    /// Take the records of a file in their order
    #[arg(long)]
    pub disable_shuffle: bool,

    /// Send each record of a file once, even if these are fewer than --num-prompts
    #[arg(long)]
    pub no_oversample: bool,
}

impl DatasetArgs {
    /// The data set.
    pub fn name(&self) -> DatasetName {
        let of_path = match self.dataset_path {
            Some(_) => DatasetName::Sharegpt,
            None => DatasetName::Random,
        };
        self.dataset_name.unwrap_or(of_path)
    }

    /// Checks ranges, and that a file is given where one is read.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |flag, message: &str| {
            Err(ConfigError::Flag {
                flag,
                message: message.to_owned(),
            })
        };
        match (self.name(), &self.dataset_path) {
            (DatasetName::Random, Some(_)) => {
                return wrong(
                    "--dataset-path",
                    "the data set random has no file: name sharegpt or custom",
                );
            }
            (DatasetName::Sharegpt | DatasetName::Custom, None) => {
                return wrong("--dataset-path", "this data set needs a file");
            }
            _ => {}
        }
        if !(0.0..1.0).contains(&self.random_range_ratio) {
            return wrong(
                "--random-range-ratio",
                "expected 0 or more, and less than 1",
            );
        }
        for (flag, value) in [
            ("--num-prompts", Some(self.num_prompts)),
            ("--output-len", self.output_len),
            ("--random-output-len", Some(self.random_output_len)),
            ("--sharegpt-output-len", self.sharegpt_output_len),
            ("--custom-output-len", self.custom_output_len),
        ] {
            if value == Some(0) {
                return wrong(flag, "expected 1 or more, found 0");
            }
        }
        Ok(())
    }
}
