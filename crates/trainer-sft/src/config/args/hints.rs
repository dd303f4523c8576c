//! Spellings: underscores in flags, and the nearest known name for an unknown one.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Args;

/// `--lora_r=8` as `--lora-r=8`; values stay as they are.
pub(super) fn with_hyphens(word: OsString) -> OsString {
    match word.to_str() {
        Some(text) if text.starts_with("--") && text.len() > 2 => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        }
        _ => word,
    }
}

/// Names the nearest flag when clap itself found none similar enough.
pub(super) fn with_nearest_flag(mut error: clap::Error) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument || error.get(ContextKind::SuggestedArg).is_some()
    {
        return error;
    }
    if let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) {
        let command = Args::command();
        let names = command
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .collect::<Vec<_>>();
        if let Some(near) = nearest(unknown.trim_start_matches('-'), names.into_iter()) {
            error.insert(
                ContextKind::SuggestedArg,
                ContextValue::String(format!("--{near}")),
            );
        }
    }
    error
}

/// The name most like `unknown`.
pub(super) fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity =
        |name: &str| strsim::jaro_winkler(unknown, name).max(strsim::sorensen_dice(unknown, name));
    names.max_by(|left, right| similarity(left).total_cmp(&similarity(right)))
}
