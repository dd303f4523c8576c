//! `/metrics` in Prometheus' text format or in OpenMetrics, with the names that vLLM's routers scrape.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::engine::{EngineStats, SpeculationStats};

const SECONDS: [f64; 18] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    30.0, 60.0,
];

/// Latencies seen by the HTTP side.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From submission to the first token.
    pub time_to_first_token: Histogram,
    /// Between one token and the next.
    pub inter_token_latency: Histogram,
    /// From submission to the end.
    pub e2e_request_latency: Histogram,
}

/// Durations counted in fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram(Mutex<Counts>);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    buckets: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    /// Adds one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = SECONDS.iter().position(|&limit| seconds <= limit) {
            counts.buckets[bucket] += 1;
        }
        counts.count += 1;
        counts.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str, labels: &str) {
        let Counts {
            buckets,
            count,
            sum,
        } = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        header(out, name, help, "histogram");
        let mut below = 0;
        for (limit, in_bucket) in SECONDS.iter().zip(buckets) {
            below += in_bucket;
            line(
                out,
                &format!("{name}_bucket"),
                &format!("{labels},le=\"{limit}\""),
                below as f64,
            );
        }
        line(
            out,
            &format!("{name}_bucket"),
            &format!("{labels},le=\"+Inf\""),
            count as f64,
        );
        line(out, &format!("{name}_sum"), labels, sum);
        line(out, &format!("{name}_count"), labels, count as f64);
    }
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a client asks for with `Accept`.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics of a server: what the HTTP side and the engine have counted, under the model's name. `now` is in Unix seconds.
pub fn render(
    metrics: &Metrics,
    stats: &EngineStats,
    model: &str,
    now: u64,
    format: Format,
) -> String {
    let labels = format!("model_name=\"{}\"", escaped(model));
    let mut out = String::new();
    gauges_and_counters(&mut out, stats, &labels, format);
    if let Some(speculation) = &stats.speculation {
        speculation_counters(&mut out, speculation, &labels, format);
    }

    let labels_of_cache = format!(
        "{labels},block_size=\"{}\",num_gpu_blocks=\"{}\"",
        stats.block_size, stats.num_blocks
    );
    header(
        &mut out,
        "vllm:cache_config_info",
        "Size of the KV cache",
        "gauge",
    );
    line(&mut out, "vllm:cache_config_info", &labels_of_cache, 1.0);

    let names = |adapters: &[String]| escaped(&adapters.join(","));
    let labels_of_lora = format!(
        "max_lora=\"{}\",running_lora_adapters=\"{}\",waiting_lora_adapters=\"{}\"",
        stats.max_loras,
        names(&stats.running_adapters),
        names(&stats.waiting_adapters)
    );
    header(
        &mut out,
        "vllm:lora_requests_info",
        "Adapters in use; the value is the time of the scrape",
        "gauge",
    );
    line(
        &mut out,
        "vllm:lora_requests_info",
        &labels_of_lora,
        now as f64,
    );

    let Metrics {
        time_to_first_token,
        inter_token_latency,
        e2e_request_latency,
    } = metrics;
    time_to_first_token.write(
        &mut out,
        "vllm:time_to_first_token_seconds",
        "Time to first token",
        &labels,
    );
    inter_token_latency.write(
        &mut out,
        "vllm:inter_token_latency_seconds",
        "Time between tokens",
        &labels,
    );
    e2e_request_latency.write(
        &mut out,
        "vllm:e2e_request_latency_seconds",
        "Time of whole requests",
        &labels,
    );
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn gauges_and_counters(out: &mut String, stats: &EngineStats, labels: &str, format: Format) {
    let used = stats.num_blocks.saturating_sub(stats.num_free_blocks) as f64
        / stats.num_blocks.max(1) as f64;
    let (hits, queries) = (stats.prefix_hits as f64, stats.prefix_queries as f64);
    let metrics: [(&str, &str, &str, f64); 11] = [
        (
            "num_requests_running",
            "gauge",
            "Sequences that hold KV blocks",
            stats.num_running as f64,
        ),
        (
            "num_requests_waiting",
            "gauge",
            "Sequences that wait",
            stats.num_waiting as f64,
        ),
        (
            "kv_cache_usage_perc",
            "gauge",
            "Used part of the KV cache, 0-1",
            used,
        ),
        (
            "gpu_cache_usage_perc",
            "gauge",
            "The old name of kv_cache_usage_perc",
            used,
        ),
        (
            "prefix_cache_queries_total",
            "counter",
            "Prompt tokens looked up in the prefix cache",
            queries,
        ),
        (
            "prefix_cache_hits_total",
            "counter",
            "Prompt tokens found in the prefix cache",
            hits,
        ),
        (
            "gpu_prefix_cache_queries_total",
            "counter",
            "The old name of prefix_cache_queries_total",
            queries,
        ),
        (
            "gpu_prefix_cache_hits_total",
            "counter",
            "The old name of prefix_cache_hits_total",
            hits,
        ),
        (
            "prompt_tokens_total",
            "counter",
            "Prompt tokens",
            stats.prompt_tokens as f64,
        ),
        (
            "generation_tokens_total",
            "counter",
            "Generated tokens",
            stats.generation_tokens as f64,
        ),
        (
            "num_preemptions_total",
            "counter",
            "Sequences recomputed for lack of blocks",
            stats.num_preemptions as f64,
        ),
    ];
    for (name, kind, help, value) in metrics {
        let name = format!("vllm:{name}");
        // OpenMetrics names the family, its samples add the ending.
        let family = match format {
            Format::Prometheus => name.as_str(),
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(&name),
        };
        header(out, family, help, kind);
        line(out, &name, labels, value);
    }
}

/// What has come of drafts, only with speculative decoding.
fn speculation_counters(out: &mut String, stats: &SpeculationStats, labels: &str, format: Format) {
    let mut counter = |name: &str, help: &str, samples: Vec<(String, u64)>| {
        let family = match format {
            Format::Prometheus => format!("vllm:{name}_total"),
            Format::OpenMetrics => format!("vllm:{name}"),
        };
        header(out, &family, help, "counter");
        for (labels, value) in samples {
            line(out, &format!("vllm:{name}_total"), &labels, value as f64);
        }
    };
    let one = |value: u64| vec![(labels.to_owned(), value)];
    let positions = (0..).zip(&stats.accepted_per_position);
    let positions =
        positions.map(|(position, count)| (format!("{labels},position=\"{position}\""), *count));
    counter("spec_decode_num_drafts", "Drafts", one(stats.num_drafts));
    counter(
        "spec_decode_num_draft_tokens",
        "Tokens of drafts",
        one(stats.num_draft_tokens),
    );
    counter(
        "spec_decode_num_accepted_tokens",
        "Tokens of drafts that were right",
        one(stats.num_accepted_tokens),
    );
    counter(
        "spec_decode_num_accepted_tokens_per_pos",
        "Tokens of drafts that were right, by their place in the draft",
        positions.collect(),
    );
}

fn header(out: &mut String, name: &str, help: &str, kind: &str) {
    // Writing to a String cannot fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

/// A label value: backslash, quote and newline escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
