//! Connections: HTTP/1.1 with time limits, and an end that lets running requests finish.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::header::EXPECT;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::hang_up::Watched;
use crate::linger::Lingering;
use crate::unread::Unread;

/// Longest wait for the head of a request, on a new connection or after the last request of an old one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for a client to take more of an answer. A stream ends before, see `stream.rs`.
const WRITE_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a connection without a request stays open after the signal: its client may have sent one that is still on its way.
const LAST_REQUEST: Duration = Duration::from_millis(300);

/// Serves what `app` gives for each request until `shutdown`. Then each connection ends after its request, while new connections
/// still learn from `app` that there is nothing for them here; the listener is closed when the old ones have ended.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    app: impl Fn() -> Router + Clone + Send + 'static,
    shutdown: impl Future<Output = ()>,
) {
    let (connections, late) = (GracefulShutdown::new(), GracefulShutdown::new());
    let (ending, ends) = watch::channel(false);
    accept(&mut listener, &app, &connections, &ends, true, shutdown).await;
    ending.send_replace(true);
    let ended = async {
        sleep(LAST_REQUEST).await;
        connections.shutdown().await;
    };
    accept(&mut listener, &app, &late, &ends, false, ended).await;
    drop(listener);
    late.shutdown().await;
}

/// Serves connections until `end`. Without `keeps`, each has one request.
async fn accept<L: Listener>(
    listener: &mut L,
    app: &(impl Fn() -> Router + Clone + Send + 'static),
    connections: &GracefulShutdown,
    ends: &watch::Receiver<bool>,
    keeps: bool,
    end: impl Future<Output = ()>,
) {
    let mut end = pin!(end);
    loop {
        let (io, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => return,
        };
        let (app, ends) = (app.clone(), ends.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let expects = request.headers().contains_key(EXPECT);
            let request = request.map(|body| Lingering::new(body, expects, ends.clone()));
            let answer = TowerToHyperService::new(app()).call(request);
            async { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
        });
        let io = Watched::new(io);
        let watch = Watched::clone(&io);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(keeps)
            .serve_connection(TokioIo::new(Unread::new(io, WRITE_TIMEOUT)), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            match watch.unless_gone(connection).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!(%error, "a connection ended early"),
                None => tracing::debug!("a client went away before its answer"),
            }
        });
    }
}
