//! The result of `bench serve`: vLLM's table and the keys of its JSON file.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::dataset::sample::Sample;
use super::drafts::DraftCounts;
use super::goodput::Goal;
use super::metrics::{mean, percentile, std_dev};
use super::request::Outcome;
use super::serve_args::{MetricName, ServeArgs};
use super::serve_values::value_name;
use super::table::Table;

/// A run that is over.
pub(super) struct Run<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) model_id: &'a str,
    pub(super) tokenizer_id: &'a str,
    pub(super) date: String,
    pub(super) samples: &'a [Arc<Sample>],
    pub(super) outcomes: &'a [Outcome],
    /// In seconds.
    pub(super) duration: f64,
    /// What became of the server's drafts, if it had some.
    pub(super) drafts: Option<DraftCounts>,
    /// When the rate of a ramp changed.
    pub(super) rate_changes: Vec<Value>,
}

/// Times in seconds, of the requests that have an answer.
struct Times {
    ttft: Vec<f64>,
    tpot: Vec<f64>,
    itl: Vec<f64>,
    e2el: Vec<f64>,
    queue: Vec<f64>,
    e2el_and_queue: Vec<f64>,
}

/// Peaks: of tokens by whole seconds from the first request, of requests at any time.
struct Peaks {
    tokens_per_second: f64,
    concurrent_requests: usize,
}

/// Counts of a run, and rates per second.
struct Totals {
    completed: usize,
    failed: usize,
    input: usize,
    output: usize,
    requests_per_second: f64,
    goodput: Option<f64>,
    output_per_second: f64,
    tokens_per_second: f64,
}

/// Name in the table, and the heading there.
const METRICS: [(MetricName, &str, &str); 6] = [
    (MetricName::Ttft, "TTFT", "Time to First Token"),
    (
        MetricName::Tpot,
        "TPOT",
        "Time per Output Token (excl. 1st token)",
    ),
    (MetricName::Itl, "ITL", "Inter-token Latency"),
    (MetricName::E2el, "E2EL", "End-to-end Latency"),
    (
        MetricName::ClientQueueTime,
        "Client Queue Time",
        "Client-side Queueing",
    ),
    (
        MetricName::E2elIncludingClientQueue,
        "E2EL incl. Client Queue",
        "Queue-inclusive End-to-end Latency",
    ),
];

/// The table, and the keys of the file.
pub(super) fn report(run: &Run<'_>) -> (String, Map<String, Value>) {
    let args = run.args;
    let good: Vec<&Outcome> = run
        .outcomes
        .iter()
        .filter(|outcome| outcome.is_success())
        .collect();
    let (totals, peaks) = (Totals::of(run, &good), Peaks::of(&good));
    let (mut table, mut result) = (Table::default(), head(run));
    totals.show(run, &peaks, &mut table);
    let generates = args.backend.generates();
    totals.add_to(run.duration, generates, &mut result);
    if args.save_detailed {
        let pairs = run.samples.iter().zip(run.outcomes);
        result.insert("input_lens".to_owned(), pairs.map(input_len).collect());
    }
    add_details(run, &mut result);
    let mut add = |key: &str, value: Value| result.insert(key.to_owned(), value);
    if generates {
        add("max_output_tokens_per_s", peaks.tokens_per_second.into());
    }
    add("max_concurrent_requests", peaks.concurrent_requests.into());
    if generates {
        // Seconds of audio per second: vLLM writes the key of every run.
        add("rtfx", 0.0_f64.into());
    }
    if !run.rate_changes.is_empty() {
        add("rps_change_events", run.rate_changes.clone().into());
    }
    if let Some(drafts) = &run.drafts {
        drafts.add_to(&mut result);
    }
    let times = Times::of(&good);
    for (metric, name, heading) in METRICS {
        if args.percentile_metrics().contains(&metric) {
            add_metric(
                &mut table,
                times.of_metric(metric),
                (&value_name(metric), name, heading),
                &args.metric_percentiles,
                &mut result,
            );
        }
    }
    if let Some(drafts) = &run.drafts {
        drafts.show(&mut table);
    }
    table.line(&"=".repeat(50));
    (table.text().to_owned(), result)
}

/// Tokens of the prompt: as many as the server counts, if it does.
fn input_len((sample, outcome): (&Arc<Sample>, &Outcome)) -> usize {
    outcome.prompt_len.unwrap_or(sample.prompt_len)
}

