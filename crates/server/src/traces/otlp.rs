//! Spans in the JSON of OTLP (`opentelemetry/proto/trace/v1/request.proto`), with the attributes of vLLM's.

use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::{Value, json};

use super::facts::{Parts, RequestFacts, SequenceSpan};

/// vLLM's name for the span of a request.
const NAME: &str = "llm_request";
/// `SPAN_KIND_SERVER`.
const KIND: u32 = 2;
/// `STATUS_CODE_ERROR`.
const ERROR: u32 = 2;

/// The whole message.
pub(super) fn message(resource: &[(String, String)], spans: Vec<Value>) -> Value {
    let attributes: Vec<Value> = resource
        .iter()
        .map(|(key, value)| json!({ "key": key, "value": { "stringValue": value } }))
        .collect();
    let scope = json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") });
    json!({ "resourceSpans": [{
        "resource": { "attributes": attributes },
        "scopeSpans": [{ "scope": scope, "spans": spans }],
    }] })
}

/// The span of a request.
pub(super) fn span(request: &RequestFacts, parts: &Parts) -> Value {
    let (began, _) = request.began;
    let start = began.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (took, status) = match parts.end {
        Some((took, status)) => (took, Some(status)),
        None => (request.began.1.elapsed(), None),
    };
    let mut attributes = Attributes::default();
    attributes.text("gen_ai.request.id", &request.request_id);
    attributes.text("http.route", &request.route);
    if let Some(status) = status {
        attributes.int("http.response.status_code", status.into());
    }
    attributes.seconds("gen_ai.latency.e2e", Some(took));
    if !parts.sequences.is_empty() {
        of_sequences(request, parts, &mut attributes);
    }
    let context = &request.context;
    let mut span = json!({
        "traceId": format!("{:032x}", context.trace_id),
        "spanId": format!("{:016x}", context.span_id),
        "name": NAME,
        "kind": KIND,
        "startTimeUnixNano": start.as_nanos().to_string(),
        "endTimeUnixNano": (start + took).as_nanos().to_string(),
        "attributes": attributes.0,
    });
    if let Some(parent) = context.parent {
        span["parentSpanId"] = format!("{parent:016x}").into();
    }
    if !context.state.is_empty() {
        span["traceState"] = context.state.clone().into();
    }
    if status.is_some_and(|status| status >= 500) {
        span["status"] = json!({ "code": ERROR });
    }
    span
}

/// What is known of the sequences: times are from the first event of any of them to the last one.
fn of_sequences(request: &RequestFacts, parts: &Parts, attributes: &mut Attributes) {
    let all = &parts.sequences;
    let first = |time: fn(&SequenceSpan) -> Option<Instant>| all.iter().filter_map(time).min();
    let submitted = first(|sequence| Some(sequence.submitted));
    let scheduled = first(|sequence| sequence.scheduled);
    let first_token = first(|sequence| sequence.first_token);
    let last_token = all.iter().filter_map(|sequence| sequence.last_token).max();
    let between =
        |start: Option<Instant>, end: Option<Instant>| Some(end?.saturating_duration_since(start?));
    for (name, time) in [
        (
            "time_to_first_token",
            between(Some(request.began.1), first_token),
        ),
        ("time_in_queue", between(submitted, scheduled)),
        ("time_in_model_prefill", between(scheduled, first_token)),
        ("time_in_model_decode", between(first_token, last_token)),
        ("time_in_model_inference", between(scheduled, last_token)),
    ] {
        attributes.seconds(&format!("gen_ai.latency.{name}"), time);
    }
    let num_choices = parts.num_choices.unwrap_or(1).max(1);
    let sum = |num: fn(&SequenceSpan) -> usize| all.iter().map(num).sum::<usize>();
    // Choices share their prompt.
    let num_prompt_tokens = sum(|sequence| sequence.num_prompt_tokens) / num_choices;
    for (name, num) in [
        ("usage.prompt_tokens", num_prompt_tokens),
        (
            "usage.completion_tokens",
            sum(|sequence| sequence.num_tokens),
        ),
        ("usage.num_sequences", all.len()),
        ("request.n", num_choices),
        ("request.max_tokens", all[0].max_tokens),
    ] {
        attributes.int(&format!("gen_ai.{name}"), num as u64);
    }
    attributes.double("gen_ai.request.temperature", all[0].temperature.into());
    attributes.double("gen_ai.request.top_p", all[0].top_p.into());
    let model = all[0].adapter.as_ref().unwrap_or(&request.model);
    attributes.text("gen_ai.response.model", model);
}

/// The attributes of a span.
#[derive(Default)]
struct Attributes(Vec<Value>);

impl Attributes {
    fn text(&mut self, key: &str, value: &str) {
        self.push(key, json!({ "stringValue": value }));
    }

    /// 64-bit numbers are texts in the JSON of Protocol Buffers.
    fn int(&mut self, key: &str, value: u64) {
        self.push(key, json!({ "intValue": value.to_string() }));
    }

    fn double(&mut self, key: &str, value: f64) {
        self.push(key, json!({ "doubleValue": value }));
    }

    fn seconds(&mut self, key: &str, value: Option<Duration>) {
        if let Some(value) = value {
            self.double(key, value.as_secs_f64());
        }
    }

    fn push(&mut self, key: &str, value: Value) {
        self.0.push(json!({ "key": key, "value": value }));
    }
}
