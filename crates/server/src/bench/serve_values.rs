//! Values of flags of `bench serve`, and flags that it refuses.

use std::str::FromStr as _;

use axum::http::{HeaderName, HeaderValue};
use clap::ValueEnum;

use super::serve_args::MetricName;

/// Why there are no flags of the Hub.
pub(super) const NO_HUB: &str = "a data set is random, or a file of sharegpt or custom";

/// Flags of `vllm bench serve` that cannot work here.
pub(super) const REFUSED: [(&str, &str); 7] = [
    ("--use-beam-search", "this server has no beam search"),
    ("--profile", "the server has no profiler to start"),
    (
        "--tokenizer-mode",
        "tokenizers are read from tokenizer.json",
    ),
    ("--hf-subset", NO_HUB),
    ("--hf-split", NO_HUB),
    ("--hf-name", NO_HUB),
    (
        "--plot-timeline",
        "see --save-detailed, which writes the time of each token",
    ),
];

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// A text that a header may have.
pub(super) fn header_text(text: &str) -> Result<String, String> {
    match HeaderValue::from_str(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected a text without control characters".to_owned()),
    }
}

/// A header that can be sent.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = pair(text)?;
    match HeaderName::from_str(&name) {
        Ok(_) => Ok((name, header_text(&value)?)),
        Err(_) => Err(format!("`{name}` is no name of a header")),
    }
}

/// The name of a flag's value.
pub(super) fn value_name(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

pub(super) fn percent(text: &str) -> Result<f64, std::num::ParseFloatError> {
    text.trim().parse()
}

pub(super) fn goal(text: &str) -> Result<(MetricName, f64), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME:MILLISECONDS")?;
    let metric = MetricName::from_str(name, false).ok();
    let metric = metric.filter(|&metric| metric != MetricName::Itl);
    let metric = metric.ok_or_else(|| format!("expected ttft, tpot or e2el, found {name}"))?;
    match value.parse::<f64>() {
        Ok(value) if value >= 0.0 => Ok((metric, value)),
        _ => Err(format!("expected milliseconds, found {value}")),
    }
}
