//! Connections: HTTP/1.1 with time limits, and an end that lets running requests finish.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;

use crate::unread::Unread;

/// Longest wait for the head of a request, on a new connection or after the last request of an old one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for a client to take more of an answer. A stream ends before, see `stream.rs`.
const WRITE_TIMEOUT: Duration = Duration::from_secs(90);

/// Serves what `app` gives for each request until `shutdown`, then closes the listener and waits for the connections to end.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    app: impl Fn() -> Router + Clone + Send + 'static,
    shutdown: impl Future<Output = ()>,
) {
    let connections = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (io, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let app = app.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let answer = TowerToHyperService::new(app()).call(request);
            async { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(Unread::new(io, WRITE_TIMEOUT)), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}
