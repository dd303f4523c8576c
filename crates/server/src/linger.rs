//! Lingering close: what is left of a request is read and dropped after an early answer.
//!
//! A client that is still sending its body reads no answer. If the connection were closed then, it would see a broken pipe
//! in place of the 401 or 413.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Longest time that a rest is read for, and longest wait for more of it.
const WHOLE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(5);
/// The same once the server ends: no request runs any more, and the client has had its answer.
const LAST: Duration = Duration::from_secs(1);

/// A body of a request whose rest is read even if nobody wants it.
pub(crate) struct Lingering<B: HttpBody<Data = Bytes> + Unpin + Send + 'static> {
    /// `None` when there is nothing left to read.
    body: Option<B>,
    /// Whether the client sends nothing before somebody reads, because of `Expect: 100-continue`.
    waits: bool,
    /// Whether the server ends.
    ends: watch::Receiver<bool>,
}

impl<B: HttpBody<Data = Bytes> + Unpin + Send + 'static> Lingering<B> {
    pub(crate) fn new(body: B, expects_continue: bool, ends: watch::Receiver<bool>) -> Self {
        Self {
            body: Some(body),
            waits: expects_continue,
            ends,
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin + Send + 'static> HttpBody for Lingering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let none = || SizeHint::with_exact(0);
        self.body.as_ref().map_or_else(none, HttpBody::size_hint)
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin + Send + 'static> Drop for Lingering<B> {
    fn drop(&mut self) {
        let body = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(body), false, Ok(runtime)) = (body, self.waits, Handle::try_current()) {
            let mut ends = self.ends.clone();
            runtime.spawn(async move {
                let last = async {
                    // An error says that the server has ended.
                    let _ = ends.wait_for(|ends| *ends).await;
                    sleep(LAST).await;
                };
                tokio::select! {
                    _ = timeout(WHOLE, drain(body)) => {}
                    () = last => {}
                }
            });
        }
    }
}

async fn drain(mut body: impl HttpBody<Data = Bytes> + Unpin) {
    let mut frame = async || {
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        matches!(timeout(PAUSE, next).await, Ok(Some(Ok(_))))
    };
    while frame().await {}
}
