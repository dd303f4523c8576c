//! What an answer, or the flag in its place, may be.

use std::path::PathBuf;

use clap::ValueEnum;
use model_qwen::{DeviceError, HubOptions, bundled_model_dir, parse_device, resolve_model_with};
use serde_json::Value;

use crate::config::args::number;
use crate::config::{self, GrpoOptions, Method, Thinking};
use crate::data::files;
use crate::data::format::columns_for;
use crate::data::objects::first_object;
use crate::rewards::Rewards;
use crate::tools::ToolError;

/// An error of a flag; takes what was found.
pub(super) fn refused(flag: &'static str) -> impl FnOnce(String) -> ToolError {
    move |found| ToolError::Flag {
        flag,
        expected: match flag {
            "model" => "a model folder, or a Hugging Face id such as Qwen/Qwen2.5-1.5B-Instruct",
            "data" => "records that a run of this --method would take",
            "output" => "a folder that can be made",
            _ => "auto, cpu, cuda, cuda:N, wgpu, vulkan, metal, rocm or rocm:N",
        }
        .to_owned(),
        found,
    }
}

/// A path as a shell would read it.
pub(super) fn at_home(text: &str) -> PathBuf {
    config::at_home(text).unwrap_or_else(|| PathBuf::from(text))
}

/// A model that is on this machine or may be on the Hub; nothing is downloaded.
pub(super) fn named_model(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return match bundled_model_dir() {
            Ok(_) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
    }
    let path = at_home(text).display().to_string();
    let is_id = text.split('/').count() == 2 && !text.starts_with(['.', '/', '~']);
    match resolve_model_with(&path, &offline()) {
        Ok(_) => Ok(Some(path)),
        Err(_) if is_id => Ok(Some(text.to_owned())),
        Err(error) => Err(error.to_string()),
    }
}

/// The folder of a model that is on this machine.
pub(super) fn local_model(model: &str) -> Option<PathBuf> {
    resolve_model_with(model, &offline()).ok()
}

fn offline() -> HubOptions {
    HubOptions {
        offline: true,
        ..HubOptions::from_env()
    }
}

pub(super) fn named_data(text: &str) -> Result<Vec<PathBuf>, String> {
    let paths = vec![at_home(text)];
    match files::expand(&paths) {
        Ok(_) => Ok(paths),
        Err(error) => Err(error.to_string()),
    }
}

/// The `--columns` that read the first record, where a run needs some; none for standard input, which can be read once.
pub(super) fn columns_of(data: &[PathBuf], method: Method) -> Vec<String> {
    let is_stream = data.iter().any(|path| path.as_os_str() == files::STDIN);
    let fields = (!is_stream).then(|| first_object(data)).flatten();
    let columns = fields.and_then(|fields| columns_for(&fields, method));
    columns.unwrap_or_default()
}

/// The method that the first record looks like data of, and whether no other one learns from such data.
pub(super) fn usual_method(data: &[PathBuf]) -> (Method, bool) {
    let fields = first_object(data).unwrap_or_default();
    let has = |names: &[&str]| names.iter().any(|name| fields.contains_key(*name));
    if has(&["chosen", "rejected"]) {
        (Method::Dpo, false)
    } else if has(&["kto_tag"]) || matches!(fields.get("label"), Some(Value::Bool(_))) {
        (Method::Kto, true)
    } else if has(&["prompt"]) && !has(&["completion", "response"]) {
        (Method::Grpo, false)
    } else {
        (Method::Sft, !fields.is_empty())
    }
}

/// A device that this build or another one knows.
pub(super) fn named_device(text: &str) -> Result<String, String> {
    match parse_device(text) {
        Err(error @ (DeviceError::Unknown { .. } | DeviceError::Index { .. })) => {
            Err(error.to_string())
        }
        _ => Ok(text.to_owned()),
    }
}

/// The file may be for another machine or build, so what is missing here is only said.
pub(super) fn note_absent(device: &str) {
    if let Err(error) = parse_device(device) {
        tracing::warn!("{error}");
    }
}

pub(super) fn named_method(text: &str) -> Result<Method, String> {
    one_of(text)
}

pub(super) fn named_thinking(text: &str) -> Result<Thinking, String> {
    one_of(text)
}

/// One of the values of a flag.
fn one_of<T: ValueEnum>(text: &str) -> Result<T, String> {
    let values = T::value_variants().iter();
    let names = values.filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()));
    let names: Vec<String> = names.collect();
    T::from_str(text, true).map_err(|_| format!("expected {}, found `{text}`", names.join(", ")))
}

/// A reward, or the address of a program that gives some.
pub(super) fn named_reward(text: &str) -> Result<String, String> {
    let mut options = GrpoOptions::default();
    let text = text.to_owned();
    match text.starts_with("http") {
        true => options.reward_urls.push(text.clone()),
        false => options.rewards.push(text.clone()),
    }
    match Rewards::new(&options) {
        Ok(_) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    let value = number(text)?;
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(format!("expected a number above 0, found {value}")),
    }
}
