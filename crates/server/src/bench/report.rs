//! The result of `bench serve`: vLLM's table and the keys of its JSON file.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::dataset::Sample;
use super::metrics::{mean, percentile, std_dev};
use super::request::Outcome;
use super::serve_args::{MetricName, RampUp, ServeArgs};

/// A run that is over.
pub(super) struct Run<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) model_id: &'a str,
    pub(super) tokenizer_id: &'a str,
    pub(super) date: String,
    pub(super) samples: &'a [Sample],
    pub(super) outcomes: &'a [Outcome],
    /// In seconds.
    pub(super) duration: f64,
}

/// Times in seconds, of the requests that have an answer.
struct Times {
    ttft: Vec<f64>,
    tpot: Vec<f64>,
    itl: Vec<f64>,
    e2el: Vec<f64>,
}

/// Peaks, counted by whole seconds from the first request.
struct Peaks {
    tokens_per_second: f64,
    concurrent_requests: usize,
}

/// Name in the table, and its heading.
const METRICS: [(MetricName, &str, &str, &str); 4] = [
    (MetricName::Ttft, "ttft", "TTFT", "Time to First Token"),
    (
        MetricName::Tpot,
        "tpot",
        "TPOT",
        "Time per Output Token (excl. 1st token)",
    ),
    (MetricName::Itl, "itl", "ITL", "Inter-token Latency"),
    (MetricName::E2el, "e2el", "E2EL", "End-to-end Latency"),
];

/// The table, and the keys of the file.
pub(super) fn report(run: &Run<'_>) -> (String, Map<String, Value>) {
    let args = run.args;
    let good: Vec<&Outcome> = run
        .outcomes
        .iter()
        .filter(|outcome| outcome.is_success())
        .collect();
    let (completed, failed) = (good.len(), run.outcomes.len() - good.len());
    // What the server counts, where it does.
    let input_len =
        |(sample, outcome): (&Sample, &Outcome)| outcome.prompt_len.unwrap_or(sample.prompt_len);
    let pairs = || run.samples.iter().zip(run.outcomes);
    let input: usize = pairs()
        .filter(|(_, outcome)| outcome.is_success())
        .map(input_len)
        .sum();
    let output: usize = good.iter().map(|outcome| outcome.output_tokens).sum();
    let (times, peaks) = (Times::of(&good), Peaks::of(&good));
    let per_second = |number: usize| number as f64 / run.duration;
    let goodput =
        (!args.goodput.is_empty()).then(|| per_second(num_within_goals(&good, &args.goodput)));

    let mut table = Table::default();
    table.heading(" Serving Benchmark Result ", '=');
    table.count("Successful requests:", completed);
    table.count("Failed requests:", failed);
    if let Some(num) = args.max_concurrency {
        table.count("Maximum request concurrency:", num);
    }
    if args.request_rate.is_finite() {
        table.number("Request rate configured (RPS):", args.request_rate);
    }
    table.number("Benchmark duration (s):", run.duration);
    table.count("Total input tokens:", input);
    table.count("Total generated tokens:", output);
    table.number("Request throughput (req/s):", per_second(completed));
    if let Some(goodput) = goodput {
        table.number("Request goodput (req/s):", goodput);
    }
    table.number("Output token throughput (tok/s):", per_second(output));
    table.number(
        "Peak output token throughput (tok/s):",
        peaks.tokens_per_second,
    );
    table.number(
        "Peak concurrent requests:",
        peaks.concurrent_requests as f64,
    );
    table.number(
        "Total token throughput (tok/s):",
        per_second(input + output),
    );

    let mut result = head(run);
    let Value::Object(measured) = json!({
        "duration": run.duration,
        "completed": completed,
        "failed": failed,
        "total_input_tokens": input,
        "total_output_tokens": output,
        "request_throughput": per_second(completed),
        "request_goodput": goodput,
        "output_throughput": per_second(output),
        "total_token_throughput": per_second(input + output),
    }) else {
        return (table.text, result);
    };
    result.extend(measured);
    if args.save_detailed {
        let of_all =
            |field: fn(&Outcome) -> Value| run.outcomes.iter().map(field).collect::<Value>();
        result.insert("input_lens".to_owned(), pairs().map(input_len).collect());
        result.insert("output_lens".to_owned(), of_all(|o| o.output_tokens.into()));
        result.insert("ttfts".to_owned(), of_all(|o| o.ttft.into()));
        result.insert("itls".to_owned(), of_all(|o| o.itl.clone().into()));
        result.insert(
            "generated_texts".to_owned(),
            of_all(|o| o.text.clone().into()),
        );
        result.insert(
            "errors".to_owned(),
            of_all(|o| o.error.clone().unwrap_or_default().into()),
        );
    }
    result.insert(
        "max_output_tokens_per_s".to_owned(),
        peaks.tokens_per_second.into(),
    );
    result.insert(
        "max_concurrent_requests".to_owned(),
        peaks.concurrent_requests.into(),
    );
    for (metric, key, name, heading) in METRICS {
        if args.percentile_metrics.contains(&metric) {
            table.metric(
                times.of_metric(metric),
                (key, name, heading),
                &args.metric_percentiles,
                &mut result,
            );
        }
    }
    table.line(&"=".repeat(50));
    (table.text, result)
}

