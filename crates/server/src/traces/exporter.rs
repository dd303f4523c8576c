//! The thread that sends spans.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::otlp;
use crate::config::TracesConfig;

/// Spans that wait, as many as OpenTelemetry's programs keep.
const MAX_QUEUED: usize = 2048;
/// Spans of a message.
const MAX_SPANS: usize = 512;
/// Longest time that a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// Longest wait for the collector's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before a message is sent again.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// Longest wait at the end of the program.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// What the thread is given.
enum Command {
    Span(Value),
    Flush(oneshot::Sender<()>),
}

/// The way to the thread; it ends when no clone is left.
#[derive(Clone, Debug)]
pub(super) struct Exporter {
    queue: mpsc::Sender<Command>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
}

impl Exporter {
    pub(super) fn start(config: &TracesConfig) -> io::Result<Self> {
        let (queue, commands) = mpsc::channel(MAX_QUEUED);
        let counts = Arc::<Counts>::default();
        let sender = Sender {
            connections: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Duration::from_secs(4))
                .build_http(),
            config: config.clone(),
            counts: Arc::clone(&counts),
            is_failing: false,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let thread = std::thread::Builder::new().name("traces".to_owned());
        thread.spawn(move || runtime.block_on(run(sender, commands)))?;
        Ok(Self { queue, counts })
    }

    /// Queues a span, if there is room for it.
    pub(super) fn send(&self, span: Value) {
        if self.queue.try_send(Command::Span(span)).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Command::Flush(done)).await.is_ok() {
                // An answer is all that is waited for.
                let _ = flushed.await;
            }
        };
        if timeout(FLUSH_TIMEOUT, flushed).await.is_err() {
            tracing::warn!("the last traces were not sent");
        }
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.counts.sent), of(&self.counts.lost))
    }
}

/// Collects spans for a short while, and sends them.
async fn run(mut sender: Sender, mut commands: mpsc::Receiver<Command>) {
    let mut spans = Vec::new();
    let mut flush = None;
    while let Some(first) = commands.recv().await {
        let mut next = Some(first);
        let until = Instant::now() + DELAY;
        while let Some(command) = next {
            match command {
                Command::Span(span) => spans.push(span),
                Command::Flush(done) => flush = Some(done),
            }
            next = match spans.len() < MAX_SPANS && flush.is_none() {
                true => timeout_at(until, commands.recv()).await.unwrap_or_default(),
                false => None,
            };
        }
        if !spans.is_empty() {
            sender.send(std::mem::take(&mut spans)).await;
        }
        if let Some(done) = flush.take() {
            // Whoever waits may have given up.
            let _ = done.send(());
        }
    }
}

struct Sender {
    connections: Client<HttpConnector, Body>,
    config: TracesConfig,
    counts: Arc<Counts>,
    is_failing: bool,
}

impl Sender {
    /// Sends spans, several times if need be. A failure is told once, not each time.
    async fn send(&mut self, spans: Vec<Value>) {
        let num = spans.len() as u64;
        let message = otlp::message(&self.config.resource, spans).to_string();
        let mut pauses = PAUSES.iter();
        let sent = loop {
            match (self.post(message.clone()).await, pauses.next()) {
                (Err(Failure::Temporary(_)), Some(&pause)) if !self.is_failing => {
                    sleep(pause).await
                }
                (sent, _) => break sent,
            }
        };
        let count = match &sent {
            Ok(()) => &self.counts.sent,
            Err(_) => &self.counts.lost,
        };
        count.fetch_add(num, Ordering::Relaxed);
        if let Err(Failure::Temporary(reason) | Failure::Final(reason)) = &sent
            && !self.is_failing
        {
            let endpoint = &self.config.endpoint;
            tracing::warn!(%endpoint, reason, "the collector takes no traces; they are lost until it does");
        }
        self.is_failing = sent.is_err();
    }

    async fn post(&self, message: String) -> Result<(), Failure> {
        let mut request = Request::new(Body::from(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.config.endpoint.clone();
        request.headers_mut().clone_from(&self.config.headers);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let answer = timeout(ANSWER_TIMEOUT, self.connections.request(request)).await;
        let answer = answer.map_err(|_| Failure::Temporary("no answer".to_owned()))?;
        let answer = answer.map_err(|error| Failure::Temporary(error.to_string()))?;
        let status = answer.status();
        match status {
            _ if status.is_success() => Ok(()),
            // As OTLP says.
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(Failure::Temporary(status.to_string())),
            _ => Err(Failure::Final(status.to_string())),
        }
    }
}

/// Why a message was not taken.
enum Failure {
    /// It may be later.
    Temporary(String),
    /// It never will be.
    Final(String),
}
