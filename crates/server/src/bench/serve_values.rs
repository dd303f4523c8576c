//! Values of flags of `bench serve`, and flags that it refuses.

use super::serve_args::MetricName;

/// Flags of `vllm bench serve` that cannot work here.
pub(super) const REFUSED: [(&str, &str); 7] = [
    ("--use-beam-search", "this server has no beam search"),
    ("--profile", "the server has no profiler to start"),
    (
        "--tokenizer-mode",
        "tokenizers are read from tokenizer.json",
    ),
    (
        "--hf-subset",
        "data sets are files: random, sharegpt or custom",
    ),
    (
        "--hf-split",
        "data sets are files: random, sharegpt or custom",
    ),
    (
        "--hf-name",
        "data sets are files: random, sharegpt or custom",
    ),
    (
        "--plot-timeline",
        "see --save-detailed, which writes the time of each token",
    ),
];

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn percent(text: &str) -> Result<f64, std::num::ParseFloatError> {
    text.trim().parse()
}

pub(super) fn goal(text: &str) -> Result<(MetricName, f64), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME:MILLISECONDS")?;
    let name = match name {
        "ttft" => MetricName::Ttft,
        "tpot" => MetricName::Tpot,
        "e2el" => MetricName::E2el,
        other => return Err(format!("expected ttft, tpot or e2el, found {other}")),
    };
    match value.parse::<f64>() {
        Ok(value) if value >= 0.0 => Ok((name, value)),
        _ => Err(format!("expected milliseconds, found {value}")),
    }
}