/// Keys that say what was run.
fn head(run: &Run<'_>) -> Map<String, Value> {
    let args = run.args;
    let mut head = Map::new();
    let mut add = |key: &str, value: Value| {
        head.insert(key.to_owned(), value);
    };
    add("date", run.date.as_str().into());
    add("endpoint_type", args.backend.name().into());
    add("backend", args.backend.name().into());
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
    add(
        "burstiness",
        match args.burstiness.is_finite() {
            true => args.burstiness.into(),
            false => "inf".into(),
        },
    );
    add("max_concurrency", args.max_concurrency.into());
    if let Some(strategy) = args.ramp_up_strategy {
        add("ramp_up_strategy", ramp_up(strategy).into());
        add("ramp_up_start_rps", args.ramp_up_start_rps.into());
        add("ramp_up_end_rps", args.ramp_up_end_rps.into());
    }
    head
}

fn ramp_up(strategy: RampUp) -> &'static str {
    match strategy {
        RampUp::Linear => "linear",
        RampUp::Exponential => "exponential",
    }
}

/// vLLM's name of a result's file.
pub(super) fn file_name(args: &ServeArgs, model: &str, date: &str) -> String {
    let label = args.label.as_deref().unwrap_or(args.backend.name());
    let traffic = match (
        args.ramp_up_strategy,
        args.ramp_up_start_rps,
        args.ramp_up_end_rps,
    ) {
        (Some(strategy), Some(from), Some(to)) => {
            format!("ramp-up-{}-{from}qps-{to}qps", ramp_up(strategy))
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
        }
    }

    fn of_metric(&self, metric: MetricName) -> &[f64] {
        match metric {
            MetricName::Ttft => &self.ttft,
            MetricName::Tpot => &self.tpot,
            MetricName::Itl => &self.itl,
            MetricName::E2el => &self.e2el,
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

fn num_within_goals(outcomes: &[&Outcome], goals: &[(MetricName, f64)]) -> usize {
    let reaches = |outcome: &Outcome, (metric, milliseconds): &(MetricName, f64)| {
        let seconds = match metric {
            MetricName::Ttft => outcome.ttft,
            MetricName::E2el => outcome.latency,
            MetricName::Tpot | MetricName::Itl => tpot(outcome).unwrap_or(0.0),
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
        let (mut tokens, mut requests) = (vec![0_usize; num_seconds], vec![0_usize; num_seconds]);
        for outcome in outcomes {
            let start = start(outcome);
            let mut now = start + outcome.ttft;
            for since in std::iter::once(0.0).chain(outcome.itl.iter().copied()) {
                now += since;
                tokens[(now as usize).min(num_seconds - 1)] += 1;
            }
            let end = ((start + outcome.latency) as usize).min(num_seconds - 1);
            requests[start as usize..=end]
                .iter_mut()
                .for_each(|num| *num += 1);
        }
        Self {
            tokens_per_second: tokens.into_iter().max().unwrap_or(0) as f64,
            concurrent_requests: requests.into_iter().max().unwrap_or(0),
        }
    }
}

/// Lines of 40 and 10 characters, as vLLM prints them.
#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn heading(&mut self, heading: &str, fill: char) {
        let fill_len = 50_usize.saturating_sub(heading.chars().count());
        let fill = |num: usize| fill.to_string().repeat(num);
        self.line(&format!(
            "{}{heading}{}",
            fill(fill_len / 2),
            fill(fill_len - fill_len / 2)
        ));
    }

    fn count(&mut self, name: &str, number: usize) {
        self.line(&format!("{name:<40} {number:<10}"));
    }

    fn number(&mut self, name: &str, number: f64) {
        self.line(&format!("{name:<40} {number:<10.2}"));
    }

    /// The statistics of a metric, in milliseconds, here and in the result.
    fn metric(
        &mut self,
        seconds: &[f64],
        (key, name, heading): (&str, &str, &str),
        percentiles: &[f64],
        result: &mut Map<String, Value>,
    ) {
        let values: Vec<f64> = seconds.iter().map(|seconds| seconds * 1e3).collect();
        self.heading(heading, '-');
        let (mean, median) = (mean(&values), percentile(&values, 50.0));
        self.number(&format!("Mean {name} (ms):"), mean);
        self.number(&format!("Median {name} (ms):"), median);
        result.insert(format!("mean_{key}_ms"), mean.into());
        result.insert(format!("median_{key}_ms"), median.into());
        result.insert(format!("std_{key}_ms"), std_dev(&values).into());
        for percent in percentiles {
            let value = percentile(&values, *percent);
            self.number(&format!("P{percent} {name} (ms):"), value);
            let mut name = String::new();
            // Writing to a string cannot fail.
            let _ = write!(name, "p{percent}_{key}_ms");
            result.insert(name, value.into());
        }
    }
}