impl Totals {
    fn of(run: &Run<'_>, good: &[&Outcome]) -> Self {
        let pairs = run.samples.iter().zip(run.outcomes);
        let answered = pairs.filter(|(_, outcome)| outcome.is_success());
        let input: usize = answered.map(input_len).sum();
        let output: usize = good.iter().map(|outcome| outcome.output_tokens).sum();
        let per_second = |number: usize| number as f64 / run.duration;
        let goals = &run.args.goodput;
        let goodput = (!goals.is_empty()).then(|| per_second(num_within_goals(good, goals)));
        Self {
            completed: good.len(),
            failed: run.outcomes.len() - good.len(),
            input,
            output,
            requests_per_second: per_second(good.len()),
            goodput,
            output_per_second: per_second(output),
            tokens_per_second: per_second(input + output),
        }
    }

    fn show(&self, run: &Run<'_>, peaks: &Peaks, table: &mut Table) {
        let args = run.args;
        table.heading(" Serving Benchmark Result ", '=');
        table.count("Successful requests:", self.completed);
        table.count("Failed requests:", self.failed);
        if let Some(num) = args.max_concurrency {
            table.count("Maximum request concurrency:", num);
        }
        if args.request_rate.is_finite() {
            table.number("Request rate configured (RPS):", args.request_rate);
        }
        table.number("Benchmark duration (s):", run.duration);
        table.count("Total input tokens:", self.input);
        let generates = args.backend.generates();
        if generates {
            table.count("Total generated tokens:", self.output);
        }
        table.number("Request throughput (req/s):", self.requests_per_second);
        if !generates {
            table.number("Input throughput (inputs/s):", self.requests_per_second);
        }
        if let Some(goodput) = self.goodput {
            table.number("Request goodput (req/s):", goodput);
        }
        let (output, all) = (self.output_per_second, self.tokens_per_second);
        let (tokens, requests) = (peaks.tokens_per_second, peaks.concurrent_requests);
        if generates {
            table.number("Output token throughput (tok/s):", output);
            table.number("Peak output token throughput (tok/s):", tokens);
        }
        table.number("Peak concurrent requests:", requests as f64);
        table.number("Total token throughput (tok/s):", all);
    }

    fn add_to(&self, duration: f64, generates: bool, result: &mut Map<String, Value>) {
        let mut add = |key: &str, value: Value| result.insert(key.to_owned(), value);
        add("duration", duration.into());
        add("completed", self.completed.into());
        add("failed", self.failed.into());
        add("total_input_tokens", self.input.into());
        if generates {
            add("total_output_tokens", self.output.into());
        }
        if !generates {
            // Each request has one text.
            add("total_input_sequences", self.completed.into());
            add("input_sequence_throughput", self.requests_per_second.into());
        }
        add("request_throughput", self.requests_per_second.into());
        add("request_goodput", self.goodput.into());
        if generates {
            add("output_throughput", self.output_per_second.into());
        }
        add("total_token_throughput", self.tokens_per_second.into());
    }
}

/// Keys with one value per request: as vLLM does, times of whole requests always, the others with `--save-detailed`.
fn add_details(run: &Run<'_>, result: &mut Map<String, Value>) {
    let (always, detailed) = (true, run.args.save_detailed);
    let of_tokens = detailed && run.args.backend.generates();
    let first = run.outcomes.iter().map(|outcome| outcome.start).min();
    let mut add = |is_wanted: bool, key: &str, field: &dyn Fn(&Outcome) -> Value| {
        if is_wanted {
            let values = run.outcomes.iter().map(field);
            result.insert(key.to_owned(), values.collect());
        }
    };
    add(of_tokens, "output_lens", &|o| o.output_tokens.into());
    add(of_tokens, "ttfts", &|o| o.ttft.into());
    add(of_tokens, "itls", &|o| o.itl.clone().into());
    add(always, "latencies", &|o| o.latency.into());
    add(of_tokens, "start_times", &|o| {
        first.map(|first| (o.start - first).as_secs_f64()).into()
    });
    add(always, "queue_times", &|o| o.queue.into());
    add(of_tokens, "generated_texts", &|o| o.text.clone().into());
    add(detailed, "errors", &|o| {
        o.error.clone().unwrap_or_default().into()
    });
}

