//! Flags of `vllm serve` that this server takes without having them, so that its command lines start: `vllm_flags.txt` lists
//! them.

use std::ffi::OsString;
use std::sync::LazyLock;

use super::ConfigError;
use super::command_line::{is_on_or_off, takes_no_value};

/// One row of `vllm_flags.txt`.
#[derive(Clone, Debug)]
pub struct VllmFlag {
    /// `--FLAG`.
    pub flag: &'static str,
    values: Values,
    /// What becomes of it.
    pub verdict: &'static str,
    /// What a reader should know.
    pub note: &'static str,
}

/// How many values follow a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    None,
    One,
    Maybe,
    Some,
    Numbers,
}

/// The rows of `vllm_flags.txt`.
pub static VLLM_FLAGS: LazyLock<Vec<VllmFlag>> = LazyLock::new(|| {
    let rows = include_str!("vllm_flags.txt").lines();
    rows.filter(|row| row.starts_with("--"))
        .filter_map(row)
        .collect()
});

/// vLLM's short names.
pub(super) const SHORT: [(&str, &str); 24] = [
    ("-q", "--quantization"),
    ("-sc", "--speculative-config"),
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-dcp", "--decode-context-parallel-size"),
    ("-dpn", "--data-parallel-rank"),
    ("-dpr", "--data-parallel-start-rank"),
    ("-dpl", "--data-parallel-size-local"),
    ("-dpa", "--data-parallel-address"),
    ("-dpp", "--data-parallel-rpc-port"),
    ("-dpb", "--data-parallel-backend"),
    ("-dph", "--data-parallel-hybrid-lb"),
    ("-dpe", "--data-parallel-external-lb"),
    ("-dpm", "--data-parallel-multi-port-external-lb"),
    ("-pcp", "--prefill-context-parallel-size"),
    ("-ep", "--enable-expert-parallel"),
    ("-n", "--nnodes"),
    ("-r", "--node-rank"),
    ("-asc", "--api-server-count"),
    ("-ac", "--attention-config"),
    ("-cc", "--compilation-config"),
    ("-dc", "--diffusion-config"),
    ("-O", "--optimization-level"),
];

fn row(row: &'static str) -> Option<VllmFlag> {
    let mut cells = row.split(" | ");
    Some(VllmFlag {
        flag: cells.next()?,
        values: match cells.next()? {
            "none" => Values::None,
            "one" => Values::One,
            "maybe" => Values::Maybe,
            "some" => Values::Some,
            "numbers" => Values::Numbers,
            _ => return None,
        },
        verdict: cells.next()?,
        note: cells.next()?,
    })
}

impl VllmFlag {
    /// The row of `--FLAG`, also as `--no-FLAG`.
    pub(super) fn find(flag: &str) -> Option<&'static Self> {
        let row = |flag: &str| VLLM_FLAGS.iter().find(|row| row.flag == flag);
        let positive = || {
            let name = flag.strip_prefix("--no-")?;
            row(&format!("--{name}")).filter(|row| row.values == Values::None)
        };
        row(flag).or_else(positive)
    }

    /// Whether it may have these values; off is harmless.
    fn takes(&self, is_off: bool, values: &[String]) -> bool {
        match self.verdict.split_once(" if ") {
            Some((_, harmless)) => values
                .iter()
                .all(|value| harmless.split(' ').any(|harmless| harmless == value)),
            None => is_off || self.verdict == "harmless",
        }
    }
}

/// Takes vLLM's flags out of a command line, and names in the log those that make no difference.
///
/// # Errors
/// [`ConfigError::Flag`] for one that asks for what this server doesn't do.
pub(super) fn take(
    command: &clap::Command,
    command_line: Vec<OsString>,
) -> Result<Vec<OsString>, ConfigError> {
    let is_own = |flag: &str| {
        let mut arguments = command.get_arguments();
        arguments.any(|argument| argument.get_long().is_some_and(|long| flag[2..] == *long))
    };
    let (mut own, mut ignored) = (Vec::new(), Vec::new());
    let mut rest = command_line.into_iter().peekable();
    while let Some(argument) = rest.next() {
        let long = argument.to_str().and_then(long_name);
        let Some((flag, value)) = long.filter(|(flag, _)| flag.len() > 2) else {
            own.push(argument);
            continue;
        };
        // `--compilation-config.mode` sets a part of `--compilation-config`.
        let name = flag.split('.').next().unwrap_or(&flag);
        let Some(row) = VllmFlag::find(name).filter(|_| !is_own(&flag)) else {
            own.push(match value {
                Some(value) => format!("{flag}={value}").into(),
                None => flag.into(),
            });
            continue;
        };
        let next = rest.peek().and_then(|next| next.to_str());
        let behind = value.as_deref().or(next);
        if let Some(behind) = behind.filter(|word| row.values == Values::None && is_on_or_off(word))
        {
            return Err(takes_no_value(&name[2..], None, behind).into());
        }
        let mut values: Vec<String> = value.into_iter().collect();
        let mut more = match (row.values, values.len()) {
            (Values::One | Values::Maybe, 0) => 1,
            (Values::Some | Values::Numbers, 0) => usize::MAX,
            _ => 0,
        };
        // What follows may be a flag, whose effect would be lost, or the model.
        let is_value = |argument: &OsString| {
            let text = argument.to_string_lossy();
            let is_number = text.parse::<f64>().is_ok();
            is_number || (row.values != Values::Numbers && !text.starts_with('-'))
        };
        while more > 0
            && let Some(value) = rest.next_if(is_value)
        {
            values.push(value.to_string_lossy().into_owned());
            more -= 1;
        }
        let needs_value = matches!(row.values, Values::One | Values::Some | Values::Numbers);
        if needs_value && values.is_empty() {
            let found = match rest.peek() {
                Some(next) => format!("`{}`", next.to_string_lossy()),
                None => "none".to_owned(),
            };
            return Err(ConfigError::Flag {
                flag: row.flag,
                message: format!("expected a value, found {found}"),
            });
        }
        if !row.takes(name != row.flag, &values) {
            let given = values.join(" ");
            return Err(ConfigError::Flag {
                flag: row.flag,
                message: match row.verdict.split_once(" if ") {
                    Some((_, harmless)) => {
                        let expected = harmless.replace(' ', ", ");
                        format!("expected {expected}, found {given}: {}", row.note)
                    }
                    None => format!("this server does not have it: {}", row.note),
                },
            });
        }
        ignored.push(flag);
    }
    if !ignored.is_empty() {
        let flags = ignored.join(" ");
        tracing::info!(flags, "flags of vLLM that make no difference here");
    }
    Ok(own)
}

