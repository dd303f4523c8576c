//! Flags of `bench serve`.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::arrivals::Rate;
use super::dataset_args::{DatasetArgs, check_range};
use super::request::Backend;
use super::serve_values::{goal, header, header_text, pair, percent, value_name};
use crate::config::ConfigError;
use crate::config::units::{self, Object};

/// Sends requests to a running server with OpenAI's API, and prints its throughput and latencies. Flags and result are those of
/// `vllm bench serve`
#[derive(Clone, Debug, Parser)]
#[command(name = "serve", max_term_width = 110, allow_negative_numbers = true)]
pub struct ServeArgs {
    /// Which API is asked
    #[arg(long, alias = "endpoint-type", value_enum, default_value_t)]
    pub backend: Backend,

    /// Address of the server, instead of --host and --port: http://HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with_all = ["host", "port"])]
    pub base_url: Option<String>,

    /// Host of the server
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,

    /// Port of the server
    #[arg(long, default_value_t = 8000)]
    pub port: u16,

    /// Path of the API [default: /v1/completions, or /v1/chat/completions for openai-chat]
    #[arg(long, value_name = "PATH")]
    pub endpoint: Option<String>,

    /// Headers of each request; OPENAI_API_KEY in the environment becomes `Authorization: Bearer`
    #[arg(long, value_name = "NAME=VALUE", num_args = 1.., value_parser = header)]
    pub header: Vec<(String, String)>,

    /// Model to ask for, or its folder [default: the first one of /v1/models]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// Name of the model in requests [default: --model]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,

    /// Adapters of which each request takes one at random
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub lora_modules: Vec<String>,

    /// Folder with a tokenizer.json [default: --model if it is a folder, otherwise the server's /tokenize]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,

    /// What is asked.
    #[command(flatten)]
    pub dataset: DatasetArgs,

    /// Seed of prompts and times
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Requests per second; inf sends all at once
    #[arg(long, value_name = "RPS", default_value_t = f64::INFINITY)]
    pub request_rate: f64,

    /// Spacing of requests: 1 is a Poisson process, below 1 has bursts, above 1 is more even, inf is a fixed interval [default: 1]
    #[arg(long)]
    pub burstiness: Option<f64>,

    /// Most requests that run at once [default: any number]
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<usize>,

    /// Let the rate of requests grow
    #[arg(long, value_enum, requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"])]
    pub ramp_up_strategy: Option<RampUp>,

    /// First rate of --ramp-up-strategy
    #[arg(long, value_name = "RPS", requires = "ramp_up_strategy")]
    pub ramp_up_start_rps: Option<u32>,

    /// Last rate of --ramp-up-strategy
    #[arg(long, value_name = "RPS", requires = "ramp_up_strategy")]
    pub ramp_up_end_rps: Option<u32>,

    /// Requests before the measurement
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_warmups: usize,

    /// Seconds to wait for the server; 0 sends no request to test it
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub ready_check_timeout_sec: u64,

    /// Generate as many tokens as wanted, whatever the model says; always with the data set random
    #[arg(long)]
    pub ignore_eos: bool,

    /// Log-probabilities per token
    #[arg(long, value_name = "N")]
    pub logprobs: Option<usize>,

    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,

    /// Field `top_p` of each request
    #[arg(long)]
    pub top_p: Option<f64>,

    /// Field `top_k` of each request
    #[arg(long)]
    pub top_k: Option<i64>,

    /// Field `min_p` of each request
    #[arg(long)]
    pub min_p: Option<f64>,

    /// Field `frequency_penalty` of each request
    #[arg(long)]
    pub frequency_penalty: Option<f64>,

    /// Field `presence_penalty` of each request
    #[arg(long)]
    pub presence_penalty: Option<f64>,

    /// Field `repetition_penalty` of each request
    #[arg(long)]
    pub repetition_penalty: Option<f64>,

    /// Further fields of each request, as JSON
    #[arg(long, value_name = "JSON", value_parser = units::object)]
    pub extra_body: Option<Object>,

    /// What is shown with percentiles: some of ttft, tpot, itl, e2el
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        value_enum,
        default_value = "ttft,tpot,itl"
    )]
    pub percentile_metrics: Vec<MetricName>,

    /// Which percentiles, such as 25,50,99.9
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        value_parser = percent,
        default_value = "99"
    )]
    pub metric_percentiles: Vec<f64>,

    /// Counts requests within these times, as NAME:MILLISECONDS with ttft, tpot or e2el
    #[arg(long, value_name = "NAME:MS", num_args = 1.., value_parser = goal)]
    pub goodput: Vec<(MetricName, f64)>,

    /// Write the result to a JSON file
    #[arg(long)]
    pub save_result: bool,

    /// Write times, lengths, texts and errors of each request, too
    #[arg(long)]
    pub save_detailed: bool,

    /// Write the result behind what the file has
    #[arg(long)]
    pub append_result: bool,

    /// Folder of the file [default: the current one]
    #[arg(long, value_name = "DIR")]
    pub result_dir: Option<PathBuf>,

    /// Name of the file [default: of label, rate, model and date]
    #[arg(long, value_name = "NAME")]
    pub result_filename: Option<String>,

    /// Beginning of the file's name [default: --backend]
    #[arg(long)]
    pub label: Option<String>,

    /// Further keys of the file
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = pair)]
    pub metadata: Vec<(String, String)>,

    /// Beginning of each request's X-Request-Id [default: bench-, a random number]
    #[arg(long, value_name = "TEXT", value_parser = header_text)]
    pub request_id_prefix: Option<String>,

    /// Show no progress
    #[arg(long)]
    pub disable_tqdm: bool,

    /// No code is loaded from models, whether or not it is trusted
    #[arg(long, hide = true)]
    pub trust_remote_code: bool,
}

/// `--ramp-up-strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RampUp {
    /// By the same number of requests per second
    Linear,
    /// By the same factor
    Exponential,
}

/// What is measured of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricName {
    /// Time to the first token
    Ttft,
    /// Mean time of a further token of a request
    Tpot,
    /// Time from each token to the next
    Itl,
    /// Time to the last token
    E2el,
}

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
        self.check_numbers()?;
        self.check_file()?;
        self.check_effect()?;
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
            ("--temperature", Some(self.temperature)),
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

    /// How evenly requests come.
    pub(super) fn burstiness(&self) -> f64 {
        self.burstiness.unwrap_or(1.0)
    }

    /// Path of the API.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or(self.backend.endpoint())
    }

    /// Address of the server.
    pub fn url(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        self.base_url
            .clone()
            .unwrap_or_else(|| format!("http://{host}:{}", self.port))
    }

    /// The flag that gives the address.
    pub fn url_flag(&self) -> &'static str {
        match &self.base_url {
            Some(_) => "--base-url",
            None => "--host",
        }
    }

    /// How fast requests come.
    pub(super) fn rate(&self) -> Rate {
        match (
            self.ramp_up_strategy,
            self.ramp_up_start_rps,
            self.ramp_up_end_rps,
        ) {
            (Some(strategy), Some(from), Some(to)) => Rate::Ramp {
                is_exponential: strategy == RampUp::Exponential,
                from: from.into(),
                to: to.into(),
            },
            _ => Rate::Steady(self.request_rate),
        }
    }
}

fn ending(backend: Backend) -> &'static str {
    match backend {
        Backend::Openai => "completions",
        Backend::OpenaiChat => "chat/completions",
    }
}