/// Keys that say what was run.
fn head(run: &Run<'_>) -> Map<String, Value> {
    let args = run.args;
    let mut head = Map::new();
    let mut add = |key: &str, value: Value| {
        head.insert(key.to_owned(), value);
    };
    add("date", run.date.as_str().into());
    for key in ["endpoint_type", "backend"] {
        add(key, value_name(args.backend).into());
    }
    add("label", args.label.clone().into());
    add("model_id", run.model_id.into());
    add("tokenizer_id", run.tokenizer_id.into());
    add("num_prompts", args.dataset.num_prompts.into());
    for (key, value) in &args.metadata {
        add(key, value.as_str().into());
    }
    add(
        "request_rate",
        match args.request_rate.is_finite() {
            true => args.request_rate.into(),
            false => "inf".into(),
        },
    );
    let burstiness = args.burstiness();
    add(
        "burstiness",
        match burstiness.is_finite() {
            true => burstiness.into(),
            false => "inf".into(),
        },
    );
    add("max_concurrency", args.max_concurrency.into());
    if let Some(strategy) = args.ramp_up_strategy {
        add("ramp_up_strategy", value_name(strategy).into());
        add("ramp_up_start_rps", args.ramp_up_start_rps.into());
        add("ramp_up_end_rps", args.ramp_up_end_rps.into());
    }
    head
}

/// vLLM's name of a result's file.
pub(super) fn file_name(args: &ServeArgs, model: &str, date: &str) -> String {
    let label = args.label.clone();
    let label = label.unwrap_or_else(|| value_name(args.backend));
    let traffic = match (
        args.ramp_up_strategy,
        args.ramp_up_start_rps,
        args.ramp_up_end_rps,
    ) {
        (Some(strategy), Some(from), Some(to)) => {
            format!("ramp-up-{}-{from}qps-{to}qps", value_name(strategy))
        }
        _ => format!("{}qps", args.request_rate),
    };
    let concurrency = args
        .max_concurrency
        .map(|num| format!("-concurrency{num}"))
        .unwrap_or_default();
    let model = model
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    format!("{label}-{traffic}{concurrency}-{model}-{date}.json")
}

impl Times {
    fn of(outcomes: &[&Outcome]) -> Self {
        let ttft = outcomes.iter().map(|outcome| outcome.ttft).collect();
        let e2el = outcomes.iter().map(|outcome| outcome.latency).collect();
        let queue = outcomes.iter().map(|outcome| outcome.queue).collect();
        let e2el_and_queue = outcomes
            .iter()
            .map(|outcome| outcome.latency + outcome.queue);
        let itl = outcomes
            .iter()
            .flat_map(|outcome| outcome.itl.iter().copied())
            .collect();
        let tpot = outcomes
            .iter()
            .filter_map(|outcome| tpot(outcome))
            .collect();
        Self {
            ttft,
            tpot,
            itl,
            e2el,
            queue,
            e2el_and_queue: e2el_and_queue.collect(),
        }
    }

    fn of_metric(&self, metric: MetricName) -> &[f64] {
        match metric {
            MetricName::Ttft => &self.ttft,
            MetricName::Tpot => &self.tpot,
            MetricName::Itl => &self.itl,
            MetricName::E2el => &self.e2el,
            MetricName::ClientQueueTime => &self.queue,
            MetricName::E2elIncludingClientQueue => &self.e2el_and_queue,
        }
    }
}

/// The mean time of a further token, if there is any.
fn tpot(outcome: &Outcome) -> Option<f64> {
    let num = outcome
        .output_tokens
        .checked_sub(1)
        .filter(|&num| num > 0)?;
    Some((outcome.latency - outcome.ttft) / num as f64)
}

fn num_within_goals(outcomes: &[&Outcome], goals: &[(Goal, f64)]) -> usize {
    let reaches = |outcome: &Outcome, (goal, milliseconds): &(Goal, f64)| {
        let seconds = match goal {
            Goal::Ttft => outcome.ttft,
            Goal::Tpot => tpot(outcome).unwrap_or(0.0),
            Goal::E2el => outcome.latency,
        };
        seconds * 1e3 <= *milliseconds
    };
    let good = outcomes
        .iter()
        .filter(|outcome| goals.iter().all(|goal| reaches(outcome, goal)));
    good.count()
}

