//! Parsing with clap, with underscores and with the nearest flag for an unknown one.

use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, ArgMatches};

use super::ConfigError;

/// Parses and, for an unknown flag, names the nearest one.
pub(crate) fn parse(
    command: &clap::Command,
    command_line: &[OsString],
) -> Result<ArgMatches, clap::Error> {
    let command = match is_of_qwen_burn(command_line) {
        true => as_part(command.clone()).display_name(QWEN_BURN),
        false => command.clone().display_name("server"),
    };
    check_switches(&command, command_line)?;
    let mut command = command.version(env!("CARGO_PKG_VERSION"));
    command
        .try_get_matches_from_mut(command_line)
        .map_err(|mut error| {
            if error.kind() == ErrorKind::UnknownArgument
                && let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg)
                && let Some(nearest) = nearest_flag(&command, unknown)
            {
                error.insert(ContextKind::SuggestedArg, ContextValue::String(nearest));
            }
            error
        })
}

/// Refuses a value behind a switch, which would be taken for the model.
fn check_switches(command: &clap::Command, command_line: &[OsString]) -> Result<(), clap::Error> {
    let is_switch = |name: &str| {
        let mut arguments = command.get_arguments();
        let argument = arguments.find(|argument| argument.get_long() == Some(name));
        argument.is_some_and(|argument| matches!(argument.get_action(), ArgAction::SetTrue))
    };
    let next = command_line.iter().skip(1).map(Some).chain([None]);
    for (argument, next) in command_line.iter().zip(next) {
        let Some(flag) = argument.to_str().and_then(|text| text.strip_prefix("--")) else {
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => {
                let next = next.and_then(|next| next.to_str());
                (flag, next.filter(|value| is_on_or_off(value)))
            }
        };
        if let Some(value) = value.filter(|_| is_switch(name)) {
            let other = opposite(name);
            let other = Some(other).filter(|other| is_switch(other));
            return Err(takes_no_value(name, other.as_deref(), value));
        }
    }
    Ok(())
}

/// `no-FLAG` of `FLAG`, and the other way.
fn opposite(name: &str) -> String {
    match name.strip_prefix("no-") {
        Some(name) => name.to_owned(),
        None => format!("no-{name}"),
    }
}

/// Whether a word is what other programs take behind a switch, and no folder of that name.
pub(super) fn is_on_or_off(word: &str) -> bool {
    let words = ["true", "false", "yes", "no", "on", "off", "1", "0"];
    words.contains(&word.to_ascii_lowercase().as_str()) && !Path::new(word).exists()
}

/// The error of a value behind the switch `name`, which `other` takes back.
pub(super) fn takes_no_value(name: &str, other: Option<&str>, value: &str) -> clap::Error {
    let is_off = ["false", "no", "off", "0"].contains(&value.to_ascii_lowercase().as_str());
    let instead = match (is_off, other) {
        (false, _) => format!("write --{name} alone"),
        (true, Some(other)) => format!("leave the flag out, or write --{other}"),
        (true, None) => "leave the flag out".to_owned(),
    };
    let found = match value {
        "" => "\"\"",
        value => value,
    };
    let message = format!("--{name} takes no value, found {found}; {instead}\n");
    clap::Error::raw(ErrorKind::TooManyValues, message)
}

/// The name of the program that has all commands.
pub(crate) const QWEN_BURN: &str = "qwen-burn";

/// Whether a command line is one of the program that has all commands.
pub(crate) fn is_of_qwen_burn(command_line: &[OsString]) -> bool {
    command_line.first().is_some_and(|name| name == QWEN_BURN)
}

/// A command of `server` with the name that it has as a command of `qwen-burn`, which lists the other ones itself.
fn as_part(command: clap::Command) -> clap::Command {
    match command.get_bin_name() {
        Some(name) => {
            let name = name.replacen("server", QWEN_BURN, 1);
            command.bin_name(name)
        }
        None => command
            .bin_name(format!("{QWEN_BURN} serve"))
            .after_help(None::<&'static str>),
    }
}

/// The known flag that looks most like `unknown`, if any looks alike.
pub(super) fn nearest_flag(command: &clap::Command, unknown: &str) -> Option<String> {
    let unknown = unknown.trim_start_matches('-');
    command
        .get_arguments()
        .filter_map(|arg| arg.get_long())
        .map(|known| {
            (
                strsim::normalized_damerau_levenshtein(unknown, known),
                known,
            )
        })
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| format!("--{known}"))
}

/// A command line whose flags have dashes instead of underscores.
pub(crate) fn dashes<I>(command_line: I) -> Vec<OsString>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    command_line
        .into_iter()
        .map(|arg| dashed(arg.into()))
        .collect()
}

/// `--max_model_len=8_000` becomes `--max-model-len=8_000`. What follows a dot is a key of JSON.
fn dashed(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_at(text.find(['=', '.']).unwrap_or(text.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        }
        _ => arg,
    }
}

/// Refuses flags by name, each with the reason.
pub(crate) fn refuse(
    command_line: &[OsString],
    flags: &[(&'static str, &str)],
) -> Result<(), ConfigError> {
    let given = command_line.iter().filter_map(|arg| arg.to_str());
    let mut names = given.map(|arg| arg.split('=').next().unwrap_or(arg));
    let found = names.find_map(|name| flags.iter().find(|(flag, _)| *flag == name));
    match found {
        None => Ok(()),
        Some(&(flag, reason)) => Err(ConfigError::Flag {
            flag,
            message: reason.to_owned(),
        }),
    }
}
