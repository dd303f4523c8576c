//! Counts requests and how long they take, to the end of their answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use crate::metrics::Answered;
use crate::request_id::RequestId;
use crate::route::RouteKind;
use crate::route_kind;
use crate::state::AppState;
use crate::traces::RequestTrace;

/// A request until the last byte of its answer is sent, or its client is gone.
struct Tracked {
    state: AppState,
    started: Instant,
    answered: Answered,
    is_work: bool,
    trace: Option<Arc<RequestTrace>>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(trace) = &self.trace {
            trace.finish(self.answered.status);
        }
        if self.is_work {
            self.state.http_metrics().end();
        }
        let answered = Answered {
            duration: self.started.elapsed(),
            ..self.answered.clone()
        };
        self.state.http_metrics().observe(answered);
    }
}

/// Tracks each request.
pub async fn track(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let handler = path.map_or("none", |path| path.as_str()).to_owned();
    let handler = match handler.trim_end_matches('/') {
        "" => handler,
        short => short.to_owned(),
    };
    let is_work = match route_kind(&handler) {
        RouteKind::Polled { .. } => return next.run(request).await,
        kind => matches!(kind, RouteKind::Work { .. }),
    };
    let mut trace = None;
    if is_work {
        state.http_metrics().begin();
        let id = RequestId::of(&request).or(None);
        trace = state
            .tracer()
            .and_then(|tracer| tracer.begin(request.headers(), &id, &handler));
    }
    let mut tracked = Tracked {
        state,
        started: Instant::now(),
        answered: Answered {
            handler,
            method: method(request.method()).to_owned(),
            // What nginx calls a client that closed the connection.
            status: 499,
            request_bytes: length(request.headers()),
            response_bytes: 0,
            duration: Default::default(),
        },
        is_work,
        trace: trace.clone(),
    };
    let response = RequestTrace::scope(trace, next.run(request)).await;
    tracked.answered.status = response.status().as_u16();
    tracked.answered.response_bytes = response.body().size_hint().exact().unwrap_or(0);
    response.map(|body| {
        Body::new(TrackedBody {
            body,
            _tracked: tracked,
        })
    })
}

/// A method's label; a client may make up as many methods as it likes.
fn method(method: &Method) -> &str {
    const KNOWN: [Method; 7] = [
        Method::DELETE,
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::POST,
        Method::PUT,
    ];
    match KNOWN.contains(method) {
        true => method.as_str(),
        false => "other",
    }
}

fn length(headers: &HeaderMap) -> u64 {
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}

struct TrackedBody {
    body: Body,
    _tracked: Tracked,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
