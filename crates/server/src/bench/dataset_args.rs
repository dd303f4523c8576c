//! Flags that say what is asked: of `bench serve` and of `bench throughput`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::ConfigError;

/// Most tokens of a prompt or of an answer.
pub(super) const MAX_LEN: usize = 1 << 20;
/// Most requests.
pub(super) const MAX_COUNT: usize = 1 << 24;
/// Most tokens of all prompts of the data set random.
const MAX_TOKENS: usize = 1 << 30;

/// Refuses a number by its flag's name.
pub(super) fn check_range(
    flag: &'static str,
    value: usize,
    least: usize,
    most: usize,
) -> Result<(), ConfigError> {
    let message = match value {
        value if value < least => format!("expected {least} or more, found {value}"),
        value if value > most => format!("expected at most {most}, found {value}"),
        _ => return Ok(()),
    };
    Err(ConfigError::Flag { flag, message })
}

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
        self.check_numbers()?;
        self.check_effect()
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        check_range("--num-prompts", self.num_prompts, 1, MAX_COUNT)?;
        for (flag, value, least) in [
            ("--input-len", self.input_len, 0),
            ("--random-input-len", Some(self.random_input_len), 0),
            ("--random-prefix-len", Some(self.random_prefix_len), 0),
            ("--output-len", self.output_len, 1),
            ("--random-output-len", Some(self.random_output_len), 1),
            ("--sharegpt-output-len", self.sharegpt_output_len, 1),
            ("--custom-output-len", self.custom_output_len, 1),
        ] {
            check_range(flag, value.unwrap_or(least), least, MAX_LEN)?;
        }
        let len = self.input_len.unwrap_or(self.random_input_len) + self.random_prefix_len;
        let num_tokens = len.saturating_mul(self.num_prompts);
        if self.name() == DatasetName::Random && num_tokens > MAX_TOKENS {
            return Err(ConfigError::Flag {
                flag: "--num-prompts",
                message: format!(
                    "expected at most {MAX_TOKENS} tokens in all prompts, found {num_tokens}"
                ),
            });
        }
        Ok(())
    }

    /// Refuses flags of another data set.
    fn check_effect(&self) -> Result<(), ConfigError> {
        let name = self.name();
        let (random, sharegpt, custom) = (
            name == DatasetName::Random,
            name == DatasetName::Sharegpt,
            name == DatasetName::Custom,
        );
        for (flag, is_given, has_effect, sets) in [
            ("--input-len", self.input_len.is_some(), random, "random"),
            (
                "--random-input-len",
                self.random_input_len != 1024,
                random,
                "random",
            ),
            (
                "--random-output-len",
                self.random_output_len != 128,
                random,
                "random",
            ),
            (
                "--random-range-ratio",
                self.random_range_ratio != 0.0,
                random,
                "random",
            ),
            (
                "--random-prefix-len",
                self.random_prefix_len != 0,
                random,
                "random",
            ),
            (
                "--sharegpt-output-len",
                self.sharegpt_output_len.is_some(),
                sharegpt,
                "sharegpt",
            ),
            (
                "--custom-output-len",
                self.custom_output_len.is_some(),
                custom,
                "custom",
            ),
            (
                "--skip-chat-template",
                self.skip_chat_template,
                custom,
                "custom",
            ),
            (
                "--disable-shuffle",
                self.disable_shuffle,
                !random,
                "sharegpt and custom",
            ),
            (
                "--no-oversample",
                self.no_oversample,
                !random,
                "sharegpt and custom",
            ),
        ] {
            if is_given && !has_effect {
                return Err(ConfigError::Flag {
                    flag,
                    message: format!("this flag is of --dataset-name {sets}"),
                });
            }
        }
        Ok(())
    }
}
