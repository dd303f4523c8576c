//! vLLM's other form of a flag of JSON, in parts: `--speculative-config.method ngram`.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, CommandFactory as _};
use serde_json::{Map, Value};

use super::ConfigError;
use super::args::Args;
use super::vllm_flags::SHORT;

/// Joins the parts of each flag of JSON to one object, which comes first. Short names of other flags in parts become long ones.
///
/// # Errors
/// [`ConfigError`] for a part without a value, and for two that do not go together.
pub(super) fn join(command_line: Vec<OsString>) -> Result<Vec<OsString>, ConfigError> {
    let (mut joined, mut objects) = (Vec::new(), Vec::<(&'static str, Map<String, Value>)>::new());
    let mut rest = command_line.into_iter().peekable();
    while let Some(argument) = rest.next() {
        let Some((flag, keys, value)) = argument.to_str().and_then(part) else {
            joined.push(argument);
            continue;
        };
        let Some(flag) = json_flag(&flag) else {
            let value = value.map_or_else(String::new, |value| format!("={value}"));
            joined.push(format!("{flag}.{keys}{value}").into());
            continue;
        };
        let is_value = |next: &OsString| next.to_str().is_some_and(|next| !next.starts_with("--"));
        let value = value.or_else(|| rest.next_if(is_value)?.into_string().ok());
        let wrong = |message: String| ConfigError::Flag { flag, message };
        let Some(value) = value else {
            let next = rest
                .peek()
                .map(|next| format!("`{}`", next.to_string_lossy()));
            let found = next.as_deref().unwrap_or("none");
            return Err(wrong(format!(
                "expected a value for `{keys}`, found {found}"
            )));
        };
        let known = objects.iter().position(|(known, _)| *known == flag);
        let known = known.unwrap_or_else(|| {
            objects.push((flag, Map::new()));
            objects.len() - 1
        });
        put(&mut objects[known].1, &keys, &value).map_err(wrong)?;
    }
    let objects = objects.into_iter();
    let flags = objects.map(|(flag, object)| format!("{flag}={}", Value::from(object)).into());
    // Behind the program's name: behind `--` it would be no flag.
    let at = joined.len().min(1);
    joined.splice(at..at, flags);
    Ok(joined)
}

/// `--flag.keys=value`: flag, keys, and value if there is one.
fn part(argument: &str) -> Option<(String, String, Option<String>)> {
    let (name, value) = match argument.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (argument, None),
    };
    let (flag, keys) = name.split_once('.')?;
    // vLLM's older name of it.
    let flag = if flag == "-O" { "-cc" } else { flag };
    let flag = match SHORT.iter().find(|(short, _)| *short == flag) {
        Some((_, long)) => *long,
        None if flag.len() > 2 && flag.starts_with("--") => flag,
        None => return None,
    };
    let is_key = |key: &str| !key.trim_end_matches('+').is_empty();
    (keys.split('.').all(is_key)).then(|| (flag.to_owned(), keys.to_owned(), value))
}

/// Flags whose value is one text of JSON, with the names that each has.
static JSON_FLAGS: LazyLock<Vec<Vec<String>>> = LazyLock::new(|| {
    let command = Args::command();
    let is_json = |arg: &&Arg| {
        let names = arg.get_value_names().unwrap_or_default();
        matches!(arg.get_action(), ArgAction::Set)
            && names.iter().any(|name| name.starts_with("JSON"))
    };
    let names = command.get_arguments().filter(is_json).map(|arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        let names = arg.get_long().into_iter().chain(aliases);
        names.map(|name| format!("--{name}")).collect()
    });
    names.collect()
});

/// The flag by its first name, if its value is JSON.
fn json_flag(flag: &str) -> Option<&'static str> {
    let mut all = JSON_FLAGS.iter();
    let names = all.find(|names| names.iter().any(|name| name == flag))?;
    names.first().map(String::as_str)
}

/// Puts a value into an object: JSON, or a text. A `+` behind the last key adds to a list, as commas do there.
fn put(object: &mut Map<String, Value>, keys: &str, value: &str) -> Result<(), String> {
    let read = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    match keys.split_once('.') {
        Some((key, rest)) => {
            let inner = object.entry(key).or_insert_with(|| Map::new().into());
            match inner {
                Value::Object(inner) => put(inner, rest, value),
                other => Err(format!("`{key}` is given as {other} and in parts")),
            }
        }
        None => match keys.strip_suffix('+') {
            Some(key) => {
                let list = object
                    .entry(key)
                    .or_insert_with(|| Value::Array(Vec::new()));
                match list {
                    Value::Array(list) => list.extend(value.split(',').map(read)),
                    other => return Err(format!("`{key}` is given as {other} and as a list")),
                }
                Ok(())
            }
            None => match object.insert(keys.to_owned(), read(value)) {
                None => Ok(()),
                Some(_) => Err(format!("`{keys}` is given twice")),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(arguments: &str) -> Result<String, String> {
        let arguments = arguments.split(' ').map(OsString::from).collect();
        let joined = join(arguments).map_err(|error| error.to_string())?;
        let texts = joined.iter().map(|argument| argument.to_string_lossy());
        Ok(texts.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn parts_are_joined() {
        for (given, expected) in [
            (
                "server --speculative-config.method ngram -sc.num_speculative_tokens=5 m",
                r#"server --speculative-config={"method":"ngram","num_speculative_tokens":5} m"#,
            ),
            (
                "server --default-chat-template-kwargs.enable_thinking false --default-chat-template-kwargs.a.b_c 1.5",
                r#"server --default-chat-template-kwargs={"enable_thinking":false,"a":{"b_c":1.5}}"#,
            ),
            (
                "server --hf-overrides.architectures+ A --hf-overrides.architectures+=B,C",
                r#"server --hf-overrides={"architectures":["A","B","C"]}"#,
            ),
            (
                "server --override-pooler-config.pooling_type MEAN -- m",
                r#"server --pooler-config={"pooling_type":"MEAN"} -- m"#,
            ),
            (
                "server -cc.mode 3 -O.level=3 --port.x 1 --lora-modules a=./b.c",
                "server --compilation-config.mode 3 --compilation-config.level=3 --port.x 1 --lora-modules a=./b.c",
            ),
        ] {
            assert_eq!(joined(given).unwrap(), expected);
        }
        for (given, expected) in [
            (
                "server --kv-events-config.topic",
                "--kv-events-config: expected a value for `topic`",
            ),
            (
                "server --kv-events-config.enable_kv_cache_events --port 1",
                "expected a value for `enable_kv_cache_events`, found `--port`",
            ),
            (
                "server -sc.method a -sc.method b",
                "--speculative-config: `method` is given twice",
            ),
            (
                "server -sc.method a -sc.method.b c",
                "`method` is given as \"a\" and in parts",
            ),
        ] {
            let error = joined(given).unwrap_err();
            assert!(error.contains(expected), "{given}: {error}");
        }
    }
}
