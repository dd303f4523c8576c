//! Flags that say what is asked: of `bench serve` and of `bench throughput`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::ConfigError;

/// Most tokens of a prompt or of an answer.
pub(super) const MAX_LEN: usize = 1 << 20;
/// Most requests: what is known of each stays in memory.
pub(super) const MAX_COUNT: usize = 1 << 20;
/// Most tokens of all prompts of a run.
pub(super) const MAX_TOKENS: usize = 1 << 30;
/// Tokens of random prompts, and of their answers.
const INPUT_LEN: usize = 1024;
const OUTPUT_LEN: usize = 128;

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

/// Refuses a product of numbers by the name of the flag that makes it large.
pub(super) fn check_total(
    flag: &'static str,
    total: usize,
    most: usize,
    what: &str,
) -> Result<(), ConfigError> {
    match total <= most {
        true => Ok(()),
        false => Err(ConfigError::Flag {
            flag,
            message: format!("expected at most {most} {what}, found {total}"),
        }),
    }
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
    #[arg(long, value_name = "TOKENS", conflicts_with = "random_input_len")]
    pub input_len: Option<usize>,

    /// Tokens of each answer, whatever the data set says
    #[arg(
        long,
        value_name = "TOKENS",
        conflicts_with_all = ["random_output_len", "sharegpt_output_len", "custom_output_len"]
    )]
    pub output_len: Option<usize>,

    /// Tokens of each prompt of the data set random [default: 1024]
    #[arg(long, value_name = "TOKENS")]
    pub random_input_len: Option<usize>,

    /// Tokens of each answer to the data set random [default: 128]
    #[arg(long, value_name = "TOKENS")]
    pub random_output_len: Option<usize>,

    /// How far lengths of the data set random differ: between (1 - R) and (1 + R) times what the flags say
    /// [default: 0]
    #[arg(long, value_name = "R")]
    pub random_range_ratio: Option<f64>,

    /// Further tokens before each prompt of the data set random, the same for all [default: 0]
    #[arg(long, alias = "prefix-len", value_name = "TOKENS")]
    pub random_prefix_len: Option<usize>,

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

    /// Tokens of each prompt of the data set random, without the prefix.
    pub(super) fn input_len(&self) -> usize {
        self.input_len
            .or(self.random_input_len)
            .unwrap_or(INPUT_LEN)
    }

    /// Tokens of each answer to the data set random.
    pub(super) fn output_len(&self) -> usize {
        self.output_len
            .or(self.random_output_len)
            .unwrap_or(OUTPUT_LEN)
    }

    /// Tokens before each prompt of the data set random.
    pub(super) fn prefix_len(&self) -> usize {
        self.random_prefix_len.unwrap_or(0)
    }

    /// How far lengths of the data set random differ.
    pub(super) fn range_ratio(&self) -> f64 {
        self.random_range_ratio.unwrap_or(0.0)
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
        if !(0.0..1.0).contains(&self.range_ratio()) {
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
            ("--random-input-len", self.random_input_len, 0),
            ("--random-prefix-len", self.random_prefix_len, 0),
            ("--output-len", self.output_len, 1),
            ("--random-output-len", self.random_output_len, 1),
            ("--sharegpt-output-len", self.sharegpt_output_len, 1),
            ("--custom-output-len", self.custom_output_len, 1),
        ] {
            check_range(flag, value.unwrap_or(least), least, MAX_LEN)?;
        }
        if self.name() != DatasetName::Random {
            return Ok(());
        }
        let flag = match self.input_len {
            Some(_) => "--input-len",
            None => "--random-input-len",
        };
        let len = self.input_len() + self.prefix_len();
        check_range(flag, len, 1, 2 * MAX_LEN)?;
        let num_tokens = len.saturating_mul(self.num_prompts);
        check_total(
            "--num-prompts",
            num_tokens,
            MAX_TOKENS,
            "tokens in all prompts",
        )
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
                self.random_input_len.is_some(),
                random,
                "random",
            ),
            (
                "--random-output-len",
                self.random_output_len.is_some(),
                random,
                "random",
            ),
            (
                "--random-range-ratio",
                self.random_range_ratio.is_some(),
                random,
                "random",
            ),
            (
                "--random-prefix-len",
                self.random_prefix_len.is_some(),
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
