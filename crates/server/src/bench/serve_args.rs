//! Flags of `bench serve`.

use model_qwen::flags::whole;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::arrivals::Rate;
use super::dataset_args::DatasetArgs;
use super::goodput::{Goal, goal};
use super::request::Backend;
use super::serve_values::{
    batch_size, header, header_text, no_probes, pair, percent, tokenizer_mode,
};
use crate::config::units::{self, Object};

/// Sends requests to a running server with OpenAI's API, and prints its throughput and latencies. Flags and result are those of
/// `vllm bench serve`
#[derive(Clone, Debug, Parser)]
#[command(name = "serve", max_term_width = 110, allow_negative_numbers = true)]
pub struct ServeArgs {
    /// Which API is asked
    #[arg(long, alias = "endpoint-type", value_enum, default_value_t)]
    pub backend: Backend,

    /// Address of the server, instead of --host and --port, whatever these say: http://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,

    /// Host of the server
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,

    /// Port of the server
    #[arg(long, default_value_t = 8000, value_parser = whole::<u16>)]
    pub port: u16,

    /// Path of the API [default: /v1/completions, /v1/chat/completions for openai-chat, or /v1/embeddings for openai-embeddings]
    #[arg(long, value_name = "PATH")]
    pub endpoint: Option<String>,

    /// Headers of each request; OPENAI_API_KEY in the environment becomes `Authorization: Bearer`
    #[arg(long, value_name = "NAME=VALUE", num_args = 0.., value_parser = header)]
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

    /// Which of --lora-modules a request takes
    #[arg(long, value_enum, default_value_t, requires = "lora_modules")]
    pub lora_assignment: LoraAssignment,

    /// Folder with a tokenizer.json [default: --model if it is a folder, otherwise the server's /tokenize]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,

    /// What is asked.
    #[command(flatten)]
    pub dataset: DatasetArgs,

    /// Seed of prompts and times
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>)]
    pub seed: u64,

    /// Requests per second; inf sends all at once
    #[arg(long, value_name = "RPS", default_value_t = f64::INFINITY)]
    pub request_rate: f64,

    /// Spacing of requests: 1 is a Poisson process, below 1 has bursts, above 1 is more even, inf is a fixed interval [default: 1]
    #[arg(long)]
    pub burstiness: Option<f64>,

    /// Most requests that run at once [default: any number]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub max_concurrency: Option<usize>,

    /// Let the rate of requests grow
    #[arg(long, value_enum, requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"])]
    pub ramp_up_strategy: Option<RampUp>,

    /// First rate of --ramp-up-strategy
    #[arg(long, value_name = "RPS", requires = "ramp_up_strategy", value_parser = whole::<u32>)]
    pub ramp_up_start_rps: Option<u32>,

    /// Last rate of --ramp-up-strategy
    #[arg(long, value_name = "RPS", requires = "ramp_up_strategy", value_parser = whole::<u32>)]
    pub ramp_up_end_rps: Option<u32>,

    /// Requests before the measurement
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    pub num_warmups: usize,

    /// Seconds to wait for the server; 0 sends no request to test it
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = whole::<u64>)]
    pub ready_check_timeout_sec: u64,

    /// Generate as many tokens as wanted, whatever the model says; always with the data set random
    #[arg(long)]
    pub ignore_eos: bool,

    /// Log-probabilities per token
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub logprobs: Option<usize>,

    /// Sampling temperature; 0 is greedy [default: 0]
    #[arg(long)]
    pub temperature: Option<f64>,

    /// Field `top_p` of each request
    #[arg(long)]
    pub top_p: Option<f64>,

    /// Field `top_k` of each request
    #[arg(long, value_parser = whole::<i64>)]
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

    /// Field `chat_template_kwargs` of each request, as JSON; with --backend openai-chat
    #[arg(long, value_name = "JSON", value_parser = units::object)]
    pub chat_template_kwargs: Option<Object>,

    /// Further fields of each request, as JSON
    #[arg(long, value_name = "JSON", value_parser = units::object)]
    pub extra_body: Option<Object>,

    /// What is shown with percentiles: some of ttft, tpot, itl, e2el, client_queue_time and e2el_including_client_queue [default: ttft,tpot,itl, or e2el for openai-embeddings]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_enum)]
    pub percentile_metrics: Option<Vec<MetricName>>,

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
    pub goodput: Vec<(Goal, f64)>,

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
    #[arg(long, value_name = "KEY=VALUE", num_args = 0.., value_parser = pair)]
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

    /// This client has no TLS, so it checks no certificate
    #[arg(long, hide = true)]
    pub insecure: bool,

    /// Tokenizers are read from tokenizer.json
    #[arg(long, hide = true, value_name = "MODE", value_parser = tokenizer_mode)]
    pub tokenizer_mode: Option<()>,

    /// Each request has one prompt
    #[arg(long, hide = true, value_name = "N", value_parser = batch_size)]
    pub random_batch_size: Option<()>,

    /// No probes are sent
    #[arg(long, hide = true, value_name = "RPS", value_parser = no_probes)]
    pub probe_request_rate: Option<()>,
}

/// `--ramp-up-strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RampUp {
    /// By the same number of requests per second
    Linear,
    /// By the same factor
    Exponential,
}

/// `--lora-assignment`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LoraAssignment {
    /// Any
    #[default]
    Random,
    /// The next one
    RoundRobin,
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
    /// Time that a request waits for others, by --max-concurrency
    #[value(name = "client_queue_time")]
    ClientQueueTime,
    /// Time from when a request could be sent to its last token
    #[value(name = "e2el_including_client_queue")]
    E2elIncludingClientQueue,
}

impl MetricName {
    /// Whether a request without tokens has it.
    pub(super) fn is_of_vectors(self) -> bool {
        matches!(
            self,
            Self::E2el | Self::ClientQueueTime | Self::E2elIncludingClientQueue
        )
    }
}

impl ServeArgs {
    /// What is shown with percentiles.
    pub(super) fn percentile_metrics(&self) -> &[MetricName] {
        const OF_TEXTS: &[MetricName] = &[MetricName::Ttft, MetricName::Tpot, MetricName::Itl];
        match &self.percentile_metrics {
            Some(names) => names,
            None if self.backend.generates() => OF_TEXTS,
            None => &[MetricName::E2el],
        }
    }

    /// Whether it is one of these.
    pub(super) fn shows(&self, metric: MetricName) -> bool {
        self.percentile_metrics().contains(&metric)
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
