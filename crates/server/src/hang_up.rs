//! Clients that go away while their request runs.
//!
//! hyper looks for the end of a connection only when it holds none of the client's bytes. One byte after the body, or a next
//! request, and it would learn of the end with the answer's first byte. So what comes is read ahead here.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a client that sends no more may wait for more of its answer. It may have closed only its own side.
const PATIENCE: Duration = Duration::from_secs(1);

/// Most bytes read ahead. The end behind more of them is not seen.
const AHEAD: usize = 16 << 10;

/// A connection that is read ahead.
pub(crate) struct Watched<I>(Arc<Mutex<State<I>>>);

impl<I> Clone for Watched<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct State<I> {
    io: I,
    /// What hyper has not read yet.
    ahead: Vec<u8>,
    /// Whether the client's side has ended, by an error perhaps.
    end: Option<Result<(), io::ErrorKind>>,
    /// Runs from the end, or from the last write after it.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Watched<I> {
    pub(crate) fn new(io: I) -> Self {
        Self(Arc::new(Mutex::new(State {
            io,
            ahead: Vec::new(),
            end: None,
            patience: None,
        })))
    }

    /// What `connection`, which reads and writes this, comes to; `None` if its client went away before.
    pub(crate) fn unless_gone<T>(
        &self,
        connection: impl Future<Output = T>,
    ) -> impl Future<Output = Option<T>> {
        let state = self.0.clone();
        async move {
            let mut connection = pin!(connection);
            // Both in one task, whose waker the socket has.
            poll_fn(|context| match connection.as_mut().poll(context) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending => lock(&state).poll_gone(context).map(|()| None),
            })
            .await
        }
    }
}

fn lock<I>(state: &Mutex<State<I>>) -> MutexGuard<'_, State<I>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<I: AsyncRead + Unpin> State<I> {
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.end.is_none() {
            let room = AHEAD.saturating_sub(self.ahead.len());
            if room == 0 {
                return Poll::Pending;
            }
            let mut bytes = [0; 1 << 10];
            let num = room.min(bytes.len());
            let mut buffer = ReadBuf::new(&mut bytes[..num]);
            let read = ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer));
            match (read, buffer.filled()) {
                (Err(error), _) => self.end = Some(Err(error.kind())),
                (Ok(()), []) => self.end = Some(Ok(())),
                (Ok(()), filled) => self.ahead.extend_from_slice(filled),
            }
            // The connection may wait for this.
            context.waker().wake_by_ref();
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        patience.as_mut().poll(context)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0);
        if !state.ahead.is_empty() {
            let num = state.ahead.len().min(buffer.remaining());
            buffer.put_slice(&state.ahead[..num]);
            state.ahead.drain(..num);
            return Poll::Ready(Ok(()));
        }
        match state.end {
            Some(end) => Poll::Ready(end.map_err(io::Error::from)),
            None => Pin::new(&mut state.io).poll_read(context, buffer),
        }
    }
}

impl<I: AsyncWrite + Unpin> Watched<I> {
    /// Writes, and is patient again with a client that takes something.
    fn write(
        &self,
        write: impl FnOnce(Pin<&mut I>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        let written = write(Pin::new(&mut state.io));
        if written.is_ready() {
            state.patience = None;
        }
        written
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(|io| io.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|io| io.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_shutdown(context)
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::io::{Read as _, Write as _};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream as Client;
    use std::time::Instant;

    use tokio::net::UnixStream;

    /// A connection, and its client, which has sent the end of a line.
    fn pair() -> (Watched<UnixStream>, Client) {
        let (ours, mut client) = Client::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        client.write_all(b"\r\n").unwrap();
        (Watched::new(UnixStream::from_std(ours).unwrap()), client)
    }

    #[tokio::test]
    async fn an_end_behind_bytes_is_seen_on_unix_sockets() {
        let (mut watched, client) = pair();
        drop(client);
        let start = Instant::now();
        let gone = watched.unless_gone(pending::<()>()).await;
        assert!(gone.is_none() && start.elapsed() < 2 * PATIENCE);
        // What was read ahead is not lost.
        let mut bytes = [0; 8];
        let mut read = ReadBuf::new(&mut bytes);
        for _ in 0..2 {
            poll_fn(|context| Pin::new(&mut watched).poll_read(context, &mut read))
                .await
                .unwrap();
        }
        assert_eq!(read.filled(), b"\r\n");
    }

    #[tokio::test]
    async fn a_client_that_takes_its_answer_is_not_gone() {
        let (watched, mut client) = pair();
        client.shutdown(Shutdown::Write).unwrap();
        let mut writer = watched.clone();
        let answer = async move {
            for _ in 0..4 {
                sleep(PATIENCE * 2 / 5).await;
                let write = poll_fn(|context| Pin::new(&mut writer).poll_write(context, b"a"));
                assert_eq!(write.await.unwrap(), 1);
            }
        };
        assert!(watched.unless_gone(answer).await.is_some());
        drop(watched);
        let mut read = String::new();
        client.read_to_string(&mut read).unwrap();
        assert_eq!(read, "aaaa");
    }
}
