//! One span for each request, sent to a collector of OpenTelemetry with the attributes of vLLM's spans.
//!
//! A [`RequestTrace`] is shared by the answer and by the engine's sequences. When the last of them lets go of it, the span is
//! complete, and goes into a bounded queue; a thread of its own sends what is in it (`exporter`). A full queue drops the span,
//! and counts it.

mod context;
mod exporter;
mod facts;
mod otlp;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use axum::http::HeaderMap;

use crate::config::{Sampler, TracesConfig};
use context::Context;
use exporter::Exporter;
pub use facts::SequenceSpan;
use facts::{Parts, RequestFacts};

tokio::task_local! {
    /// The trace of the request that this task answers.
    static CURRENT: Arc<RequestTrace>;
}

/// Makes the spans of a server.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    model: String,
    exporter: Exporter,
}

/// The span of a request in the making.
#[derive(Debug)]
pub struct RequestTrace {
    request: RequestFacts,
    exporter: Exporter,
    parts: Mutex<Parts>,
}

impl Tracer {
    /// Starts the thread that sends; `None` if there is no thread. Answers name the model `model`.
    pub fn start(config: &TracesConfig, model: &str) -> Option<Self> {
        match Exporter::start(config) {
            Ok(exporter) => Some(Self {
                sampler: config.sampler,
                model: model.to_owned(),
                exporter,
            }),
            Err(error) => {
                tracing::error!(%error, "no traces are sent (--otlp-traces-endpoint)");
                None
            }
        }
    }

    /// The trace of a request, if it is to have one.
    pub(crate) fn begin(
        &self,
        headers: &HeaderMap,
        request_id: &str,
        route: &str,
    ) -> Option<Arc<RequestTrace>> {
        let context = Context::of(headers, self.sampler)?;
        Some(Arc::new(RequestTrace {
            request: RequestFacts {
                context,
                request_id: request_id.to_owned(),
                route: route.to_owned(),
                model: self.model.clone(),
                began: (SystemTime::now(), Instant::now()),
            },
            exporter: self.exporter.clone(),
            parts: Mutex::default(),
        }))
    }

    /// Sends what is complete; at the end of the program.
    pub(crate) async fn flush(&self) {
        self.exporter.flush().await;
    }

    /// Spans that were sent, and spans that were lost: the queue was full, or the collector did not take them.
    pub fn counts(&self) -> (u64, u64) {
        self.exporter.counts()
    }
}

impl RequestTrace {
    /// That of the request which this task answers.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Answers a request that has a trace.
    pub(crate) async fn scope<T>(trace: Option<Arc<Self>>, answer: impl Future<Output = T>) -> T {
        match trace {
            Some(trace) => CURRENT.scope(trace, answer).await,
            None => answer.await,
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a sequence that has ended.
    pub(crate) fn add(&self, sequence: SequenceSpan) {
        self.parts().sequences.push(sequence);
    }

    /// Takes note of how many answers each prompt has.
    pub(crate) fn set_num_choices(&self, num: usize) {
        self.parts().num_choices = Some(num);
    }

    /// Takes note of the end of the answer.
    pub(crate) fn finish(&self, status: u16) {
        self.parts().end = Some((self.request.began.1.elapsed(), status));
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        let span = otlp::span(&self.request, &self.parts());
        self.exporter.send(span);
    }
}