impl Peaks {
    fn of(outcomes: &[&Outcome]) -> Self {
        let Some(first) = outcomes.iter().map(|outcome| outcome.start).min() else {
            return Self {
                tokens_per_second: 0.0,
                concurrent_requests: 0,
            };
        };
        let start = |outcome: &Outcome| (outcome.start - first).as_secs_f64();
        let ends = outcomes
            .iter()
            .map(|outcome| start(outcome) + outcome.latency);
        let num_seconds = ends.fold(0.0, f64::max).ceil() as usize + 1;
        let mut tokens = vec![0_usize; num_seconds];
        for outcome in outcomes {
            let mut now = start(outcome) + outcome.ttft;
            for since in std::iter::once(0.0).chain(outcome.itl.iter().copied()) {
                now += since;
                tokens[(now as usize).min(num_seconds - 1)] += 1;
            }
        }
        let spans = outcomes.iter().map(|outcome| {
            let start = start(outcome);
            (start, start + outcome.latency)
        });
        Self {
            tokens_per_second: tokens.into_iter().max().unwrap_or(0) as f64,
            concurrent_requests: most_at_once(spans),
        }
    }
}

/// How many of these spans of time have a moment in common, at most. One that ends when another begins has none with it. So
/// does vLLM's `bench serve` as of 009e6d4 (September 2026 or later); up to d86257e, of 12 September, it counted whole seconds.
fn most_at_once(spans: impl Iterator<Item = (f64, f64)>) -> usize {
    let mut changes: Vec<(f64, i32)> = spans.flat_map(|(from, to)| [(from, 1), (to, -1)]).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let running = changes.iter().scan(0, |running, (_, change)| {
        *running += change;
        Some(*running)
    });
    running.max().map_or(0, |most| most.max(0) as usize)
}

