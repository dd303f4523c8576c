//! Ranges and contradictions of the flags of `bench serve`.

use std::ops::RangeInclusive;

use super::dataset_args::check_range;
use super::goodput::Goal;
use super::request::Backend;
use super::serve_args::{MetricName, ServeArgs};
use super::serve_values::value_name;
use crate::config::ConfigError;

/// Requests per second.
const RATES: RangeInclusive<f64> = 1e-6..=1e9;
/// Shapes of the intervals between requests: below this most would be too short for a number.
const SHAPES: RangeInclusive<f64> = 1e-3..=1e9;
/// Most requests before the measurement.
const MAX_WARMUPS: usize = 1 << 16;

impl ServeArgs {
    /// Checks ranges and contradictions.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.dataset.check()?;
        let wrong = |flag, message: String| Err(ConfigError::Flag { flag, message });
        if self.backend == Backend::Other {
            let message = "expected openai, openai-chat or openai-embeddings: the data sets have no media and no documents";
            return wrong("--backend", message.to_owned());
        }
        self.check_numbers()?;
        self.check_file()?;
        self.check_effect()?;
        self.check_vectors()?;
        if self.max_concurrency == Some(0) {
            return wrong(
                "--max-concurrency",
                "expected 1 or more, found 0".to_owned(),
            );
        }
        if let Some(percent) = self
            .metric_percentiles
            .iter()
            .find(|p| !(0.0..=100.0).contains(*p))
        {
            return wrong(
                "--metric-percentiles",
                format!("expected 0 to 100, found {percent}"),
            );
        }
        if let (Some(_), Some(from), Some(to)) = (
            self.ramp_up_strategy,
            self.ramp_up_start_rps,
            self.ramp_up_end_rps,
        ) {
            if self.request_rate.is_finite() {
                return wrong(
                    "--request-rate",
                    "--ramp-up-strategy gives the rate".to_owned(),
                );
            }
            if from == 0 || from > to {
                return wrong(
                    "--ramp-up-start-rps",
                    format!("expected 1 to --ramp-up-end-rps, {to}; found {from}"),
                );
            }
        }
        let endpoint = self.endpoint();
        let is_chat = endpoint.ends_with(ending(Backend::OpenaiChat));
        let fits = endpoint.ends_with(ending(self.backend))
            && is_chat == (self.backend == Backend::OpenaiChat);
        if !endpoint.starts_with('/') || !fits {
            let backend = value_name(self.backend);
            return wrong(
                "--endpoint",
                format!(
                    "expected /…{} for --backend {backend}, found {endpoint}",
                    ending(self.backend)
                ),
            );
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        let wrong = |flag, message: String| Err(ConfigError::Flag { flag, message });
        check_range("--num-warmups", self.num_warmups, 0, MAX_WARMUPS)?;
        for (flag, value, range) in [
            ("--request-rate", self.request_rate, RATES),
            ("--burstiness", self.burstiness(), SHAPES),
        ] {
            let (least, most) = (range.start(), range.end());
            if !range.contains(&value) && value != f64::INFINITY {
                let message = format!("expected {least} to {most}, or inf; found {value}");
                return wrong(flag, message);
            }
        }
        for (flag, value) in [
            ("--temperature", self.temperature),
            ("--top-p", self.top_p),
            ("--min-p", self.min_p),
            ("--frequency-penalty", self.frequency_penalty),
            ("--presence-penalty", self.presence_penalty),
            ("--repetition-penalty", self.repetition_penalty),
        ] {
            // JSON has no other numbers.
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                return wrong(flag, format!("expected a finite number, found {value}"));
            }
        }
        Ok(())
    }

    /// Refuses flags of a result file that is not written.
    fn check_file(&self) -> Result<(), ConfigError> {
        if self.save_result || self.append_result {
            return Ok(());
        }
        for (flag, is_given) in [
            ("--save-detailed", self.save_detailed),
            ("--result-dir", self.result_dir.is_some()),
            ("--result-filename", self.result_filename.is_some()),
            ("--label", self.label.is_some()),
            ("--metadata", !self.metadata.is_empty()),
        ] {
            if is_given {
                return Err(ConfigError::Flag {
                    flag,
                    message: "no result is written without --save-result or --append-result"
                        .to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Refuses what other flags leave without effect.
    fn check_effect(&self) -> Result<(), ConfigError> {
        let is_at_once = self.request_rate.is_infinite() && self.ramp_up_strategy.is_none();
        let chats = self.backend == Backend::OpenaiChat && self.dataset.skip_chat_template;
        let fields = self.extra_body.as_ref();
        let streams = fields.and_then(|fields| fields.get("stream"));
        for (flag, is_wrong, message) in [
            (
                "--burstiness",
                self.burstiness.is_some() && is_at_once,
                "all requests come at once without --request-rate or --ramp-up-strategy",
            ),
            (
                "--skip-chat-template",
                chats,
                "with --backend openai-chat the server makes a chat of each prompt",
            ),
            (
                "--percentile-metrics",
                self.shows(MetricName::ClientQueueTime) && self.max_concurrency.is_none(),
                "client_queue_time: no request waits for others without --max-concurrency",
            ),
            (
                "--percentile-metrics",
                self.shows(MetricName::E2elIncludingClientQueue)
                    && (self.max_concurrency.is_none() || is_at_once),
                "e2el_including_client_queue needs --max-concurrency, and --request-rate or --ramp-up-strategy",
            ),
            (
                "--chat-template-kwargs",
                self.chat_template_kwargs.is_some() && self.backend != Backend::OpenaiChat,
                "only --backend openai-chat sends chats",
            ),
            (
                "--extra-body",
                streams.is_some_and(|streams| *streams != true),
                "`stream`: the times of tokens are those of a stream",
            ),
        ] {
            if is_wrong {
                let message = message.to_owned();
                return Err(ConfigError::Flag { flag, message });
            }
        }
        Ok(())
    }

    /// Refuses what a vector doesn't have.
    fn check_vectors(&self) -> Result<(), ConfigError> {
        if self.backend.generates() {
            return Ok(());
        }
        let dataset = &self.dataset;
        let given = [
            ("--ignore-eos", self.ignore_eos),
            ("--logprobs", self.logprobs.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--frequency-penalty", self.frequency_penalty.is_some()),
            ("--presence-penalty", self.presence_penalty.is_some()),
            ("--repetition-penalty", self.repetition_penalty.is_some()),
            ("--output-len", dataset.output_len.is_some()),
            ("--random-output-len", dataset.random_output_len.is_some()),
            (
                "--sharegpt-output-len",
                dataset.sharegpt_output_len.is_some(),
            ),
            ("--custom-output-len", dataset.custom_output_len.is_some()),
            ("--sonnet-output-len", dataset.sonnet_output_len.is_some()),
            (
                "--prefix-repetition-output-len",
                dataset.prefix_repetition_output_len.is_some(),
            ),
        ];
        let wrong = |flag, message: &str| {
            let message = format!("with --backend openai-embeddings {message}");
            Err(ConfigError::Flag { flag, message })
        };
        if let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
            return wrong(flag, "there are no tokens but those of prompts");
        }
        let mut metrics = self.percentile_metrics.iter().flatten();
        if let Some(metric) = metrics.find(|metric| !metric.is_of_vectors()) {
            let found = value_name(*metric);
            let expected = "e2el, client_queue_time or e2el_including_client_queue";
            let message = format!("expected {expected}, found {found}");
            return wrong("--percentile-metrics", &message);
        }
        if let Some((goal, _)) = self.goodput.iter().find(|(goal, _)| *goal != Goal::E2el) {
            let message = format!("expected e2el, found {}", value_name(*goal));
            return wrong("--goodput", &message);
        }
        Ok(())
    }
}

fn ending(backend: Backend) -> &'static str {
    match backend {
        Backend::Openai => "completions",
        Backend::OpenaiChat => "chat/completions",
        Backend::OpenaiEmbeddings | Backend::Other => "embeddings",
    }
}
