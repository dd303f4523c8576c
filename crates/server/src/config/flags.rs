//! Flags of any command that starts an engine.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, Command, FromArgMatches as _};

use super::args::Args;
use super::command_line::parse;
use super::{Config, ConfigError, file, vllm_flags};

/// Flags that only a server which listens has: the names of clap, and those of the command line.
const OF_HTTP: [(&str, &str); 12] = [
    ("host", "--host"),
    ("port", "--port"),
    ("uds", "--uds"),
    ("api_key", "--api-key"),
    ("allowed_origins", "--allowed-origins"),
    ("allowed_methods", "--allowed-methods"),
    ("allowed_headers", "--allowed-headers"),
    ("allow_credentials", "--allow-credentials"),
    ("enable_force_include_usage", "--enable-force-include-usage"),
    (
        "enable_server_load_tracking",
        "--enable-server-load-tracking",
    ),
    (
        "enable_tokenizer_info_endpoint",
        "--enable-tokenizer-info-endpoint",
    ),
    ("max_num_queued_reqs", "--max-num-queued-reqs"),
];

/// What a command line with the flags of [`Args`], and maybe more, says.
pub(crate) struct Flags {
    /// The configuration.
    pub(crate) config: Config,
    /// Every flag, also those of the file.
    pub(crate) matches: ArgMatches,
    /// The flags of the command line alone.
    pub(crate) given: ArgMatches,
}

impl Flags {
    /// Reads a command line with dashes only, and the file that `--config` names.
    pub(crate) fn read(
        command: &Command,
        command_line: Vec<OsString>,
    ) -> Result<Self, ConfigError> {
        let command_line = vllm_flags::take(command, command_line)?;
        let given = parse(command, &command_line)?;
        let args = Args::from_arg_matches(&given)?;
        let (args, matches) = match &args.config {
            None => (args, given.clone()),
            Some(path) => {
                let with_file = file::merge(path, command, command_line, &given)?;
                let with_file = vllm_flags::take(command, with_file)?;
                let matches = parse(command, &with_file).map_err(|error| ConfigError::File {
                    path: path.clone(),
                    message: error.to_string().trim_start_matches("error: ").to_owned(),
                })?;
                (Args::from_arg_matches(&matches)?, matches)
            }
        };
        let config = Config::from_args(without_empty_key(args, &matches))?;
        Ok(Self {
            config,
            matches,
            given,
        })
    }

    /// The same for a command that starts an engine and listens nowhere. A file of settings may be the server's.
    pub(crate) fn read_offline(
        name: &'static str,
        own: Command,
        command_line: Vec<OsString>,
    ) -> Result<Self, ConfigError> {
        let mut flags = Self::read(&offline_command(name, own), command_line)?;
        let is_given = |id: &str| flags.given.value_source(id) == Some(ValueSource::CommandLine);
        if let Some((_, flag)) = OF_HTTP.iter().find(|(id, _)| is_given(id)) {
            return Err(ConfigError::Flag {
                flag,
                message: format!("`{name}` listens nowhere; only a server has this"),
            });
        }
        // Nobody else is there: requests wait instead of being refused.
        flags.config.max_num_queued_reqs = usize::MAX;
        flags.config.api_keys.clear();
        flags.config.api.enable_force_include_usage = false;
        Ok(flags)
    }
}

/// The command line of `server COMMAND`: its own flags, and the engine's. `-h` shows its own, `--help` all.
fn offline_command(name: &'static str, own: Command) -> Command {
    let is_own = |command: &Command, id: &clap::Id| {
        let mut arguments = command.get_arguments();
        arguments.any(|argument| argument.get_id() == id)
    };
    let (about, before) = (own.get_about().cloned(), own.clone());
    let command = Args::augment_args(own.next_help_heading("Engine"))
        .about(about.unwrap_or_default())
        .mut_args(|argument| {
            let of_http = OF_HTTP
                .iter()
                .any(|(id, _)| argument.get_id().as_str() == *id);
            let of_engine = !is_own(&before, argument.get_id());
            argument.hide(of_http).hide_short_help(of_engine)
        })
        .after_help("The model and the engine have the flags of `server`: --help shows them.");
    command.name(name).bin_name(format!("server {name}"))
}

/// A variable that is set to nothing, as `VLLM_API_KEY=` in a compose file, is one that isn't set.
fn without_empty_key(mut args: Args, matches: &ArgMatches) -> Args {
    if matches.value_source("api_key") == Some(ValueSource::EnvVariable) {
        args.api_key.retain(|key| !key.is_empty());
    }
    args
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::batch::args::BatchArgs;
    use crate::bench::{LatencyArgs, ThroughputArgs};

    /// clap checks this in builds with debug assertions only.
    #[test]
    fn no_flag_of_a_command_is_one_of_the_engine() {
        for own in [
            BatchArgs::command(),
            LatencyArgs::command(),
            ThroughputArgs::command(),
        ] {
            let command = offline_command("test", own);
            let (mut ids, mut names) = (HashSet::new(), HashSet::new());
            for argument in command.get_arguments() {
                assert!(ids.insert(argument.get_id().clone()), "{argument}");
                let long = argument.get_long();
                assert!(long.is_none_or(|long| names.insert(long)), "{argument}");
            }
            let help = command.clone().render_help().to_string();
            assert!(!help.contains("--max-num-seqs"), "{help}");
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("--max-num-seqs"), "{help}");
            assert!(!help.contains("--allowed-origins"), "{help}");
        }
    }
}
