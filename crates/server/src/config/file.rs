//! `--config run.toml`: each entry becomes the flag of the same name.

use std::ffi::OsString;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use toml::{Table, Value};

use super::command_line::nearest_flag;
use super::vllm_flags::VllmFlag;
use super::{ConfigError, text_file};

/// The command line with the file's entries in front, without those that the command line sets itself.
pub(super) fn merge(
    path: &Path,
    command: &Command,
    command_line: Vec<OsString>,
    matches: &ArgMatches,
) -> Result<Vec<OsString>, ConfigError> {
    let fail = |message: String| ConfigError::File {
        path: path.to_owned(),
        message,
    };
    let text = text_file::read(path).map_err(fail)?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let is_yaml = path
            .extension()
            .is_some_and(|ending| ending == "yaml" || ending == "yml");
        let error = shown(&text, &error);
        fail(match is_yaml {
            true => format!("expected TOML (`key = value`), found YAML? {error}"),
            false => error,
        })
    })?;
    let mut merged = Vec::new();
    for (key, value) in &table {
        let key = key.replace('_', "-");
        let flags = flags(command, &key, value).map_err(fail)?;
        if !overridden(&key, matches) {
            merged.extend(flags);
        }
    }
    let mut command_line = command_line.into_iter();
    let program = command_line.next().unwrap_or_else(|| "server".into());
    Ok(std::iter::once(program)
        .chain(merged)
        .chain(command_line)
        .collect())
}

/// The error with the lines that it is about, unless they may have a key.
fn shown(text: &str, error: &toml::de::Error) -> String {
    if !text.contains("api-key") && !text.contains("api_key") {
        return error.to_string();
    }
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

/// Whether the command line itself decides what `key` sets.
fn overridden(key: &str, matches: &ArgMatches) -> bool {
    let given = |id: &str| {
        let known = matches.try_contains_id(id).is_ok();
        known && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    match key {
        "model" => given("model") || given("model_positional"),
        "enable-prefix-caching" | "no-enable-prefix-caching" => {
            given("enable_prefix_caching") || given("no_enable_prefix_caching")
        }
        "host" | "port" => given(key) || given("uds"),
        "uds" => given("uds") || given("host") || given("port"),
        _ => {
            let id = key.replace('-', "_");
            given(&id) || given(&format!("no_{id}"))
        }
    }
}

fn is_flag(command: &Command, name: &str) -> bool {
    command
        .get_arguments()
        .any(|arg| arg.get_long() == Some(name))
}

/// One entry as flags: `--key=value`, a bare `--key` for `true`, one flag per element of a list.
fn flags(command: &Command, key: &str, value: &Value) -> Result<Vec<OsString>, String> {
    if key == "config" {
        return Err("key `config`: a file of settings names no other one".to_owned());
    }
    let Some(arg) = command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(key))
    else {
        if VllmFlag::find(&format!("--{key}")).is_some() {
            return vllm_flag(key, value);
        }
        let hint = nearest_flag(command, key).map_or_else(String::new, |flag| {
            format!("; did you mean `{}`?", &flag[2..])
        });
        return Err(format!("unknown key `{key}`{hint}"));
    };
    let takes_value = arg.get_action().takes_values();
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(OsString::from(format!("--{key}={text}"))),
        Value::Integer(number) => Ok(format!("--{key}={number}").into()),
        Value::Float(number) => Ok(format!("--{key}={number}").into()),
        Value::Table(table) => serde_json::to_string(table)
            .map(|json| format!("--{key}={json}").into())
            .map_err(|e| e.to_string()),
        Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) if key == "api-key" => {
            Err(format!("key `{key}`: expected a string"))
        }
        Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) => Err(format!(
            "key `{key}`: expected a string or a number, found `{value}`"
        )),
    };
    match value {
        Value::Boolean(on) if !takes_value => Ok(match (key, on) {
            (_, true) => vec![format!("--{key}").into()],
            // Off anyway: the flags of a program that are no server's have no negation.
            (_, false) if !is_flag(command, &format!("no-{key}")) => Vec::new(),
            (_, false) => vec![format!("--no-{key}").into()],
        }),
        _ if !takes_value => Err(format!(
            "key `{key}`: expected true or false, found `{value}`"
        )),
        Value::Array(items) => items.iter().map(scalar).collect(),
        other => scalar(other).map(|flag| vec![flag]),
    }
}

/// An entry that is a flag of vLLM's, which is looked at later.
fn vllm_flag(key: &str, value: &Value) -> Result<Vec<OsString>, String> {
    let flag = match value {
        Value::Boolean(true) => format!("--{key}"),
        Value::Boolean(false) => format!("--no-{key}"),
        Value::String(text) => format!("--{key}={text}"),
        Value::Integer(number) => format!("--{key}={number}"),
        Value::Float(number) => format!("--{key}={number}"),
        other => {
            let json = serde_json::to_string(other).map_err(|error| error.to_string())?;
            format!("--{key}={json}")
        }
    };
    Ok(vec![flag.into()])
}
