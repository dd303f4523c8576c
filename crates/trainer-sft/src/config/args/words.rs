//! Words of a command line in the form that clap takes: hyphens, folders at home, and switches with a value.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Arg, ArgAction, Command};

use crate::config::value_at_home;

/// The words of a command line for `command`.
///
/// `--lora_r=8` becomes `--lora-r=8`, `--output=~/a` gets the home folder, and `--packing True` becomes `--packing=true`, as
/// other trainers take it.
pub(crate) fn plain_words(
    words: impl IntoIterator<Item = OsString>,
    command: &Command,
) -> Vec<OsString> {
    let words = words.into_iter().map(with_hyphens).map(with_home);
    let mut plain: Vec<OsString> = Vec::new();
    // Behind a switch, a file or folder that is called `true` is what the command is about.
    let has_operands = command.get_positionals().next().is_some();
    // The switch that the last word is, and that has no value yet.
    let mut open: Option<Switch> = None;
    for word in words {
        let last = open.take();
        if let (Some(switch), Some(is_on)) = (last, word.to_str().and_then(truth))
            && !(has_operands && Path::new(&word).exists())
        {
            let flag = plain.pop().unwrap_or_default();
            plain.extend(switch.with(&flag, is_on));
            continue;
        }
        let text = word.to_str().unwrap_or_default();
        let (flag, value) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (text, None),
        };
        let switch = Switch::named(command, flag);
        match (switch, value.map(truth)) {
            (Some(switch), Some(Some(is_on))) => plain.extend(switch.with(flag.as_ref(), is_on)),
            (switch, value) => {
                open = switch.filter(|_| value.is_none());
                plain.push(word);
            }
        }
    }
    plain
}

/// `--lora_r=8` as `--lora-r=8`; values stay as they are.
pub(crate) fn with_hyphens(word: OsString) -> OsString {
    match word.to_str() {
        Some(text) if text.starts_with("--") && text.len() > 2 => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        }
        _ => word,
    }
}

/// A path at home where no shell has seen it, as in `--output=~/a` or in quotes.
fn with_home(word: OsString) -> OsString {
    let Some(text) = word.to_str() else {
        return word;
    };
    let (flag, value) = match text.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") => (Some(flag), value),
        _ => (None, text),
    };
    let Some(value) = value_at_home(value) else {
        return word;
    };
    match flag {
        Some(flag) => {
            let mut whole = OsString::from(format!("{flag}="));
            whole.push(value);
            whole
        }
        None => value,
    }
}

/// What `true` and `false` say, also as Python writes them.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// A flag that is on or off.
enum Switch {
    /// On where it is given.
    Bare,
    /// Takes `=true` and `=false`.
    Valued,
}

impl Switch {
    /// The switch of a command that has this name.
    fn named(command: &Command, flag: &str) -> Option<Self> {
        let name = flag.strip_prefix("--")?;
        let is_it = |arg: &&Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(name) || aliases.contains(&name)
        };
        let arg = command.get_arguments().find(is_it)?;
        match arg.get_action() {
            ArgAction::SetTrue => Some(Self::Bare),
            ArgAction::Set => {
                let counts = arg.get_num_args()?;
                (counts.min_values() == 0 && counts.max_values() == 1).then_some(Self::Valued)
            }
            _ => None,
        }
    }

    /// The flag with this value; `None` where that is to leave it out.
    fn with(&self, flag: &OsStr, is_on: bool) -> Option<OsString> {
        match (self, is_on) {
            (Self::Bare, true) => Some(flag.to_owned()),
            (Self::Bare, false) => None,
            (Self::Valued, is_on) => {
                let mut whole = flag.to_owned();
                whole.push(if is_on { "=true" } else { "=false" });
                Some(whole)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::args::Args;

    #[test]
    fn switches_and_folders_are_read_as_other_programs_do() {
        let home = std::env::var("HOME").unwrap_or_default();
        for (line, expected) in [
            ("--packing True --lora_r=8", "--packing=true --lora-r=8"),
            ("--packing False", "--packing=false"),
            ("--use_dora=TRUE --full true", "--use-dora=true --full=true"),
            (
                "--load_best_model_at_end True",
                "--load-best-model-at-end=true",
            ),
            (
                "--gradient_checkpointing True",
                "--gradient-checkpointing=true",
            ),
            ("--gradient-checkpointing 4", "--gradient-checkpointing 4"),
            ("--offload-activations False", "--offload-activations=false"),
            ("--dry-run False --seed 1", "--seed 1"),
            ("--dry-run=true", "--dry-run"),
            ("--packing --data true", "--packing --data true"),
            ("--output=~/a -o ~/b", "--output=HOME/a -o HOME/b"),
            (
                "--reward=json_schema:~/s.json",
                "--reward=json_schema:HOME/s.json",
            ),
            ("--data ~x ./~/y", "--data ~x ./~/y"),
        ] {
            let words = line.split(' ').map(OsString::from);
            let found = plain_words(words, &Args::command());
            let expected = expected.replace("HOME", &home);
            assert_eq!(found.join(OsStr::new(" ")), OsString::from(expected));
        }
    }
}
