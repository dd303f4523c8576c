//! Requests as HTTP sees them, with the names of prometheus-fastapi-instrumentator.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::exposition::{Exposition, escaped};
use crate::histogram::Histogram;

const FINE_SECONDS: [f64; 21] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0,
    7.5, 10.0, 30.0, 60.0,
];
const COARSE_SECONDS: [f64; 3] = [0.1, 0.5, 1.0];

/// Counts of all requests.
#[derive(Debug)]
pub struct HttpMetrics {
    num_in_flight: AtomicUsize,
    duration: Histogram,
    /// By handler and method.
    handlers: Mutex<BTreeMap<(String, String), Handler>>,
}

#[derive(Debug)]
struct Handler {
    /// Hundreds of the status.
    by_status: BTreeMap<u16, u64>,
    duration: Histogram,
    request_bytes: u64,
    response_bytes: u64,
}

/// One request that was answered.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The route's path, or `none`.
    pub handler: String,
    /// `POST`.
    pub method: String,
    /// Of the answer.
    pub status: u16,
    /// Length of the request's body as announced.
    pub request_bytes: u64,
    /// Length of the answer's body as announced.
    pub response_bytes: u64,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self {
            num_in_flight: AtomicUsize::new(0),
            duration: Histogram::new(&FINE_SECONDS),
            handlers: Mutex::default(),
        }
    }
}

impl HttpMetrics {
    /// Requests for text, vectors and scores that are not answered yet.
    pub fn num_in_flight(&self) -> usize {
        self.num_in_flight.load(Ordering::Acquire)
    }

    pub(crate) fn begin(&self) {
        self.num_in_flight.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn end(&self) {
        self.num_in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn observe(&self, answered: Answered) {
        let Answered {
            handler,
            method,
            status,
            request_bytes,
            response_bytes,
            duration,
        } = answered;
        self.duration.observe(duration);
        let mut handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let handler = handlers
            .entry((handler, method))
            .or_insert_with(|| Handler {
                by_status: BTreeMap::new(),
                duration: Histogram::new(&COARSE_SECONDS),
                request_bytes: 0,
                response_bytes: 0,
            });
        *handler.by_status.entry(status / 100).or_default() += 1;
        handler.duration.observe(duration);
        handler.request_bytes += request_bytes;
        handler.response_bytes += response_bytes;
    }

    pub(super) fn write(&self, page: &mut Exposition) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |handler: &Handler| handler.by_status.values().sum::<u64>();
        let requests = handlers.iter().flat_map(|((name, method), handler)| {
            let (name, method) = (escaped(name), escaped(method));
            handler.by_status.iter().map(move |(status, num)| {
                let labels =
                    format!("handler=\"{name}\",method=\"{method}\",status=\"{status}xx\"");
                (labels, *num as f64)
            })
        });
        page.counters(
            "http_requests",
            "Requests by handler, method and status",
            requests,
        );
        // By handler alone, whatever the method.
        let mut sizes: BTreeMap<String, [u64; 3]> = BTreeMap::new();
        for ((name, _), handler) in handlers.iter() {
            let labels = format!("handler=\"{}\"", escaped(name));
            let [num, request, response] = sizes.entry(labels).or_default();
            *num += count(handler);
            *request += handler.request_bytes;
            *response += handler.response_bytes;
        }
        page.summaries(
            "http_request_size_bytes",
            "Announced lengths of requests' bodies",
            sizes
                .iter()
                .map(|(labels, size)| (labels.clone(), size[0], size[1])),
        );
        page.summaries(
            "http_response_size_bytes",
            "Announced lengths of answers' bodies",
            sizes
                .iter()
                .map(|(labels, size)| (labels.clone(), size[0], size[2])),
        );
        page.histogram(
            "http_request_duration_highr_seconds",
            "Time to the end of answers, in fine buckets",
            "",
            &self.duration,
        );
        let durations = handlers.iter().map(|((name, method), handler)| {
            let labels = format!(
                "handler=\"{}\",method=\"{}\"",
                escaped(name),
                escaped(method)
            );
            (labels, &handler.duration)
        });
        page.histograms(
            "http_request_duration_seconds",
            "Time to the end of answers, by handler and method",
            durations,
        );
    }
}
