//! Flags that say what is asked: of `bench serve` and of `bench throughput`.

use model_qwen::flags::whole;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::serve_values::value_name;
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
    /// Tokens without meaning, behind one of a few beginnings each
    #[value(name = "prefix_repetition")]
    PrefixRepetition,
    /// Lines of a poem, the first of them the same for all: a text file
    Sonnet,
    /// Lengths of a table: a CSV file with `Model`, `Request tokens` and `Response tokens`, of which the rows of GPT-4 count
    Burstgpt,
    /// Those of vLLM that are not here.
    #[value(
        name = "hf",
        aliases = ["random-mm", "random-rerank", "custom_audio", "custom_image", "custom_mm", "spec_bench", "speed_bench", "timed_trace"],
        hide = true
    )]
    Other,
}

/// Lengths of the data set prefix_repetition, and its number of beginnings, as in vLLM.
const PREFIX_REPETITION: [usize; 4] = [256, 256, 10, 128];
/// Lengths of the data set sonnet: of the common beginning, of the prompt, of the answer; as in vLLM.
const SONNET: [usize; 3] = [200, 550, 150];

/// Prompts and lengths.
#[derive(Clone, Debug, Args)]
pub struct DatasetArgs {
    /// Where prompts come from [default: random, or sharegpt with --dataset-path]
    #[arg(long, value_name = "NAME", value_enum)]
    pub dataset_name: Option<DatasetName>,

    /// File of sharegpt, custom, sonnet or burstgpt
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,

