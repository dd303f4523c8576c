//! Spans as a collector gets them.

#![allow(clippy::unwrap_used)]

use std::io::{BufReader, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector that answers with each of these statuses in turn, then with 200; what it was sent.
fn collector(statuses: &'static [u16]) -> (TracesConfig, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut statuses = statuses.iter();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            while let Some((head, body)) = request(&mut stream) {
                let status = statuses.next().unwrap_or(&200);
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\n{{}}");
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
                if sender.send((head, body)).is_err() {
                    return;
                }
            }
        }
    });
    let config = TracesConfig {
        endpoint: format!("http://{address}/v1/traces").parse().unwrap(),
        headers: [("x-scope".parse().unwrap(), "me".parse().unwrap())]
            .into_iter()
            .collect(),
        resource: vec![("service.name".to_owned(), "chat".to_owned())],
        sampler: Sampler {
            follows_parent: true,
            ratio: 1.0,
        },
    };
    (config, receiver)
}

fn request(stream: &mut impl std::io::BufRead) -> Option<(String, Value)> {
    let (mut head, mut len) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    Some((head, serde_json::from_slice(&body).unwrap()))
}

fn sequence(started: Instant) -> SequenceSpan {
    let after = |millis| Some(started + Duration::from_millis(millis));
    SequenceSpan {
        submitted: started,
        scheduled: after(250),
        first_token: after(500),
        last_token: after(1500),
        num_prompt_tokens: 7,
        num_tokens: 5,
        max_tokens: 9,
        temperature: 0.5,
        top_p: 1.0,
        adapter: None,
    }
}

fn headers() -> HeaderMap {
    let parent = ("traceparent".parse().unwrap(), PARENT.parse().unwrap());
    let state = ("tracestate".parse().unwrap(), "a=b".parse().unwrap());
    [parent, state].into_iter().collect()
}

/// The attributes, by their names.
fn attributes(of: &Value) -> Value {
    let attributes = of["attributes"].as_array().unwrap().iter();
    let pair = |attribute: &Value| {
        let (_, value) = attribute["value"].as_object()?.iter().next()?;
        Some((attribute["key"].as_str()?.to_owned(), value.clone()))
    };
    attributes
        .map(|attribute| pair(attribute).unwrap())
        .collect()
}

#[tokio::test]
async fn a_request_has_one_span_with_vllms_attributes() {
    let (config, sent) = collector(&[]);
    let tracer = Tracer::start(&config, "base").unwrap();
    let trace = tracer.begin(&headers(), "id-1", "/v1/chat/completions");
    let inner = RequestTrace::scope(trace.clone(), async { RequestTrace::current() }).await;
    let (trace, inner) = (trace.unwrap(), inner.unwrap());
    assert!(Arc::ptr_eq(&trace, &inner) && RequestTrace::current().is_none());
    trace.set_num_choices(2);
    let (start, _) = (trace.request.began.1, drop(inner));
    for _ in 0..2 {
        trace.add(sequence(start));
    }
    trace.finish(200);
    drop(trace);
    tracer.flush().await;
    assert_eq!(tracer.counts(), (1, 0));

    let (head, body) = sent.recv().unwrap();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    for header in ["content-type: application/json", "x-scope: me"] {
        assert!(head.contains(header), "{head}");
    }
    let resource = &body["resourceSpans"][0];
    assert_eq!(
        attributes(&resource["resource"]),
        json!({"service.name": "chat"})
    );
    let span = &resource["scopeSpans"][0]["spans"][0];
    assert_eq!(
        [
            &span["traceId"],
            &span["parentSpanId"],
            &span["traceState"],
            &span["name"],
            &span["kind"]
        ],
        [
            &json!("0af7651916cd43dd8448eb211c80319c"),
            &json!("b7ad6b7169203331"),
            &json!("a=b"),
            &json!("llm_request"),
            &json!(2)
        ]
    );
    assert_eq!(span["spanId"].as_str().unwrap().len(), 16);
    let nanos = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    assert!(nanos("startTimeUnixNano") < nanos("endTimeUnixNano"));
    let mut found = attributes(span);
    let e2e = found.as_object_mut().unwrap().remove("gen_ai.latency.e2e");
    assert!(e2e.unwrap().as_f64().unwrap() > 0.0);
    let expected = json!({
        "gen_ai.request.id": "id-1", "http.route": "/v1/chat/completions", "http.response.status_code": "200",
        "gen_ai.latency.time_to_first_token": 0.5, "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_in_model_prefill": 0.25, "gen_ai.latency.time_in_model_decode": 1.0,
        "gen_ai.latency.time_in_model_inference": 1.25, "gen_ai.usage.prompt_tokens": "7",
        "gen_ai.usage.completion_tokens": "10", "gen_ai.usage.num_sequences": "2", "gen_ai.request.n": "2",
        "gen_ai.request.max_tokens": "9", "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 1.0,
        "gen_ai.response.model": "base",
    });
    assert_eq!(found, expected);
    assert_eq!(span["status"], Value::Null);
}

#[tokio::test]
async fn a_request_that_fails_has_a_span_without_tokens() {
    let (config, sent) = collector(&[]);
    let tracer = Tracer::start(&config, "base").unwrap();
    let trace = tracer
        .begin(&HeaderMap::new(), "id", "/v1/completions")
        .unwrap();
    trace.finish(503);
    drop(trace);
    tracer.flush().await;
    let (_, body) = sent.recv().unwrap();
    let span = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(
        (&span["status"]["code"], &span["parentSpanId"]),
        (&json!(2), &Value::Null)
    );
    assert_eq!(attributes(span)["gen_ai.usage.prompt_tokens"], Value::Null);
    // A parent that is not sampled asks for none.
    let mut headers = headers();
    let unsampled = PARENT.replace("-01", "-00").parse().unwrap();
    headers.insert("traceparent", unsampled);
    assert!(tracer.begin(&headers, "id", "/v1/completions").is_none());
}

#[tokio::test]
async fn a_collector_that_takes_nothing_costs_nothing_but_spans() {
    let (config, sent) = collector(&[400]);
    let tracer = Tracer::start(&config, "base").unwrap();
    let begin = |tracer: &Tracer| tracer.begin(&HeaderMap::new(), "id", "/v1/completions");
    for expected in [(0, 1), (1, 1)] {
        drop(begin(&tracer));
        tracer.flush().await;
        assert_eq!(tracer.counts(), expected);
        sent.recv().unwrap();
    }
    // Nobody listens: the queue fills, and requests do not wait.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = TracesConfig {
        endpoint: format!("http://{address}/v1/traces").parse().unwrap(),
        ..config
    };
    let tracer = Tracer::start(&config, "base").unwrap();
    let start = Instant::now();
    for _ in 0..10_000 {
        drop(begin(&tracer));
    }
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(tracer.counts().1 > 0, "{:?}", tracer.counts());
}
