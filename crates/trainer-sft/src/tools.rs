//! What comes before and after a run: merging an adapter into its model, looking at a folder, writing other formats, and
//! measuring a model on data. `trainer-sft merge …` and so on.

mod arguments;
mod base;
mod chat;
mod check;
mod error;
mod evaluate;
mod export;
mod init;
mod inspect;
mod merge;
mod modelfile;
mod numbers;
mod output;
mod progress;
mod reading;
mod staging;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches as _, Parser};

use crate::commands::Commands;
use crate::config::args::{
    Args as RunArgs, nearest, plain_words, with_hyphens, with_nearest_flag, with_negative_numbers,
};

pub use arguments::{EvalArgs, ExportArgs, ExportFormat, InspectArgs, MergeArgs};
pub use chat::{ChatArgs, is_answering};
pub use check::{
    Bar, CheckArgs, Cost, DataCheck, Evaluation, FileFound, Group, LeftOut, Lengths, Preview,
    Segment, check_data,
};
pub use error::ToolError;
pub use evaluate::{Measured, measure};
pub use init::InitArgs;
pub use inspect::{AdapterFacts, DtypeFacts, ModelFacts, Norms, Report, inspect};
pub use output::{End, ToolOutput};
pub use reading::ReadingArgs;
pub use staging::discard_unfinished;

/// The program without a run.
#[derive(Debug, Parser)]
#[command(name = "trainer-sft", version, max_term_width = 110)]
struct CommandLine {
    #[command(subcommand)]
    tool: Tool,
}

/// A command of the program that is no run.
#[derive(Debug, clap::Subcommand)]
pub enum Tool {
    /// Ask what to train on which data, and write the settings of a run to a file (run.toml)
    Init(InitArgs),
    /// Say what a run would make of its data: formats, lengths, duplicates, what is left out, cost
    Check(Box<CheckArgs>),
    /// Merge a LoRA adapter into its base model, as a model folder
    Merge(MergeArgs),
    /// Say what a folder holds, and what is wrong with it: an adapter, a checkpoint or a model
    Inspect(InspectArgs),
    /// Write a model or an adapter in another format: GGUF for llama.cpp, a Modelfile for Ollama
    Export(ExportArgs),
    /// Measure loss, perplexity and token accuracy of a model on data
    Eval(EvalArgs),
    /// Talk to a model with an adapter in the terminal, and compare it with the model without
    Chat(ChatArgs),
}

impl Tool {
    /// The command that a command line (the first word is the program) asks for; `None` when it asks for a run.
    ///
    /// # Errors
    /// What clap refuses, and `--help`.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Option<Result<Self, clap::Error>> {
        let words: Vec<OsString> = words.into_iter().map(with_hyphens).collect();
        let first = words.get(1)?.to_str()?;
        if first.starts_with('-') {
            return None;
        }
        let is_known = first == "help" || CommandLine::command().find_subcommand(first).is_some();
        Some(match is_known {
            true => parse(words),
            false => Err(unknown_command(first, &words[0])),
        })
    }

    /// Whether it writes files: then it ends between two tensors when it is told to, and leaves no half of a result behind.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Merge(_) | Self::Export(_))
    }

    /// Whether someone talks to it on a terminal: then it ends an answer when it is told to, and not the program.
    pub fn talks(&self) -> bool {
        matches!(self, Self::Chat(_)) && std::io::stdin().is_terminal()
    }

    /// Carries the command out. It ends early when `stop` becomes true. What it says to do next has `commands`.
    ///
    /// # Errors
    /// Whatever cannot be read, computed or written.
    pub fn run(&self, stop: &AtomicBool, commands: Commands) -> Result<ToolOutput, ToolError> {
        let well = |text| ToolOutput {
            text,
            end: End::Well,
        };
        match self {
            Self::Init(args) => init::init(args, commands).map(well),
            Self::Check(args) => check::check(args, is_coloured()),
            Self::Merge(args) => merge::merge(args, stop, commands),
            Self::Export(args) => export::export(args, stop, commands).map(well),
            Self::Chat(args) => chat::chat(args, stop).map(|()| well(String::new())),
            Self::Eval(args) => evaluate::evaluate(args).map(well),
            Self::Inspect(args) => {
                let report = inspect(args)?;
                let end = match report.problems.is_empty() {
                    true => End::Well,
                    false => End::Problems,
                };
                let text = match args.json {
                    true => report.to_json(),
                    false => report.to_string(),
                };
                Ok(ToolOutput { text, end })
            }
        }
    }
}

fn parse(words: Vec<OsString>) -> Result<Tool, clap::Error> {
    let command = with_negative_numbers(CommandLine::command());
    let mut command = command.mut_subcommand("check", check::with_help);
    let own = words.get(1).and_then(|word| word.to_str());
    let words = match own.and_then(|word| command.find_subcommand(word)) {
        Some(own) => plain_words(words, own),
        None => words,
    };
    let matches = command.try_get_matches_from_mut(&words);
    let line = matches.and_then(|matches| CommandLine::from_arg_matches(&matches));
    line.map(|line| line.tool).map_err(|error| {
        let own = words.get(1).and_then(|word| word.to_str());
        let own = own.and_then(|word| command.find_subcommand(word));
        match own {
            Some(own) => with_nearest_flag(error, own),
            None => error,
        }
    })
}

/// Whether standard output takes colours.
fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The error of a first word after `program` that is neither a flag of a run nor a command.
fn unknown_command(word: &str, program: &OsStr) -> clap::Error {
    let own = CommandLine::command();
    let names: Vec<&str> = own.get_subcommands().map(|tool| tool.get_name()).collect();
    let near = nearest(word, names.iter().copied());
    let Commands { train, tool, .. } = Commands::OF_QWEN_BURN;
    if program == train {
        // Its commands stand beside this one.
        let hint = match near {
            Some(near) => format!("a similar command exists: `{tool} {near}`"),
            None => format!("to learn from a file, write `--data {word}`"),
        };
        let text = format!("expected a flag of a run, such as --data; found `{word}`: {hint}");
        let mut run = RunArgs::command().bin_name(train);
        return run.error(ErrorKind::InvalidSubcommand, text);
    }
    let hint = match near {
        Some(near) => format!("a similar command exists: `{near}`"),
        None if Path::new(word).exists() => format!("to learn from it, write `--data {word}`"),
        None => format!("the commands are {}", names.join(", ")),
    };
    let text =
        format!("expected a flag of a run, such as --data, or a command; found `{word}`: {hint}");
    let usage = format!("{0} [OPTIONS]\n       {0} <COMMAND>", own.get_name());
    let mut both = own.override_usage(usage);
    both.error(ErrorKind::InvalidSubcommand, text)
}
