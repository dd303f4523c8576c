//! `/metrics`, read as a scraper reads it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A family of the text format.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    /// Name, labels, value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads the text format, and refuses what its grammar does not have.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split_once(' ').unwrap().0.to_owned();
            assert!(!families.contains_key(&current), "twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "{line}");
            families.entry(current.clone()).or_default().kind = kind.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
                None => (series, ""),
            };
            let labels = labels.split_terminator("\",").map(|label| {
                let (key, value) = label.split_once("=\"").unwrap();
                (key.to_owned(), value.trim_end_matches('"').to_owned())
            });
            let family = families.get_mut(&current).unwrap();
            let suffixes: &[&str] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                "summary" => &["_sum", "_count"],
                _ => &[""],
            };
            let rest = name
                .strip_prefix(&current)
                .unwrap_or_else(|| panic!("{line}"));
            assert!(suffixes.contains(&rest), "{line}");
            let sample = (rest.to_owned(), labels.collect(), value.parse().unwrap());
            family.samples.push(sample);
        }
    }
    families
}

/// Every histogram counts up to its count, bucket by bucket.
fn check_histogram(name: &str, family: &Family) {
    let mut series: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for (suffix, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        let labels: Vec<(String, String)> = labels.into_iter().collect();
        match suffix.as_str() {
            "_bucket" => {
                let bound = bound.unwrap();
                let bound = bound.replace("+Inf", "inf").parse().unwrap();
                series.entry(labels).or_default().push((bound, *value));
            }
            "_count" => {
                counts.insert(labels, *value);
            }
            _ => {}
        }
    }
    for (labels, buckets) in series {
        assert!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{name}: {buckets:?}"
        );
        let (bound, count) = buckets.last().unwrap();
        assert!(bound.is_infinite(), "{name}");
        assert_eq!(*count, counts[&labels], "{name}");
    }
}

