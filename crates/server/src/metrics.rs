//! `/metrics` in Prometheus' text format or in OpenMetrics, with the names and the bounds of vLLM's metrics.

mod exposition;
mod format;
mod http;
mod process;

use crate::engine::{Ended, EngineStats, RequestMetrics, SpeculationStats};
use crate::histogram::{CHOICES, FIRST_TOKEN_SECONDS, Histogram, REQUEST_SECONDS, TOKEN_SECONDS};
use crate::kv_events::KvEventCounts;
use exposition::{Exposition, escaped};

pub use format::Format;
pub use http::{Answered, HttpMetrics};

/// What the HTTP side has seen of sequences.
#[derive(Debug)]
pub struct Metrics {
    /// From submission to the first token.
    pub time_to_first_token: Histogram,
    /// Between one token and the next.
    pub inter_token_latency: Histogram,
    /// From submission to the end.
    pub e2e_request_latency: Histogram,
    /// `n` of requests.
    pub params_n: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            time_to_first_token: Histogram::new(&FIRST_TOKEN_SECONDS),
            inter_token_latency: Histogram::new(&TOKEN_SECONDS),
            e2e_request_latency: Histogram::new(&REQUEST_SECONDS),
            params_n: Histogram::new(&CHOICES),
        }
    }
}

/// Everything that a page shows.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Of the HTTP side.
    pub metrics: &'a Metrics,
    /// Of connections.
    pub http: &'a HttpMetrics,
    /// Of the engine.
    pub requests: &'a RequestMetrics,
    /// The engine now.
    pub stats: &'a EngineStats,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// Spans that were sent and that were lost, if any are sent.
    pub traces: Option<(u64, u64)>,
    /// The served name.
    pub model: &'a str,
    /// Unix seconds.
    pub now: u64,
}

/// All metrics of a server.
pub fn render(sources: Sources<'_>, format: Format) -> String {
    let labels = format!("engine=\"0\",model_name=\"{}\"", escaped(sources.model));
    let mut page = Exposition::new(format);
    scheduler(&mut page, sources, &labels);
    tokens(&mut page, sources.stats, &labels);
    infos(&mut page, sources, &labels);
    requests(&mut page, sources, &labels);
    latencies(&mut page, sources, &labels);
    if let Some(speculation) = &sources.stats.speculation {
        drafts(&mut page, speculation, &labels);
    }
    if let Some(counts) = &sources.stats.kv_events {
        kv_events(&mut page, *counts, &labels);
    }
    if let Some(counts) = sources.traces {
        traces(&mut page, counts);
    }
    sources.http.write(&mut page);
    process::write(&mut page);
    page.finish()
}

fn scheduler(page: &mut Exposition, sources: Sources<'_>, labels: &str) {
    let stats = sources.stats;
    let (running, waiting) = (stats.num_running as f64, stats.num_waiting as f64);
    let used = stats.kv_cache_usage;
    page.gauge(
        "vllm:num_requests_running",
        "Sequences that hold KV blocks",
        labels,
        running,
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Sequences that wait",
        labels,
        waiting,
    );
    let deferred = stats.num_deferred as f64;
    page.gauges(
        "vllm:num_requests_waiting_by_reason",
        "Sequences that wait for blocks (capacity) or for a slot of their adapter (deferred)",
        [("capacity", waiting - deferred), ("deferred", deferred)]
            .map(|(reason, num)| (format!("{labels},reason=\"{reason}\""), num)),
    );
    page.gauges(
        "vllm:engine_sleep_state",
        "Whether the engine is awake; this one never sleeps",
        [
            ("awake", 1.0),
            ("weights_offloaded", 0.0),
            ("discard_all", 0.0),
        ]
        .map(|(state, value)| (format!("{labels},sleep_state=\"{state}\""), value)),
    );
    page.gauge(
        "vllm:kv_cache_usage_perc",
        "Used part of the KV cache, 0-1",
        labels,
        used,
    );
    page.gauge(
        "vllm:gpu_cache_usage_perc",
        "The old name of kv_cache_usage_perc",
        labels,
        used,
    );
    page.counter(
        "vllm:num_preemptions",
        "Sequences recomputed for lack of blocks",
        labels,
        stats.num_preemptions as f64,
    );
}

