//! The name that an unknown flag may stand for.

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What the flags of TRL, LLaMA-Factory, axolotl and ms-swift are here, where the names are not alike.
const ELSEWHERE: [(&str, &str); 28] = [
    ("4bit", "quantization"),
    ("load-in-4bit", "quantization"),
    ("quantization-bit", "quantization"),
    ("bs", "batch-size"),
    ("micro-batch-size", "batch-size"),
    ("train-batch-size", "batch-size"),
    ("grad-accum", "gradient-accumulation"),
    ("dataset", "data"),
    ("dataset-name", "data"),
    ("dataset-path", "data"),
    ("train-data", "data"),
    ("val-dataset", "eval-data"),
    ("eval-dataset", "eval-data"),
    ("sequence-len", "max-length"),
    ("max-len", "max-length"),
    ("context-length", "max-length"),
    ("base-model", "model"),
    ("lora-rank-dim", "lora-r"),
    ("full-finetune", "full"),
    ("train-type", "full"),
    ("adapters", "adapter"),
    ("resume-from", "resume"),
    ("steps", "max-steps"),
    ("bf16", "dtype"),
    ("stage", "method"),
    ("rlhf-type", "method"),
    ("pref-beta", "beta"),
    ("pref-loss", "loss-type"),
];

/// What a flag of another trainer is here.
pub(super) fn elsewhere(name: &str) -> Option<&'static str> {
    let known = ELSEWHERE.iter().find(|(known, _)| *known == name);
    known.map(|(_, here)| *here)
}

/// Lets every flag of a command and of its commands take a negative number, which is then refused by the flag's name.
pub(crate) fn with_negative_numbers(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let takes_one = !arg.is_positional() && arg.get_action().takes_values();
            match takes_one {
                true => arg.allow_negative_numbers(true),
                false => arg,
            }
        })
        .mut_subcommands(with_negative_numbers)
}

/// Names the flag of `command` that an unknown one stands for, in the place of clap's guess, which also names flags that are little alike.
pub(crate) fn with_nearest_flag(mut error: clap::Error, command: &Command) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::Suggested);
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let unknown = unknown.trim_start_matches('-').to_owned();
    let mut names: Vec<String> = Vec::new();
    for argument in command.get_arguments() {
        names.extend(argument.get_long().map(ToOwned::to_owned));
        let aliases = argument.get_all_aliases().unwrap_or_default();
        names.extend(aliases.into_iter().map(ToOwned::to_owned));
    }
    let near = match elsewhere(&unknown) {
        Some(here) if names.iter().any(|name| name == here) => Some(here),
        _ => nearest(&unknown, names.iter().map(String::as_str)),
    };
    if let Some(near) = near {
        let near = ContextValue::String(format!("--{near}"));
        error.insert(ContextKind::SuggestedArg, near);
    }
    error
}

/// The name that `unknown` is a misspelling or the beginning of.
pub(crate) fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| {
        let is_start = unknown.len() >= 4 && name.starts_with(unknown);
        let edits = strsim::damerau_levenshtein(unknown, name);
        let longest = unknown.len().max(name.len());
        (is_start || edits * 4 <= longest.max(4)).then_some(edits)
    };
    let near = names.filter_map(|name| Some((distance(name)?, name)));
    near.min().map(|(_, name)| name)
}
