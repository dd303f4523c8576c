//! The program `qwen-burn`: the commands of `server` and of `trainer-sft` under one name, and what a first minute needs.

mod doctor;
mod pull;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use model_qwen::chat_template::serve_renders;
use trainer_sft::program::Commands;

use self::doctor::DoctorArgs;
use self::pull::PullArgs;
use crate::config::QWEN_BURN;
use crate::finetuning::JOB_COMMAND;
use crate::program::is_renderer;

/// Who carries a command out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Server,
    /// A run of the trainer.
    Run,
    /// What the trainer does before and after a run.
    Tool,
    Pull,
    Doctor,
}

const COMMANDS: [(&str, Part, &str); 13] = [
    (
        "serve",
        Part::Server,
        "Serve a model: OpenAI's HTTP API, and a page for browsers",
    ),
    (
        "chat",
        Part::Tool,
        "Talk to a model with or without an adapter in the terminal",
    ),
    (
        "pull",
        Part::Pull,
        "Download a model from the Hugging Face Hub, and print its folder",
    ),
    (
        "doctor",
        Part::Doctor,
        "Say what this machine has for qwen-burn, and what to do about the rest",
    ),
    (
        "init",
        Part::Tool,
        "Ask what to train on which data, and write the settings of a run to a file",
    ),
    (
        "check",
        Part::Tool,
        "Say what a run would make of its data, without training",
    ),
    (
        "train",
        Part::Run,
        "Fine-tune a model: LoRA, QLoRA or in full",
    ),
    (
        "eval",
        Part::Tool,
        "Measure loss, perplexity and token accuracy of a model on data",
    ),
    (
        "merge",
        Part::Tool,
        "Merge an adapter into its base model, as a model folder",
    ),
    (
        "export",
        Part::Tool,
        "Write a model or an adapter as GGUF, or for Ollama",
    ),
    (
        "inspect",
        Part::Tool,
        "Say what a folder holds, and what is wrong with it",
    ),
    (
        "run-batch",
        Part::Server,
        "Answer a file of requests in OpenAI's batch format",
    ),
    (
        "bench",
        Part::Server,
        "Measure a running server, or an engine",
    ),
];

/// Commands of programs for the same purpose (Ollama, vLLM, LLaMA-Factory, Hugging Face's), and what does that here.
const ELSEWHERE: [(&[&str], &str); 7] = [
    (
        &["run", "generate"],
        "`qwen-burn chat --model MODEL` talks to a model in the terminal",
    ),
    (
        &["list", "ls", "ps"],
        "`/v1/models` of a server lists what it has; models that were pulled lie in the cache of the Hugging Face Hub, whose \
         folder `qwen-burn doctor` prints",
    ),
    (
        &["rm", "delete"],
        "a model that was pulled is a folder in the cache of the Hugging Face Hub, which `qwen-burn doctor` prints: delete it there",
    ),
    (
        &["show", "info"],
        "`qwen-burn inspect FOLDER` says what a folder holds",
    ),
    (
        &["download", "get"],
        "`qwen-burn pull MODEL` downloads a model",
    ),
    (
        &["finetune", "fine-tune", "sft", "dpo"],
        "`qwen-burn train` fine-tunes a model, and `qwen-burn init` asks what it needs to know",
    ),
    (
        &["create", "convert", "quantize"],
        "`qwen-burn export` writes a model as GGUF or for Ollama, and `qwen-burn serve --quantization nf4` quantizes while it loads",
    ),
];

/// What the help says at its end.
const AFTER: &str = "\
`qwen-burn COMMAND --help` shows the flags of a command.
QWEN_BURN_DATA names the folder of the bundled model and the sample data, if it is not where it was installed.";

/// Does what a command line says, the program's name first, and prints what comes of it. A wrong command line ends the process
/// with status 2.
pub fn run(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut words: Vec<OsString> = command_line.into_iter().collect();
    if is_renderer(&words) {
        return serve_renders();
    }
    model_qwen::sys::use_packaged_cuda();
    words.drain(..words.len().min(1));
    if words.first().is_some_and(|word| word == JOB_COMMAND) {
        return crate::program::run([OsString::from(QWEN_BURN)].into_iter().chain(words));
    }
    if let [command, flag] = words.as_slice()
        && find(command).is_some()
        && (flag == "--version" || flag == "-V")
    {
        refusal(flag).exit();
    }
    let words = match with_help_as_flag(words) {
        Ok(words) => words,
        Err(error) => error.exit(),
    };
    let Some((part, words)) = part_of(words) else {
        // Only an error, help and the version have no part.
        return ExitCode::FAILURE;
    };
    let named = |name: &str| [OsString::from(name)].into_iter().chain(words);
    match part {
        Part::Server => crate::program::run(named(QWEN_BURN)),
        Part::Run => trainer_sft::program::run(named("qwen-burn train"), Commands::OF_QWEN_BURN),
        Part::Tool => trainer_sft::program::run(named(QWEN_BURN), Commands::OF_QWEN_BURN),
        Part::Pull => PullArgs::parse_from(named("qwen-burn pull")).run(),
        Part::Doctor => DoctorArgs::parse_from(named("qwen-burn doctor")).run(),
    }
}