#[test]
fn the_page_is_what_a_scraper_of_vllm_reads() {
    let server = TestServer::start(|request| match request.prompt.len() {
        3 => Play::Fails(vec![65], SequenceError::Aborted),
        _ => says("abc"),
    });
    server.chat(json!({ "n": 2 }));
    server.complete(json!({ "prompt": "bad" }));
    server.get("/nowhere");
    server.raw("INVENTED", "/v1/models", &[], "");
    let answer = server.get("/metrics");
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let families = families(&answer.text);
    let common = ["engine", "model_name"];
    let with = |more: &[&'static str]| [&common[..], more].concat();
    let expected: &[(&str, &str, Vec<&str>)] = &[
        ("num_requests_running", "gauge", with(&[])),
        ("num_requests_waiting", "gauge", with(&[])),
        ("num_requests_waiting_by_reason", "gauge", with(&["reason"])),
        ("engine_sleep_state", "gauge", with(&["sleep_state"])),
        ("kv_cache_usage_perc", "gauge", with(&[])),
        ("gpu_cache_usage_perc", "gauge", with(&[])),
        ("prefix_cache_queries_total", "counter", with(&[])),
        ("prefix_cache_hits_total", "counter", with(&[])),
        ("gpu_prefix_cache_queries_total", "counter", with(&[])),
        ("gpu_prefix_cache_hits_total", "counter", with(&[])),
        ("external_prefix_cache_queries_total", "counter", with(&[])),
        ("external_prefix_cache_hits_total", "counter", with(&[])),
        ("num_preemptions_total", "counter", with(&[])),
        ("prompt_tokens_total", "counter", with(&[])),
        ("prompt_tokens_cached_total", "counter", with(&[])),
        (
            "prompt_tokens_by_source_total",
            "counter",
            with(&["source"]),
        ),
        ("generation_tokens_total", "counter", with(&[])),
        (
            "request_success_total",
            "counter",
            with(&["finished_reason"]),
        ),
        (
            "cache_config_info",
            "gauge",
            with(&[
                "block_size",
                "kv_cache_max_concurrency",
                "kv_cache_size_tokens",
                "num_gpu_blocks",
            ]),
        ),
        (
            "lora_requests_info",
            "gauge",
            vec!["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        ),
    ];
    for (name, kind, labels) in expected {
        let family = &families[&format!("vllm:{name}")];
        assert_eq!(family.kind, *kind, "{name}");
        let labels: BTreeSet<&str> = labels.iter().copied().collect();
        for (_, found, _) in &family.samples {
            let found: BTreeSet<&str> = found.keys().map(String::as_str).collect();
            assert_eq!(found, labels, "{name}");
        }
        assert!(!family.samples.is_empty(), "{name}");
    }
    for name in [
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "time_per_output_token_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_max_num_generation_tokens",
        "request_prefill_kv_computed_tokens",
        "request_params_n",
        "request_params_max_tokens",
        "request_num_preemptions",
        "iteration_tokens_total",
    ] {
        assert_eq!(
            families[&format!("vllm:{name}")].kind,
            "histogram",
            "{name}"
        );
    }
    let histograms = families
        .iter()
        .filter(|(_, family)| family.kind == "histogram");
    histograms.for_each(|(name, family)| check_histogram(name, family));

    let value = |name: &str, suffix: &str, wanted: &[(&str, &str)]| {
        let samples = families[name].samples.iter();
        let found = samples.filter(|(found, labels, _)| {
            let mut wanted = wanted.iter();
            found == suffix
                && wanted.all(|(key, value)| labels.get(*key).is_some_and(|v| v == value))
        });
        let values: Vec<f64> = found.map(|(_, _, value)| *value).collect();
        assert_eq!(values.len(), 1, "{name}{suffix} {wanted:?}");
        values[0]
    };
    assert_eq!(
        value("vllm:kv_cache_usage_perc", "", &[("model_name", "base")]),
        0.25
    );
    for (state, expected) in [
        ("awake", 1.0),
        ("weights_offloaded", 0.0),
        ("discard_all", 0.0),
    ] {
        let labels = [("engine", "0"), ("sleep_state", state)];
        assert_eq!(value("vllm:engine_sleep_state", "", &labels), expected);
    }
    assert_eq!(
        value("vllm:time_to_first_token_seconds", "_count", &[]),
        3.0
    );
    assert_eq!(
        value("vllm:inter_token_latency_seconds", "_count", &[]),
        6.0
    );
    assert_eq!(value("vllm:request_params_n", "_sum", &[]), 3.0);
    let info = [
        ("block_size", "16"),
        ("num_gpu_blocks", "8"),
        ("kv_cache_size_tokens", "128"),
    ];
    assert_eq!(value("vllm:cache_config_info", "", &info), 1.0);
    let chat = [
        ("handler", "/v1/chat/completions"),
        ("method", "POST"),
        ("status", "2xx"),
    ];
    assert_eq!(value("http_requests_total", "", &chat), 1.0);
    assert_eq!(
        value(
            "http_requests_total",
            "",
            &[("handler", "none"), ("status", "4xx")]
        ),
        1.0
    );
    let other = [("method", "other"), ("status", "4xx")];
    assert_eq!(value("http_requests_total", "", &other), 1.0);
    assert_eq!(
        value("http_request_size_bytes", "_count", &[("handler", "none")]),
        1.0
    );
    assert_eq!(
        value("http_request_duration_highr_seconds", "_count", &[]),
        4.0
    );
    let chat = [("handler", "/v1/chat/completions")];
    assert_eq!(value("http_request_duration_seconds", "_count", &chat), 1.0);
    assert!(value("http_response_size_bytes", "_sum", &chat) > 100.0);
    assert!(value("process_resident_memory_bytes", "", &[]) > 1e6);
    assert!(value("process_start_time_seconds", "", &[]) > 1.6e9);
    assert!(!answer.text.contains("handler=\"/metrics\"") && !answer.text.contains("INVENTED"));
}

/// Series that programs around vLLM read, each without `vllm:`.
const READ: [(&str, &[&str]); 4] = [
    (
        "the dashboards in vLLM's examples",
        &[
            "cache_config_info",
            "e2e_request_latency_seconds_bucket",
            "e2e_request_latency_seconds_count",
            "e2e_request_latency_seconds_sum",
            "engine_sleep_state",
            "external_prefix_cache_hits_total",
            "external_prefix_cache_queries_total",
            "generation_tokens_total",
            "inter_token_latency_seconds_bucket",
            "inter_token_latency_seconds_count",
            "inter_token_latency_seconds_sum",
            "iteration_tokens_total_bucket",
            "kv_cache_usage_perc",
            "num_preemptions_total",
            "num_requests_running",
            "num_requests_waiting",
            "num_requests_waiting_by_reason",
            "prefix_cache_hits_total",
            "prefix_cache_queries_total",
            "prompt_tokens_by_source_total",
            "prompt_tokens_cached_total",
            "prompt_tokens_total",
            "request_decode_time_seconds_sum",
            "request_generation_tokens_bucket",
            "request_inference_time_seconds_sum",
            "request_max_num_generation_tokens_bucket",
            "request_params_max_tokens_bucket",
            "request_params_n_bucket",
            "request_prefill_kv_computed_tokens_bucket",
            "request_prefill_time_seconds_sum",
            "request_prompt_tokens_bucket",
            "request_queue_time_seconds_sum",
            "request_success_total",
            "request_time_per_output_token_seconds_bucket",
            "time_to_first_token_seconds_bucket",
            "time_to_first_token_seconds_count",
            "time_to_first_token_seconds_sum",
        ],
    ),
    (
        "production-stack's router and dashboard",
        &[
            "e2e_request_latency_seconds_bucket",
            "generation_tokens_total",
            "gpu_cache_usage_perc",
            "gpu_prefix_cache_hits_total",
            "gpu_prefix_cache_queries_total",
            "num_requests_running",
            "num_requests_waiting",
            "prompt_tokens_total",
            "request_decode_time_seconds_sum",
            "request_generation_tokens_bucket",
            "request_max_num_generation_tokens_sum",
            "request_prefill_time_seconds_sum",
            "request_prompt_tokens_bucket",
            "request_queue_time_seconds_sum",
            "request_success_total",
            "request_time_per_output_token_seconds_bucket",
            "time_per_output_token_seconds_bucket",
            "time_to_first_token_seconds_bucket",
        ],
    ),
    (
        "llm-d's scheduler",
        &[
            "cache_config_info",
            "e2e_request_latency_seconds_count",
            "kv_cache_usage_perc",
            "lora_requests_info",
            "num_requests_running",
            "num_requests_waiting",
        ],
    ),
    (
        "the picker of the Gateway API inference extension",
        &[
            "cache_config_info",
            "kv_cache_usage_perc",
            "lora_requests_info",
            "num_requests_running",
            "num_requests_waiting",
        ],
    ),
];

#[test]
fn every_series_that_others_read_exists() {
    let server = TestServer::start(|_| says("x"));
    let page = server.get("/metrics").text;
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let known: BTreeSet<&str> = lines
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for (reader, names) in READ {
        for name in names {
            assert!(
                known.contains(format!("vllm:{name}").as_str()),
                "{reader}: {name}"
            );
        }
    }
}
