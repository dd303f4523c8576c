//! `server run-batch`: a file of requests in OpenAI's batch format, answered without a socket.
//!
//! Each line goes through the router of [`crate::app`], as if it had come over HTTP. Lines are read while earlier ones run:
//! what is in memory at once is bounded by a number of requests and by bytes, however long the file is.

pub mod args;
mod line;
mod output;
mod progress;
mod source;

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::HeaderName;
use axum::http::{Request, StatusCode, header};
use futures::FutureExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};

use crate::error::ApiError;
use crate::request_id;

pub use args::{BatchFiles, Output, RunBatch};
use line::{BatchRequest, read};
use output::{Answer, OrderedOutput};
pub use progress::Progress;
pub use source::Source;
use source::{Ids, Lines};

/// Most bytes of requests that run, and of answers that wait for an earlier one.
const MAX_BYTES: usize = 64 << 20;

/// How a batch is run.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// Most requests that run at once.
    pub max_concurrency: usize,
    /// How long running requests may go on once the batch is stopped.
    pub shutdown_timeout: Duration,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines of the output.
    pub num_answered: usize,
    /// Those with an error.
    pub num_failed: usize,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

/// One line of the input and what came of it.
struct Done {
    index: usize,
    num_bytes: usize,
    answer: Answer,
}

/// Answers every line of the requests with one line of the answers, in the same order.
///
/// When `stop` completes, no further line is read. Running requests get [`BatchOptions::shutdown_timeout`]; what is answered by
/// then is written.
///
/// # Errors
/// If the output cannot be written; if the input cannot be read any further, once what was read is answered.
pub async fn run(
    app: Router,
    files: BatchFiles,
    options: BatchOptions,
    mut progress: Progress,
    stop: impl Future<Output = ()>,
) -> io::Result<Summary> {
    let (mut lines, mut ids) = (Lines::start(files.source)?, Ids::default());
    let mut output = OrderedOutput::new((files.output)()?);
    let mut running: JoinSet<Done> = JoinSet::new();
    let (mut next, mut running_bytes) = (0, 0);
    let (mut ended, mut stopped, mut unreadable) = (false, false, None);
    let mut stop = pin!(stop);
    let mut deadline = pin!(tokio::time::sleep(Duration::MAX));
    let interval = progress.interval();
    let mut tick = interval_at(Instant::now() + interval, interval);
    while !(running.is_empty() && (ended || stopped)) {
        let has_room = running.len() < options.max_concurrency
            && running_bytes < MAX_BYTES
            && output.num_waiting_bytes() < MAX_BYTES;
        tokio::select! {
            line = lines.next(), if has_room && !ended && !stopped => {
                let line = match line {
                    Some(Ok(line)) => line,
                    end => {
                        ended = true;
                        unreadable = end.and_then(Result::err);
                        continue;
                    }
                };
                let (index, num_bytes) = (next, line.num_bytes);
                next += 1;
                match read(&line, &mut ids) {
                    Ok(request) => {
                        running_bytes += num_bytes;
                        let app = app.clone();
                        running.spawn(async move {
                            let custom_id = request.custom_id.clone();
                            let answered = AssertUnwindSafe(answer(app, request)).catch_unwind();
                            let answer = answered.await.unwrap_or_else(|_| {
                                Answer::of_error(Some(custom_id), &ApiError::internal("The request has failed."))
                            });
                            Done { index, num_bytes, answer }
                        });
                    }
                    Err(bad) => {
                        progress.answered(num_bytes, true);
                        output.add(index, &Answer::of_bad_line(*bad))?;
                    }
                }
            }
            Some(done) = running.join_next(), if !running.is_empty() => {
                let Done { index, num_bytes, answer } = done.map_err(io::Error::other)?;
                running_bytes -= num_bytes;
                progress.answered(num_bytes, answer.is_error());
                output.add(index, &answer)?;
            }
            () = &mut stop, if !stopped => {
                stopped = true;
                tracing::info!(running = running.len(), timeout = ?options.shutdown_timeout, "stopping: finishing the running requests");
                deadline.set(tokio::time::sleep(options.shutdown_timeout));
            }
            () = &mut deadline, if stopped => break,
            _ = tick.tick() => progress.show(running.len()),
        }
    }
    output.finish()?;
    progress.finish();
    if let Some(error) = unreadable {
        return Err(error);
    }
    let summary = Summary {
        stopped: stopped && !(ended && progress.summary().num_answered == next),
        ..progress.summary()
    };
    Ok(summary)
}

/// Sends a request through the router.
async fn answer(app: Router, request: BatchRequest) -> Answer {
    let BatchRequest {
        custom_id,
        url,
        body,
    } = request;
    let sent = Request::post(&url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body));
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => {
            let error = ApiError::bad_request("url", error.to_string());
            return Answer::of_error(Some(custom_id), &error);
        }
    };
    let response = match TowerToHyperService::new(app).call(sent).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (head, body) = response.into_parts();
    let value = |name: &HeaderName| head.headers.get(name)?.to_str().ok();
    let request_id = value(&request_id::HEADER).map(str::to_owned);
    let is_json =
        value(&header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
    let body = match is_json {
        true => to_bytes(body, usize::MAX).await.ok(),
        false => None,
    };
    match body.and_then(|body| String::from_utf8(body.into()).ok()) {
        Some(body) => Answer::new(custom_id, head.status, request_id, body),
        None => Answer::of_error(Some(custom_id), &not_json()),
    }
}

/// An answer that a line of JSON cannot hold.
fn not_json() -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "The answer is not JSON, so that a line of JSON cannot hold it: ask for no stream, and for another `encoding_format`.",
    )
}