fn tokens(page: &mut Exposition, stats: &EngineStats, labels: &str) {
    let (hits, queries) = (stats.prefix_hits as f64, stats.prefix_queries as f64);
    let prompt = stats.prompt_tokens as f64;
    for (name, help, value) in [
        (
            "prefix_cache_queries",
            "Prompt tokens looked up in the prefix cache",
            queries,
        ),
        (
            "prefix_cache_hits",
            "Prompt tokens found in the prefix cache",
            hits,
        ),
        (
            "gpu_prefix_cache_queries",
            "The old name of prefix_cache_queries",
            queries,
        ),
        (
            "gpu_prefix_cache_hits",
            "The old name of prefix_cache_hits",
            hits,
        ),
        (
            "external_prefix_cache_queries",
            "Prompt tokens looked up in another server's cache: none",
            0.0,
        ),
        (
            "external_prefix_cache_hits",
            "Prompt tokens found in another server's cache: none",
            0.0,
        ),
        ("prompt_tokens", "Prompt tokens", prompt),
        (
            "prompt_tokens_cached",
            "Prompt tokens that were not computed",
            hits,
        ),
        (
            "generation_tokens",
            "Generated tokens",
            stats.generation_tokens as f64,
        ),
    ] {
        page.counter(&format!("vllm:{name}"), help, labels, value);
    }
    let sources = [
        ("local_compute", (prompt - hits).max(0.0)),
        ("local_cache_hit", hits),
        ("external_kv_transfer", 0.0),
    ];
    page.counters(
        "vllm:prompt_tokens_by_source",
        "Prompt tokens by where their keys and values come from",
        sources.map(|(source, value)| (format!("{labels},source=\"{source}\""), value)),
    );
}

fn infos(page: &mut Exposition, sources: Sources<'_>, labels: &str) {
    let stats = sources.stats;
    let size = stats.num_blocks * stats.block_size;
    let concurrency = size as f64 / sources.max_model_len.max(1) as f64;
    let labels_of_cache = format!(
        "{labels},block_size=\"{}\",num_gpu_blocks=\"{}\",kv_cache_size_tokens=\"{size}\",\
         kv_cache_max_concurrency=\"{concurrency}\"",
        stats.block_size, stats.num_blocks
    );
    page.gauge(
        "vllm:cache_config_info",
        "Size of the KV cache",
        &labels_of_cache,
        1.0,
    );
    let names = |adapters: &[String]| escaped(&adapters.join(","));
    let labels_of_lora = format!(
        "max_lora=\"{}\",running_lora_adapters=\"{}\",waiting_lora_adapters=\"{}\"",
        stats.max_loras,
        names(&stats.running_adapters),
        names(&stats.waiting_adapters)
    );
    page.gauge(
        "vllm:lora_requests_info",
        "Adapters in use; the value is the time of the scrape",
        &labels_of_lora,
        sources.now as f64,
    );
}