    /// Requests to send
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = whole::<usize>)]
    pub num_prompts: usize,

    /// Tokens of each prompt of the data sets random and sonnet; the same as --random-input-len and --sonnet-input-len
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["random_input_len", "sonnet_input_len"], value_parser = whole::<usize>)]
    pub input_len: Option<usize>,

    /// Tokens of each answer, whatever the data set says
    #[arg(
        long,
        value_name = "TOKENS",
        conflicts_with_all = ["random_output_len", "sharegpt_output_len", "custom_output_len", "sonnet_output_len",
            "prefix_repetition_output_len"], value_parser = whole::<usize>)]
    pub output_len: Option<usize>,

    /// Tokens of each prompt of the data set random [default: 1024]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub random_input_len: Option<usize>,

    /// Tokens of each answer to the data set random [default: 128]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub random_output_len: Option<usize>,

    /// How far lengths of the data set random differ: between (1 - R) and (1 + R) times what the flags say
    /// [default: 0]
    #[arg(long, value_name = "R")]
    pub random_range_ratio: Option<f64>,

    /// Further tokens before each prompt of the data set random, the same for all [default: 0]
    #[arg(long, alias = "prefix-len", value_name = "TOKENS", value_parser = whole::<usize>)]
    pub random_prefix_len: Option<usize>,

    /// Tokens of each answer to the data set sharegpt [default: as many as the answer in the file]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub sharegpt_output_len: Option<usize>,

    /// Tokens of each answer to the data set custom [default: the line's `output_tokens`, or else 256]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub custom_output_len: Option<usize>,

    /// Tokens of the common beginnings of the data set prefix_repetition [default: 256]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub prefix_repetition_prefix_len: Option<usize>,

    /// Tokens of each prompt behind its beginning, of the data set prefix_repetition [default: 256]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub prefix_repetition_suffix_len: Option<usize>,

    /// Number of beginnings of the data set prefix_repetition; each has as many prompts [default: 10]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub prefix_repetition_num_prefixes: Option<usize>,

    /// Tokens of each answer to the data set prefix_repetition [default: 128]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub prefix_repetition_output_len: Option<usize>,

    /// Most tokens of each prompt of the data set sonnet, with its chat template [default: 550]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub sonnet_input_len: Option<usize>,

    /// Tokens of each answer to the data set sonnet [default: 150]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub sonnet_output_len: Option<usize>,

    /// Tokens of the beginning that all prompts of the data set sonnet have in common [default: 200]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub sonnet_prefix_len: Option<usize>,

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

    /// Tokens of a beginning and of the rest, the number of beginnings, and the tokens of an answer.
    pub(super) fn prefix_repetition(&self) -> [usize; 4] {
        let [prefix, suffix, num, output] = PREFIX_REPETITION;
        let output_len = self.output_len.or(self.prefix_repetition_output_len);
        [
            self.prefix_repetition_prefix_len.unwrap_or(prefix),
            self.prefix_repetition_suffix_len.unwrap_or(suffix),
            self.prefix_repetition_num_prefixes.unwrap_or(num),
            output_len.unwrap_or(output),
        ]
    }

    /// Tokens of the common beginning, of a prompt and of an answer.
    pub(super) fn sonnet(&self) -> [usize; 3] {
        let [prefix, input, output] = SONNET;
        let input_len = self.input_len.or(self.sonnet_input_len);
        let output_len = self.output_len.or(self.sonnet_output_len);
        [
            self.sonnet_prefix_len.unwrap_or(prefix),
            input_len.unwrap_or(input),
            output_len.unwrap_or(output),
        ]
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
            (DatasetName::Other, _) => {
                return wrong(
                    "--dataset-name",
                    "data sets of the Hub, and those with media, documents or times, are not here: write the prompts into a file of \
                     custom",
                );
            }
            (DatasetName::Random | DatasetName::PrefixRepetition, Some(_)) => {
                return wrong(
                    "--dataset-path",
                    "this data set has no file: name sharegpt, custom, sonnet or burstgpt",
                );
            }
            (
                DatasetName::Sharegpt
                | DatasetName::Custom
                | DatasetName::Sonnet
                | DatasetName::Burstgpt,
                None,
            ) => {
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
            (
                "--prefix-repetition-prefix-len",
                self.prefix_repetition_prefix_len,
                0,
            ),
            (
                "--prefix-repetition-suffix-len",
                self.prefix_repetition_suffix_len,
                1,
            ),
            (
                "--prefix-repetition-num-prefixes",
                self.prefix_repetition_num_prefixes,
                1,
            ),
            (
                "--prefix-repetition-output-len",
                self.prefix_repetition_output_len,
                1,
            ),
            ("--sonnet-input-len", self.sonnet_input_len, 1),
            ("--sonnet-output-len", self.sonnet_output_len, 1),
            ("--sonnet-prefix-len", self.sonnet_prefix_len, 0),
        ] {
            check_range(flag, value.unwrap_or(least), least, MAX_LEN)?;
        }
        let total = |flag, len: usize| {
            let num_tokens = len.saturating_mul(self.num_prompts);
            check_total(flag, num_tokens, MAX_TOKENS, "tokens in all prompts")
        };
        match self.name() {
            DatasetName::Random => {}
            DatasetName::PrefixRepetition => {
                let [prefix, suffix, num_prefixes, _] = self.prefix_repetition();
                check_range("--num-prompts", self.num_prompts, num_prefixes, MAX_COUNT)?;
                return total("--num-prompts", prefix + suffix);
            }
            DatasetName::Sonnet => return total("--num-prompts", self.sonnet()[1]),
            _ => return Ok(()),
        }
        let flag = match self.input_len {
            Some(_) => "--input-len",
            None => "--random-input-len",
        };
        let len = self.input_len() + self.prefix_len();
        check_range(flag, len, 1, 2 * MAX_LEN)?;
        total("--num-prompts", len)
    }

    /// Refuses flags of another data set.
    fn check_effect(&self) -> Result<(), ConfigError> {
        use DatasetName::{Burstgpt, Custom, PrefixRepetition, Random, Sharegpt, Sonnet};
        let with_len = &[Random, Sharegpt, Custom, Sonnet, PrefixRepetition];
        let flags: [(&'static str, bool, &[DatasetName]); 18] = [
            ("--input-len", self.input_len.is_some(), &[Random, Sonnet]),
            ("--output-len", self.output_len.is_some(), with_len),
            (
                "--random-input-len",
                self.random_input_len.is_some(),
                &[Random],
            ),
            (
                "--random-output-len",
                self.random_output_len.is_some(),
                &[Random],
            ),
            (
                "--random-range-ratio",
                self.random_range_ratio.is_some(),
                &[Random],
            ),
            (
                "--random-prefix-len",
                self.random_prefix_len.is_some(),
                &[Random],
            ),
            (
                "--sharegpt-output-len",
                self.sharegpt_output_len.is_some(),
                &[Sharegpt],
            ),
            (
                "--custom-output-len",
                self.custom_output_len.is_some(),
                &[Custom],
            ),
            (
                "--prefix-repetition-prefix-len",
                self.prefix_repetition_prefix_len.is_some(),
                &[PrefixRepetition],
            ),
            (
                "--prefix-repetition-suffix-len",
                self.prefix_repetition_suffix_len.is_some(),
                &[PrefixRepetition],
            ),
            (
                "--prefix-repetition-num-prefixes",
                self.prefix_repetition_num_prefixes.is_some(),
                &[PrefixRepetition],
            ),
            (
                "--prefix-repetition-output-len",
                self.prefix_repetition_output_len.is_some(),
                &[PrefixRepetition],
            ),
            (
                "--sonnet-input-len",
                self.sonnet_input_len.is_some(),
                &[Sonnet],
            ),
            (
                "--sonnet-output-len",
                self.sonnet_output_len.is_some(),
                &[Sonnet],
            ),
            (
                "--sonnet-prefix-len",
                self.sonnet_prefix_len.is_some(),
                &[Sonnet],
            ),
            ("--skip-chat-template", self.skip_chat_template, &[Custom]),
            (
                "--disable-shuffle",
                self.disable_shuffle,
                &[Sharegpt, Custom, Burstgpt, PrefixRepetition],
            ),
            (
                "--no-oversample",
                self.no_oversample,
                &[Sharegpt, Custom, Burstgpt],
            ),
        ];
        for (flag, is_given, sets) in flags {
            if is_given && !sets.contains(&self.name()) {
                let names: Vec<String> = sets.iter().map(|set| value_name(*set)).collect();
                return Err(ConfigError::Flag {
                    flag,
                    message: format!("this flag is of --dataset-name {}", listed(&names)),
                });
            }
        }
        Ok(())
    }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [before @ .., last] => format!("{} and {last}", before.join(", ")),
    }
}
