//! Flags of any command that starts an engine.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, Command, FromArgMatches as _};

use super::args::Args;
use super::command_line::parse;
use super::{Config, ConfigError, file, vllm_flags};

/// Flags that only a server which listens has.
const OF_HTTP: [&str; 21] = [
    "--host",
    "--port",
    "--uds",
    "--api-key",
    "--api-key-file",
    "--lora-roots",
    "--allowed-origins",
    "--allowed-methods",
    "--allowed-headers",
    "--allow-credentials",
    "--enable-force-include-usage",
    "--enable-server-load-tracking",
    "--enable-tokenizer-info-endpoint",
    "--no-page",
    "--enable-finetuning",
    "--finetuning-dir",
    "--finetuning-priority",
    "--max-file-size",
    "--max-num-queued-reqs",
    "--kv-events-config",
    "--otlp-traces-endpoint",
];

/// Flags of answers that have the form of the API.
pub(crate) const OF_API: [&str; 15] = [
    "--served-model-name",
    "--reasoning-parser",
    "--tool-call-parser",
    "--enable-auto-tool-choice",
    "--no-enable-auto-tool-choice",
    "--exclude-tools-when-tool-choice-none",
    "--max-logprobs",
    "--return-tokens-as-token-ids",
    "--max-stored-responses",
    "--max-stored-responses-bytes",
    "--shutdown-timeout",
    "--trust-request-chat-template",
    "--default-chat-template-kwargs",
    "--structured-outputs-config",
    "--generation-config",
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
        let config = Config::from_args(with_environment(args, &matches))?;
        Ok(Self {
            config,
            matches,
            given,
        })
    }

    /// The same for a command that starts an engine and listens nowhere, and has none of the flags `without`, either. A file of
    /// settings may be the server's.
    pub(crate) fn read_offline(
        name: &'static str,
        own: Command,
        command_line: Vec<OsString>,
        without: &[&'static str],
    ) -> Result<Self, ConfigError> {
        let mut flags = Self::read(&offline_command(name, own, without), command_line)?;
        let is_given =
            |flag: &str| flags.given.value_source(&id(flag)) == Some(ValueSource::CommandLine);
        if let Some(flag) = OF_HTTP.into_iter().find(|flag| is_given(flag)) {
            return Err(ConfigError::Flag {
                flag,
                message: format!("`{name}` listens nowhere; only a server has this"),
            });
        }
        if let Some(flag) = without.iter().find(|flag| is_given(flag)) {
            return Err(ConfigError::Flag {
                flag,
                message: format!("this has no effect on `{name}`"),
            });
        }
        // Nobody else is there: requests wait instead of being refused.
        flags.config.max_num_queued_reqs = usize::MAX;
        flags.config.api_keys.clear();
        (flags.config.kv_events, flags.config.traces) = (None, None);
        flags.config.api.enable_force_include_usage = false;
        flags.config.finetuning = None;
        Ok(flags)
    }
}

/// The name that clap has for a flag.
fn id(flag: &str) -> String {
    flag.trim_start_matches("--").replace('-', "_")
}

/// The command line of `server COMMAND`: its own flags, and the engine's. `-h` shows its own, `--help` all.
fn offline_command(name: &'static str, own: Command, without: &[&str]) -> Command {
    let is_own = |command: &Command, id: &clap::Id| {
        let mut arguments = command.get_arguments();
        arguments.any(|argument| argument.get_id() == id)
    };
    let (about, before) = (own.get_about().cloned(), own.clone());
    let hidden: Vec<String> = OF_HTTP.iter().chain(without).map(|flag| id(flag)).collect();
    let command = Args::augment_args(own.next_help_heading("Engine"))
        .about(about.unwrap_or_default())
        .mut_args(|argument| {
            let is_hidden = hidden.iter().any(|id| argument.get_id() == id.as_str());
            let of_engine = !is_own(&before, argument.get_id());
            argument.hide(is_hidden).hide_short_help(of_engine)
        })
        .after_help("The model and the engine have the flags of `server`: --help shows them.");
    command.name(name).bin_name(format!("server {name}"))
}

/// What clap doesn't know of vLLM's variables.
fn with_environment(mut args: Args, matches: &ArgMatches) -> Args {
    // A variable that is set to nothing, as `VLLM_API_KEY=` in a compose file, is one that isn't set.
    if matches.value_source("api_key") == Some(ValueSource::EnvVariable) {
        args.api_key.retain(|key| !key.is_empty());
    }
    let updating = std::env::var("VLLM_ALLOW_RUNTIME_LORA_UPDATING").unwrap_or_default();
    let updating = matches!(updating.trim().to_ascii_lowercase().as_str(), "1" | "true");
    if args.enable_lora && args.lora_roots.is_empty() && updating {
        args.lora_roots.push(PathBuf::from("/"));
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
        for (own, without) in [
            (BatchArgs::command(), &[][..]),
            (LatencyArgs::command(), &OF_API),
            (ThroughputArgs::command(), &OF_API),
        ] {
            let command = offline_command("test", own, without);
            for flag in OF_HTTP.iter().chain(without) {
                let mut arguments = command.get_arguments();
                let is_it = |argument: &&clap::Arg| argument.get_id() == id(flag).as_str();
                let argument = arguments.find(is_it).unwrap();
                assert_eq!(argument.get_long(), flag.strip_prefix("--"));
                assert!(argument.is_hide_set());
            }
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
