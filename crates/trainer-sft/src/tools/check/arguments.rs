//! The flags of `trainer-sft check`: those of a run, and a few of its own.

use std::path::PathBuf;

use clap::{Arg, Command};

use crate::config::args::{Args, number};
use crate::config::{Config, ConfigError};

/// Examples that are shown where nothing else is said.
const PREVIEWS: usize = 3;

/// Flags of a run that decide what a check finds in the data. Help lists these; the others are taken, too.
const OF_DATA: [&str; 23] = [
    "config",
    "data",
    "eval_data",
    "eval_split",
    "columns",
    "strict",
    "max_length",
    "packing",
    "train_on",
    "thinking",
    "preview",
    "model",
    "tokenizer",
    "method",
    "epochs",
    "max_steps",
    "batch_size",
    "gradient_accumulation",
    "seed",
    "num_generations",
    "max_completion_length",
    "reward",
    "reward_url",
];

/// `trainer-sft check`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CheckArgs {
    /// Data to look at, as --data of a run takes it: files, folders, glob patterns, `-` for standard input
    #[arg(value_name = "DATA")]
    pub files: Vec<PathBuf>,

    /// Speed of training, as a run prints it: gives the time of an epoch and of the run
    #[arg(long, value_name = "N", value_parser = number)]
    pub tokens_per_second: Option<f64>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// The flags of the run.
    #[command(flatten)]
    pub run: Args,
}

/// The command with help for what decides about data.
pub(in crate::tools) fn with_help(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let is_own = Args::is_flag(arg.get_id().as_str());
        let is_hidden = is_own && !OF_DATA.contains(&arg.get_id().as_str());
        // A flag that takes all words after it would take DATA, too. Files of a flag must not become DATA.
        let has_files = ["data", "eval_data"].contains(&arg.get_id().as_str());
        let arg = match is_own && !has_files && takes_several(&arg) {
            true => arg.num_args(1),
            false => arg,
        };
        let arg = arg.hide(is_hidden);
        match arg.get_id().as_str() {
            "preview" => arg.help(
                "Show the first N examples as tokens, with the learnt tokens highlighted; 0 shows none [default: 3]",
            ),
            _ => arg,
        }
    });
    command.after_help(
        "Every other flag of a run is taken, too, and is refused where a run refuses it: `trainer-sft --help` lists them all. Lists \
         have commas here, as words behind a flag are DATA; --eval-data comes last",
    )
}

/// Whether a flag takes any number of words.
fn takes_several(arg: &Arg) -> bool {
    let most = arg.get_num_args().map(|range| range.max_values());
    most.is_some_and(|most| most == usize::MAX)
}

impl CheckArgs {
    /// Examples to show.
    pub(super) fn num_previews(&self) -> usize {
        self.run.data.preview.unwrap_or(PREVIEWS)
    }

    /// The settings of the run whose data this is.
    ///
    /// # Errors
    /// As [`Args::parse_config`].
    pub fn to_config(&self) -> Result<Config, ConfigError> {
        let mut own = self.run.clone();
        own.data.data = [&self.files[..], &own.data.data].concat();
        own.data.preview = None;
        if own.memory.dry_run {
            let text = "--dry-run would have no effect: check trains nothing, and notes where a run would take too much memory; leave it out";
            return Err(ConfigError::Conflict(text.into()));
        }
        let given = own.clone();
        let mut args = own.with_files()?;
        // Nothing is written: the output folder may be there.
        args.output.output = None;
        Config::from_args(&args).map_err(|error| given.with_file(error))
    }
}
