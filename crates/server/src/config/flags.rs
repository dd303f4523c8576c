//! Flags of any command that starts an engine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::parser::ValueSource;
use clap::{
    Arg, ArgAction, ArgMatches, Args as _, Command, CommandFactory as _, FromArgMatches as _,
};

use super::args::Args;
use super::command_line::parse;
use super::error::ConfigError;
use super::{Config, dashes, dotted, file, vllm_flags};

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
pub(crate) const OF_API: [&str; 16] = [
    "--served-model-name",
    "--reasoning-parser",
    "--tool-call-parser",
    "--enable-auto-tool-choice",
    "--no-enable-auto-tool-choice",
    "--exclude-tools-when-tool-choice-none",
    "--max-logprobs",
    "--logprobs-mode",
    "--return-tokens-as-token-ids",
    "--max-stored-responses",
    "--max-stored-responses-bytes",
    "--shutdown-timeout",
    "--trust-request-chat-template",
    "--default-chat-template-kwargs",
    "--structured-outputs-config",
    "--generation-config",
];

/// The variables of vLLM that this server reads.
const OF_ENVIRONMENT: [&str; 2] = ["VLLM_API_KEY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"];

impl Config {
    /// Reads a command line (with the program's name first) and the file that `--config` names.
    ///
    /// # Errors
    /// [`ConfigError`]; `Usage` also carries `--help` and `--version`.
    pub fn from_command_line<I>(command_line: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        Self::from_dashes(dashes(command_line))
    }

    /// The same for a command line whose flags have dashes only.
    pub(crate) fn from_dashes(command_line: Vec<OsString>) -> Result<Self, ConfigError> {
        let command_line = command_line
            .into_iter()
            .enumerate()
            // `vllm serve MODEL` is `server serve MODEL`.
            .filter(|(i, arg)| *i != 1 || arg != "serve")
            .map(|(_, arg)| arg)
            .collect();
        Ok(Flags::read(&Args::command(), command_line)?.config)
    }
}

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
        let command = &with_negations(command.clone());
        let command_line = dotted::join(command_line)?;
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
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        check_environment(names, args.fail_on_environ_validation)?;
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

/// clap's name of each flag without a value, and `no-FLAG` with clap's name of that: clap keeps names that live as long as the program.
static NEGATIONS: LazyLock<Vec<[String; 3]>> = LazyLock::new(|| {
    let command = Args::command();
    let flags = command.get_arguments();
    let flags = flags.filter(|flag| matches!(flag.get_action(), ArgAction::SetTrue));
    let names: Vec<&str> = flags.filter_map(Arg::get_long).collect();
    let negations = names.iter().map(|name| (name, format!("no-{name}")));
    negations
        .filter(|(name, negation)| !name.starts_with("no-") && !names.contains(&negation.as_str()))
        .map(|(name, negation)| [id(name), negation.clone(), id(&negation)])
        .collect()
});

/// The command with `--no-FLAG` for each flag without a value, as vLLM's have it: the last one of a command line counts.
fn with_negations(command: Command) -> Command {
    NEGATIONS.iter().fold(command, |command, names| {
        let [flag, long, negated] = names.each_ref().map(String::as_str);
        let argument = Arg::new(negated).long(long).action(ArgAction::SetTrue);
        command
            .mut_arg(flag, |argument| argument.overrides_with(negated))
            .arg(argument.hide(true).overrides_with(flag))
    })
}

/// Names the variables of vLLM that are set and have no effect here: one may be a misspelled key.
///
/// # Errors
/// The first of them, if that was asked for.
fn check_environment(
    names: impl Iterator<Item = String>,
    is_strict: bool,
) -> Result<(), ConfigError> {
    let mut unread: Vec<String> = names
        .filter(|name| name.starts_with("VLLM_") && !OF_ENVIRONMENT.contains(&name.as_str()))
        .collect();
    unread.sort_unstable();
    let read = OF_ENVIRONMENT.join(", ");
    match unread.first() {
        Some(name) if is_strict => Err(ConfigError::Flag {
            flag: "--fail-on-environ-validation",
            message: format!("the variable {name} has no effect here; of vLLM's, {read} have"),
        }),
        Some(_) => {
            let names = unread.join(" ");
            tracing::warn!(
                names,
                "variables of vLLM without effect here; {read} have one"
            );
            Ok(())
        }
        None => Ok(()),
    }
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

    use super::*;
    use crate::batch::args::BatchArgs;
    use crate::bench::{LatencyArgs, ThroughputArgs};

    #[test]
    fn variables_without_effect_are_refused_where_that_is_asked_for() {
        let check = |names: &[&str], is_strict| {
            let names = names.iter().map(|name| (*name).to_owned());
            check_environment(names, is_strict).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["PATH", "VLLM_API_KEY"], true), Ok(()));
        assert_eq!(check(&["VLLM_API_KEYS"], false), Ok(()));
        let error = check(&["VLLM_Z", "VLLM_API_KEYS"], true).unwrap_err();
        assert!(
            error.starts_with("--fail-on-environ-validation: the variable VLLM_API_KEYS "),
            "{error}"
        );
    }

    /// A program's own switches have no `--no-FLAG`: a file may still say that one is off.
    #[test]
    fn a_file_may_say_that_a_switch_of_a_program_is_off() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        for (text, expected) in [
            ("disable-detokenize = false", false),
            ("disable-detokenize = true", true),
        ] {
            std::fs::write(&file, text).unwrap();
            let line = ["latency", "--config", file.to_str().unwrap()].map(OsString::from);
            let own = LatencyArgs::command();
            let flags = Flags::read_offline("bench latency", own, line.to_vec(), &[]).unwrap();
            assert_eq!(flags.matches.get_flag("disable_detokenize"), expected);
        }
    }

    #[test]
    fn flags_without_a_value_can_be_taken_back() {
        let read = |flags: &[&str]| {
            let line = std::iter::once("server").chain(flags.iter().copied());
            let flags = Flags::read(&Args::command(), line.map(OsString::from).collect());
            flags.map(|flags| flags.config.api.enable_force_include_usage)
        };
        let (flag, negation) = (
            "--enable-force-include-usage",
            "--no-enable-force-include-usage",
        );
        assert!(!read(&[negation]).unwrap());
        assert!(!read(&[flag, negation]).unwrap());
        assert!(read(&[negation, flag]).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        for (text, flags, is_on) in [
            ("enable-force-include-usage = true", &[][..], true),
            ("enable-force-include-usage = true", &[negation], false),
            ("enable-force-include-usage = false", &[], false),
            ("enable-force-include-usage = false", &[flag], true),
        ] {
            std::fs::write(&file, text).unwrap();
            let flags = [&["--config", file.to_str().unwrap()][..], flags].concat();
            assert_eq!(read(&flags).unwrap(), is_on, "{text}: {flags:?}");
        }
    }

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