fn requests(page: &mut Exposition, sources: Sources<'_>, labels: &str) {
    let requests = sources.requests;
    let ended = Ended::ALL.map(|how| {
        let labels = format!("{labels},finished_reason=\"{}\"", how.name());
        (labels, requests.num_ended(how) as f64)
    });
    page.counters(
        "vllm:request_success",
        "Sequences that have ended, by how",
        ended,
    );
    for (name, help, histogram) in [
        (
            "request_prompt_tokens",
            "Prompt tokens of a sequence",
            &requests.prompt_tokens,
        ),
        (
            "request_generation_tokens",
            "Generated tokens of a sequence",
            &requests.generation_tokens,
        ),
        (
            "request_max_num_generation_tokens",
            "Generated tokens of the longest choice; each choice counts",
            &requests.generation_tokens,
        ),
        (
            "request_prefill_kv_computed_tokens",
            "Prompt tokens of a sequence that were computed",
            &requests.computed_prompt_tokens,
        ),
        (
            "request_params_max_tokens",
            "Most tokens that a sequence may generate",
            &requests.max_tokens,
        ),
        (
            "request_params_n",
            "Choices of a request",
            &sources.metrics.params_n,
        ),
        (
            "request_num_preemptions",
            "Preemptions of a sequence",
            &requests.num_preemptions,
        ),
        (
            "iteration_tokens_total",
            "Tokens of a step",
            &requests.iteration_tokens,
        ),
    ] {
        page.histogram(&format!("vllm:{name}"), help, labels, histogram);
    }
}

/// What has become of events of the KV cache, only where they are published.
fn kv_events(page: &mut Exposition, counts: KvEventCounts, labels: &str) {
    for (name, help, value) in [
        ("batches", "Batches of KV cache events", counts.num_batches),
        (
            "batches_dropped",
            "Batches of KV cache events that a full queue had no room for",
            counts.num_dropped,
        ),
    ] {
        page.counter(&format!("kv_event_{name}"), help, labels, value as f64);
    }
}

/// What has become of spans, only where they are sent.
fn traces(page: &mut Exposition, (sent, lost): (u64, u64)) {
    for (name, help, value) in [
        ("sent", "Spans that a collector has taken", sent),
        ("lost", "Spans that were not sent", lost),
    ] {
        page.counter(&format!("trace_spans_{name}"), help, "", value as f64);
    }
}

/// What has come of drafts, only with speculative decoding.
fn drafts(page: &mut Exposition, stats: &SpeculationStats, labels: &str) {
    for (name, help, value) in [
        ("num_drafts", "Drafts", stats.num_drafts),
        (
            "num_draft_tokens",
            "Tokens of drafts",
            stats.num_draft_tokens,
        ),
        (
            "num_accepted_tokens",
            "Tokens of drafts that were right",
            stats.num_accepted_tokens,
        ),
    ] {
        page.counter(
            &format!("vllm:spec_decode_{name}"),
            help,
            labels,
            value as f64,
        );
    }
    let positions = stats.accepted_per_position.iter().enumerate();
    page.counters(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "Tokens of drafts that were right, by their place in the draft",
        positions
            .map(|(position, count)| (format!("{labels},position=\"{position}\""), *count as f64)),
    );
}

fn latencies(page: &mut Exposition, sources: Sources<'_>, labels: &str) {
    let (metrics, requests) = (sources.metrics, sources.requests);
    for (name, help, histogram) in [
        (
            "time_to_first_token",
            "Time to first token",
            &metrics.time_to_first_token,
        ),
        (
            "inter_token_latency",
            "Time between tokens",
            &metrics.inter_token_latency,
        ),
        (
            "time_per_output_token",
            "The old name of inter_token_latency_seconds",
            &metrics.inter_token_latency,
        ),
        (
            "request_time_per_output_token",
            "Mean time between the tokens of a sequence",
            &requests.time_per_output_token,
        ),
        (
            "e2e_request_latency",
            "Time of whole requests",
            &metrics.e2e_request_latency,
        ),
        (
            "request_queue_time",
            "Time before a sequence's first step",
            &requests.queue_time,
        ),
        (
            "request_inference_time",
            "Time from a sequence's first step to its end",
            &requests.inference_time,
        ),
        (
            "request_prefill_time",
            "Time from a sequence's first step to its first token",
            &requests.prefill_time,
        ),
        (
            "request_decode_time",
            "Time from a sequence's first token to its last",
            &requests.decode_time,
        ),
    ] {
        page.histogram(&format!("vllm:{name}_seconds"), help, labels, histogram);
    }
}