/// `--flag` and its value, if it has one, of an argument that is a flag; vLLM's short names in full.
fn long_name(argument: &str) -> Option<(String, Option<String>)> {
    let (name, value) = match argument.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (argument, None),
    };
    if name.starts_with("--") {
        return Some((name.to_owned(), value));
    }
    if let Some(level) = argument
        .strip_prefix("-O")
        .filter(|level| !level.is_empty())
    {
        let level = level.trim_start_matches('=').to_owned();
        return Some(("--optimization-level".to_owned(), Some(level)));
    }
    let (_, long) = SHORT.iter().find(|(short, _)| *short == name)?;
    Some(((*long).to_owned(), value))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::args::Args;
    use super::*;

    fn taken(arguments: &str) -> Result<Vec<String>, String> {
        let arguments = arguments.split(' ').map(OsString::from).collect();
        match take(&Args::command(), arguments) {
            Ok(rest) => Ok(rest
                .iter()
                .map(|a| a.to_string_lossy().into_owned())
                .collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn every_row_is_read_and_is_no_flag_of_this_server() {
        let rows = include_str!("vllm_flags.txt").lines();
        let rows: Vec<&str> = rows.filter(|row| !row.starts_with('#')).collect();
        assert_eq!(VLLM_FLAGS.len(), rows.len());
        let command = Args::command();
        let own: Vec<&str> = command
            .get_arguments()
            .filter_map(|a| a.get_long())
            .collect();
        for (i, row) in VLLM_FLAGS.iter().enumerate() {
            let verdict = row.verdict.split(' ').next();
            assert!(matches!(verdict, Some("harmless" | "refused")), "{row:?}");
            assert!(!own.contains(&&row.flag[2..]), "{row:?}");
            assert!(VLLM_FLAGS[..i].iter().all(|other| other.flag != row.flag));
        }
    }

    #[test]
    fn harmless_flags_are_taken_with_their_values() {
        for (given, rest) in [
            ("server m --trust-remote-code --port 1", "server m --port 1"),
            ("server --tensor-parallel-size 1 m", "server m"),
            ("server -tp=1 -pp 1 m -O3", "server m"),
            ("server --load-format=bitsandbytes m", "server m"),
            (
                "server --cudagraph-capture-sizes 1 2 4 --port 1",
                "server --port 1",
            ),
            (
                "server --enable-chunked-prefill --port 1",
                "server --port 1",
            ),
            ("server --compilation-config.mode 3 m", "server m"),
            ("server --cudagraph-capture-sizes 1 2 m", "server m"),
            ("server --tokenizer-pool-size -1 m", "server m"),
            ("server --no-enable-log-requests m", "server m"),
            ("server --no-enable-sleep-mode m", "server m"),
            (
                "server --long-prefill-token-threshold 0 -q nf4",
                "server --quantization nf4",
            ),
            ("server --seed -1 --unknown", "server --seed -1 --unknown"),
            ("server -sc off", "server --speculative-config off"),
        ] {
            let rest: Vec<String> = rest.split(' ').map(str::to_owned).collect();
            assert_eq!(taken(given), Ok(rest), "{given}");
        }
    }

    #[test]
    fn what_this_server_does_not_do_is_refused_with_the_reason() {
        for (given, expected) in [
            (
                "server -tp 2",
                "--tensor-parallel-size: expected 1, found 2: a server has one device",
            ),
            (
                "server --speculative-model m",
                "--speculative-model: this server does not have it",
            ),
            (
                "server --no-enable-chunked-prefill",
                "--no-enable-chunked-prefill: this server",
            ),
            (
                "server --load-format gguf",
                "--load-format: expected auto, hf, safetensors",
            ),
            ("server --enable-sleep-mode", "stop the server instead"),
            (
                "server --swap-space --api-key=k",
                "--swap-space: expected a value, found `--api-key=k`",
            ),
            (
                "server --tensor-parallel-size",
                "--tensor-parallel-size: expected a value, found none",
            ),
            (
                "server --trust-remote-code true",
                "--trust-remote-code takes no value, found true; write --trust-remote-code alone",
            ),
            (
                "server --disable-log-requests=False m",
                "--disable-log-requests takes no value, found False; leave the flag out",
            ),
            (
                "server --cuda-graph-sizes m",
                "--cuda-graph-sizes: expected a value, found `m`",
            ),
        ] {
            let error = taken(given).unwrap_err();
            assert!(error.contains(expected), "{given}: {error}");
        }
    }
}