/// The statistics of a metric, in milliseconds, in the table and in the result.
fn add_metric(
    table: &mut Table,
    seconds: &[f64],
    (key, name, heading): (&str, &str, &str),
    percentiles: &[f64],
    result: &mut Map<String, Value>,
) {
    let values: Vec<f64> = seconds.iter().map(|seconds| seconds * 1e3).collect();
    table.heading(heading, '-');
    let (mean, median) = (mean(&values), percentile(&values, 50.0));
    table.number(&format!("Mean {name} (ms):"), mean);
    table.number(&format!("Median {name} (ms):"), median);
    result.insert(format!("mean_{key}_ms"), mean.into());
    result.insert(format!("median_{key}_ms"), median.into());
    result.insert(format!("std_{key}_ms"), std_dev(&values).into());
    for percent in percentiles {
        let value = percentile(&values, *percent);
        table.number(&format!("P{percent} {name} (ms):"), value);
        result.insert(format!("p{percent}_{key}_ms"), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use clap::Parser as _;

    use super::*;

    /// An outcome that begins after `start` seconds; the first of `times` is the one of the first token.
    fn outcome(begin: Instant, start: f64, times: &[f64]) -> Outcome {
        Outcome {
            start: begin + Duration::from_secs_f64(start),
            queue: 0.25,
            ttft: times[0],
            itl: times[1..].to_vec(),
            latency: times.iter().sum(),
            prompt_len: None,
            output_tokens: times.len(),
            text: "text".to_owned(),
            error: None,
            is_early: false,
        }
    }

    #[test]
    fn every_number_is_that_of_the_outcomes() {
        let begin = Instant::now();
        let outcomes = [
            // Tokens at 0.5, 1.5 and 3.5 s.
            outcome(begin, 0.0, &[0.5, 1.0, 2.0]),
            Outcome {
                error: Some("broken".to_owned()),
                prompt_len: Some(1000),
                ..outcome(begin, 0.25, &[0.01, 0.01])
            },
            Outcome {
                prompt_len: Some(7),
                // Tokens at 1.2 and 1.7 s.
                ..outcome(begin, 1.0, &[0.2, 0.5])
            },
        ];
        let sample = |prompt_len| {
            let prompt = "x".to_owned();
            let output_len = 3;
            Arc::new(Sample {
                prompt,
                prompt_len,
                output_len,
            })
        };
        let samples = [sample(10), sample(20), sample(30)];
        let flags = "serve --save-result --save-detailed --request-rate 2 --percentile-metrics ttft,tpot,itl,e2el,client_queue_time,e2el_including_client_queue \
                     --max-concurrency 2 --metric-percentiles 50 --goodput ttft:400 e2el:700.01 --num-prompts 3";
        let args = ServeArgs::parse_from(flags.split_whitespace());
        let run = Run {
            args: &args,
            model_id: "m",
            tokenizer_id: "t",
            date: "d".to_owned(),
            samples: &samples,
            outcomes: &outcomes,
            duration: 4.0,
            drafts: None,
            rate_changes: Vec::new(),
        };
        let (text, result) = report(&run);
        let expected: &[(&str, f64)] = &[
            ("duration", 4.0),
            ("completed", 2.0),
            ("failed", 1.0),
            ("total_input_tokens", 17.0),
            ("total_output_tokens", 5.0),
            ("request_throughput", 0.5),
            // The second answer alone is in time.
            ("request_goodput", 0.25),
            ("output_throughput", 1.25),
            ("total_token_throughput", 5.5),
            // In the second second: 1.2, 1.5 and 1.7.
            ("max_output_tokens_per_s", 3.0),
            ("max_concurrent_requests", 2.0),
            ("mean_ttft_ms", 350.0),
            ("median_ttft_ms", 350.0),
            ("std_ttft_ms", 150.0),
            // (3.5 - 0.5) / 2, and 0.5.
            ("mean_tpot_ms", 1000.0),
            ("std_tpot_ms", 500.0),
            // 1, 2 and 0.5.
            ("mean_itl_ms", 3500.0 / 3.0),
            ("median_itl_ms", 1000.0),
            ("p50_itl_ms", 1000.0),
            ("mean_e2el_ms", 2100.0),
            ("std_e2el_ms", 1400.0),
            ("mean_client_queue_time_ms", 250.0),
            ("mean_e2el_including_client_queue_ms", 2350.0),
            ("rtfx", 0.0),
        ];
        for (key, expected) in expected {
            let found = result[*key].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-6, "{key}: {found}");
        }
        assert_eq!(result["input_lens"], Value::from(vec![10, 1000, 7]));
        assert_eq!(result["output_lens"], Value::from(vec![3, 2, 2]));
        assert_eq!(result["errors"], Value::from(vec!["", "broken", ""]));
        assert_eq!(result["start_times"], Value::from(vec![0.0, 0.25, 1.0]));
        assert_eq!(result["queue_times"], Value::from(vec![0.25; 3]));
        assert_eq!(result["latencies"][0], 3.5);
        for row in [
            "Successful requests: 2",
            "Failed requests: 1",
            "Request rate configured (RPS): 2.00",
            "Benchmark duration (s): 4.00",
            "Total input tokens: 17",
            "Total generated tokens: 5",
            "Request throughput (req/s): 0.50",
            "Request goodput (req/s): 0.25",
            "Output token throughput (tok/s): 1.25",
            "Peak output token throughput (tok/s): 3.00",
            "Peak concurrent requests: 2.00",
            "Total token throughput (tok/s): 5.50",
            "Mean TTFT (ms): 350.00",
            "Mean TPOT (ms): 1000.00",
            "P50 ITL (ms): 1000.00",
            "Median E2EL (ms): 2100.00",
        ] {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.lines().any(|line| words(line) == row), "{row}: {text}");
        }
    }

    #[test]
    fn requests_are_counted_at_each_moment() {
        let most = |spans: &[(f64, f64)]| most_at_once(spans.iter().copied());
        assert_eq!(most(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]), 1);
        assert_eq!(most(&[(0.0, 0.4), (0.5, 0.9), (0.3, 0.6)]), 2);
        assert_eq!(most(&[]), 0);
    }

    #[test]
    fn a_goal_of_a_further_token_is_reached_by_an_answer_of_one() {
        let begin = Instant::now();
        let outcomes = [
            outcome(begin, 0.0, &[0.1]),
            outcome(begin, 0.0, &[0.1, 0.3]),
        ];
        let all: Vec<&Outcome> = outcomes.iter().collect();
        let num = |milliseconds| num_within_goals(&all, &[(Goal::Tpot, milliseconds)]);
        assert_eq!((num(100.0), num(301.0)), (1, 2));
        // Nothing was answered.
        let peaks = Peaks::of(&[]);
        assert_eq!(
            (peaks.tokens_per_second, peaks.concurrent_requests),
            (0.0, 0)
        );
    }
}
