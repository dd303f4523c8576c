//! Values of flags of `bench serve`, and flags that it refuses.

use std::str::FromStr as _;

use axum::http::{HeaderName, HeaderValue};
use clap::ValueEnum;

/// Why there are no flags of the Hub.
pub(super) const NO_HUB: &str =
    "no data set comes from the Hub: write the prompts into a file of --dataset-name custom";
const NO_MEDIA: &str = "prompts are texts";
const NO_TRACE: &str =
    "see --request-rate and --ramp-up-strategy, which say when requests are sent";
const NO_PLOTS: &str = "see --save-detailed, which writes the lengths and times of each request";
const NO_RERANK: &str = "no data set has documents";

/// Flags of `vllm bench serve` that cannot work here.
pub(super) const REFUSED: [(&str, &str); 36] = [
    ("--use-beam-search", "this server has no beam search"),
    ("--profile", "the server has no profiler to start"),
    (
        "--skip-tokenizer-init",
        "see --tokenizer; without one the server's /tokenize counts",
    ),
    ("--hf-subset", NO_HUB),
    ("--hf-split", NO_HUB),
    ("--hf-name", NO_HUB),
    ("--hf-output-len", NO_HUB),
    ("--no-stream", NO_HUB),
    ("--spec-bench-output-len", NO_HUB),
    ("--spec-bench-category", NO_HUB),
    ("--speed-bench-dataset-subset", NO_HUB),
    ("--speed-bench-output-len", NO_HUB),
    ("--speed-bench-category", NO_HUB),
    ("--blazedit-min-distance", NO_HUB),
    ("--blazedit-max-distance", NO_HUB),
    ("--bfcl-categories", NO_HUB),
    ("--asr-max-audio-len-sec", NO_MEDIA),
    ("--asr-min-audio-len-sec", NO_MEDIA),
    ("--enable-multimodal-chat", NO_MEDIA),
    ("--custom-ensure-client-side-data", NO_MEDIA),
    ("--random-mm-base-items-per-request", NO_MEDIA),
    ("--random-mm-num-mm-items-range-ratio", NO_MEDIA),
    ("--random-mm-limit-mm-per-prompt", NO_MEDIA),
    ("--random-mm-bucket-config", NO_MEDIA),
    ("--no-reranker", NO_RERANK),
    ("--self-timed", NO_TRACE),
    ("--no-self-timed", NO_TRACE),
    ("--timed-trace-chunk-hash-size", NO_TRACE),
    ("--timed-trace-sec-multiplier", NO_TRACE),
    ("--timed-trace-label-timestamp", NO_TRACE),
    ("--timed-trace-label-input-length", NO_TRACE),
    ("--timed-trace-label-output-length", NO_TRACE),
    ("--timed-trace-label-hash-ids", NO_TRACE),
    ("--plot-timeline", NO_PLOTS),
    ("--timeline-itl-thresholds", NO_PLOTS),
    ("--plot-dataset-stats", NO_PLOTS),
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

/// How a tokenizer is read: there is one way, which has several names.
pub(super) fn tokenizer_mode(text: &str) -> Result<(), String> {
    match text {
        "auto" | "hf" | "fast" => Ok(()),
        _ => Err("expected auto, hf or fast: tokenizers are read from tokenizer.json".to_owned()),
    }
}

/// Prompts of a request.
pub(super) fn batch_size(text: &str) -> Result<(), String> {
    match text.trim() {
        "1" => Ok(()),
        _ => Err("expected 1: each request has one prompt".to_owned()),
    }
}

/// Requests beside those that are measured.
pub(super) fn no_probes(text: &str) -> Result<(), String> {
    match text.trim().parse() {
        Ok(0.0) => Ok(()),
        _ => Err("expected 0: no probes are sent beside the requests".to_owned()),
    }
}

pub(super) fn percent(text: &str) -> Result<f64, std::num::ParseFloatError> {
    text.trim().parse()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::bench::serve_args::ServeArgs;

    /// The flags of `vllm bench serve`, 0.26, and `--probe-request-rate`, which is newer.
    const VLLM: &str = "append-result asr-max-audio-len-sec asr-min-audio-len-sec backend base-url bfcl-categories \
        blazedit-max-distance blazedit-min-distance burstiness chat-template-kwargs custom-ensure-client-side-data \
        custom-output-len dataset-name dataset-path disable-shuffle disable-tqdm enable-multimodal-chat endpoint \
        extra-body frequency-penalty goodput header hf-name hf-output-len hf-split hf-subset host ignore-eos input-len \
        insecure label logprobs lora-assignment lora-modules max-concurrency metadata metric-percentiles min-p model \
        no-oversample no-reranker no-self-timed no-stream num-prompts num-warmups output-len percentile-metrics \
        plot-dataset-stats plot-timeline port prefix-repetition-num-prefixes prefix-repetition-output-len \
        prefix-repetition-prefix-len prefix-repetition-suffix-len presence-penalty probe-request-rate profile ramp-up-end-rps \
        ramp-up-start-rps ramp-up-strategy random-batch-size random-input-len random-mm-base-items-per-request \
        random-mm-bucket-config random-mm-limit-mm-per-prompt random-mm-num-mm-items-range-ratio random-output-len \
        random-prefix-len random-range-ratio ready-check-timeout-sec repetition-penalty request-id-prefix request-rate \
        result-dir result-filename save-detailed save-result seed self-timed served-model-name sharegpt-output-len \
        skip-chat-template skip-tokenizer-init sonnet-input-len sonnet-output-len sonnet-prefix-len \
        spec-bench-category spec-bench-output-len speed-bench-category speed-bench-dataset-subset \
        speed-bench-output-len temperature timed-trace-chunk-hash-size timed-trace-label-hash-ids \
        timed-trace-label-input-length timed-trace-label-output-length timed-trace-label-timestamp \
        timed-trace-sec-multiplier timeline-itl-thresholds tokenizer tokenizer-mode top-k top-p trust-remote-code \
        use-beam-search";

    #[test]
    fn every_flag_of_vllm_works_or_is_refused_with_a_reason() {
        let command = ServeArgs::command();
        let own: Vec<&str> = command
            .get_arguments()
            .filter_map(|argument| argument.get_long())
            .collect();
        let flags: Vec<&str> = VLLM.split_whitespace().collect();
        for flag in &flags {
            let is_refused = REFUSED
                .iter()
                .any(|(name, _)| name.strip_prefix("--") == Some(*flag));
            assert!(own.contains(flag) != is_refused, "--{flag}");
        }
        for (name, _) in REFUSED {
            let name = name.strip_prefix("--").unwrap();
            assert!(flags.contains(&name), "--{name} is none of vLLM's");
        }
    }
}