/// `help train` is `train --help`.
fn with_help_as_flag(mut words: Vec<OsString>) -> Result<Vec<OsString>, clap::Error> {
    if words.len() > 1 && words[0] == "help" {
        words.remove(0);
        if find(&words[0]).is_none() {
            return Err(refusal(&words[0]));
        }
        words.push("--help".into());
    }
    Ok(words)
}

fn find(word: &OsString) -> Option<Part> {
    let found = COMMANDS.iter().find(|(name, ..)| word == name);
    found.map(|(_, part, _)| *part)
}

/// Who carries a command line out, and the words that are for it; ends the process with an error, the help or the version.
fn part_of(mut words: Vec<OsString>) -> Option<(Part, Vec<OsString>)> {
    let first = words.first().cloned().unwrap_or_default();
    match find(&first) {
        Some(part) => {
            // The others know the first word.
            if !matches!(part, Part::Server | Part::Tool) {
                words.remove(0);
            }
            Some((part, words))
        }
        None => refusal(&first).exit(),
    }
}

/// What clap says of a first word that is no command: an error, the help or the version.
fn refusal(first: &OsString) -> clap::Error {
    let words = [OsString::from(QWEN_BURN)].into_iter();
    let given = Some(first.clone()).filter(|first| !first.is_empty());
    let elsewhere = ELSEWHERE
        .iter()
        .find(|(names, _)| names.iter().any(|name| first == *name));
    if let Some((_, hint)) = elsewhere {
        let kind = clap::error::ErrorKind::InvalidSubcommand;
        let text = format!(
            "unrecognized subcommand '{}'\n\n  tip: {hint}",
            first.display()
        );
        return command().error(kind, text);
    }
    match command().try_get_matches_from(words.chain(given)) {
        Err(error) => error,
        // A command that is known has been found before.
        Ok(_) => command().error(
            clap::error::ErrorKind::InvalidSubcommand,
            "expected a command",
        ),
    }
}

/// The program as its help shows it.
fn command() -> clap::Command {
    let parts = COMMANDS.iter().map(|(name, part, about)| match part {
        Part::Pull => PullArgs::command().name(name).about(about),
        Part::Doctor => DoctorArgs::command().name(name).about(about),
        _ => clap::Command::new(name).about(about),
    });
    clap::Command::new(QWEN_BURN)
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Serve and fine-tune Qwen-architecture language models on one small GPU or a plain CPU",
        )
        .after_help(AFTER)
        .max_term_width(110)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn a_command_line_finds_its_part() {
        for (line, part, rest) in [
            ("serve --port 1", Part::Server, "serve --port 1"),
            ("bench serve -h", Part::Server, "bench serve -h"),
            ("train --data x", Part::Run, "--data x"),
            ("merge --adapter a", Part::Tool, "merge --adapter a"),
            ("pull a/b", Part::Pull, "a/b"),
            ("help train", Part::Run, "--help"),
            ("help serve", Part::Server, "serve --help"),
        ] {
            let words_of = with_help_as_flag(words(line)).unwrap();
            assert_eq!(part_of(words_of), Some((part, words(rest))), "{line}");
        }
    }

    #[test]
    fn help_lists_every_command_and_a_wrong_word_names_the_nearest() {
        let help = refusal(&"--help".into()).to_string();
        for (name, ..) in COMMANDS {
            assert!(help.contains(&format!("\n  {name} ")), "{name}: {help}");
        }
        let version = refusal(&"--version".into()).to_string();
        assert_eq!(
            version.trim(),
            concat!("qwen-burn ", env!("CARGO_PKG_VERSION"))
        );
        let wrong = refusal(&"serv".into()).to_string();
        assert!(wrong.contains("serve"), "{wrong}");
        // The nearest would be `run-batch`.
        let wrong = refusal(&"run".into());
        assert_eq!(wrong.exit_code(), 2);
        let wrong = wrong.to_string();
        assert!(wrong.contains("tip: `qwen-burn chat"), "{wrong}");
        for (names, hint) in ELSEWHERE {
            assert!(names.iter().all(|name| find(&name.into()).is_none()));
            let quoted: Vec<&str> = hint.split('`').skip(1).step_by(2).collect();
            assert!(!quoted.is_empty(), "{hint}");
            for quoted in quoted {
                let command = quoted.strip_prefix("qwen-burn ").unwrap_or_default();
                let name = command.split(' ').next().unwrap_or_default();
                let is_command = find(&name.into()).is_some();
                assert!(is_command || quoted.starts_with('/'), "{quoted}");
            }
        }
        assert!(with_help_as_flag(words("help trains")).is_err());
    }
}
