//! The flags of `trainer-sft check`.

use std::path::PathBuf;

use crate::config::args::{Args, number, whole};
use crate::config::{BatchSize, Config, ConfigError, Method, Thinking, TrainOn};

/// `trainer-sft check`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CheckArgs {
    /// Data to look at, as --data of a run takes it: files, folders, glob patterns, `-` for standard input
    #[arg(value_name = "DATA")]
    pub files: Vec<PathBuf>,

    /// The same, so that the flags of a run can be given as they are
    #[arg(long, value_name = "DATA", visible_alias = "train-file", num_args = 1..)]
    pub data: Vec<PathBuf>,

    /// TOML file with the settings of the run, as --config of a run. Flags win over the file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Data to evaluate on
    #[arg(long, value_name = "DATA", visible_alias = "eval-file", num_args = 1..)]
    pub eval_data: Vec<PathBuf>,

    /// Part of the records that the run keeps for evaluation
    #[arg(long, value_name = "PART", value_parser = number)]
    pub eval_split: Option<f64>,

    /// Names of the fields in the data, as in training
    #[arg(long, value_name = "PART=FIELD", value_delimiter = ',', num_args = 1..)]
    pub columns: Vec<String>,

    /// Count a record that teaches nothing as one for which the run ends
    #[arg(long)]
    pub strict: bool,

    /// How the data is learnt from, as in training [default: sft]
    #[arg(long, value_enum)]
    pub method: Option<Method>,

    /// Rewards of --method grpo, as in training: records have to have the fields that these are about
    #[arg(long, value_name = "REWARD")]
    pub reward: Vec<String>,

    /// Programs that give rewards with --method grpo, which are not asked here
    #[arg(long, value_name = "URL")]
    pub reward_url: Vec<String>,

    /// Answers to each prompt with --method grpo [default: 8]
    #[arg(long, value_name = "N", value_parser = whole)]
    pub num_generations: Option<usize>,

    /// The most tokens of an answer with --method grpo: a prompt leaves room for them [default: 512]
    #[arg(long, value_name = "TOKENS", value_parser = whole)]
    pub max_completion_length: Option<usize>,

    /// Folder or Hugging Face id of the model: its tokenizer and chat template are read, and no weights [default: the
    /// bundled model]
    #[arg(long, value_name = "MODEL", visible_alias = "model-name-or-path")]
    pub model: Option<String>,

    /// Folder with tokenizer.json and the chat template [default: the model's]
    #[arg(long, value_name = "FOLDER")]
    pub tokenizer: Option<PathBuf>,

    /// Longest example in tokens, at most the model's context [default: 1024]
    #[arg(long, value_name = "TOKENS", visible_alias = "max-seq-length", value_parser = whole)]
    pub max_length: Option<usize>,

    /// Put several short examples into one row, as in training
    #[arg(long)]
    pub packing: bool,

    /// Tokens that are learnt [default: assistant]
    #[arg(long, value_enum)]
    pub train_on: Option<TrainOn>,

    /// For templates that open a think block, as in training [default: keep]
    #[arg(long, value_enum)]
    pub thinking: Option<Thinking>,

    /// Examples (rows, with --packing) of a batch [default: 4]
    #[arg(long, value_name = "N", visible_alias = "per-device-train-batch-size", value_parser = whole)]
    pub batch_size: Option<usize>,

    /// Batches per optimizer step [default: 1]
    #[arg(long, value_name = "N", visible_alias = "gradient-accumulation-steps", value_parser = whole)]
    pub gradient_accumulation: Option<usize>,

    /// Passes over the data [default: 3; 10 for the bundled model]
    #[arg(long, value_name = "N", visible_alias = "num-train-epochs", value_parser = number)]
    pub epochs: Option<f64>,

    /// Optimizer steps of the run; replaces --epochs
    #[arg(long, value_name = "STEPS", value_parser = whole)]
    pub max_steps: Option<usize>,

    /// Seed of the split and of the packing [default: 42]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,

    /// Speed of training, as a run prints it: gives the time of an epoch and of the run
    #[arg(long, value_name = "N", value_parser = number)]
    pub tokens_per_second: Option<f64>,

    /// Examples to show as tokens, with the learnt ones highlighted; 0 shows none
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub preview: usize,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl CheckArgs {
    /// The settings of the run whose data this is.
    ///
    /// # Errors
    /// As [`Args::parse_config`].
    pub fn to_config(&self) -> Result<Config, ConfigError> {
        let flag = |given: bool| given.then_some(true);
        let own = Args {
            data: [&self.files[..], &self.data].concat(),
            eval_data: self.eval_data.clone(),
            eval_split: self.eval_split,
            columns: self.columns.clone(),
            strict: flag(self.strict),
            method: self.method,
            model: self.model.clone(),
            tokenizer: self.tokenizer.clone(),
            max_length: self.max_length,
            packing: flag(self.packing),
            train_on: self.train_on,
            thinking: self.thinking,
            batch_size: self.batch_size.map(BatchSize::Rows),
            gradient_accumulation: self.gradient_accumulation,
            epochs: self.epochs,
            max_steps: self.max_steps,
            seed: self.seed,
            reward: self.reward.clone(),
            reward_url: self.reward_url.clone(),
            num_generations: self.num_generations,
            max_completion_length: self.max_completion_length,
            ..Args::default()
        };
        let args = match &self.config {
            Some(file) => own.clone().over(Args::from_file(file)?),
            None => own.clone(),
        };
        own.check_effect(&args)?;
        Config::from_args(Args {
            // Nothing is written: the output folder may be there.
            output: None,
            ..args
        })
    }
}
