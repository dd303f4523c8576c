//! The publisher's thread.

use std::future::Future;
use std::io;
use std::net::{TcpListener as StdListener, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use super::batch::Batch;
use super::peer::Subscribers;
use super::replay::Replay;
use super::wire::encode;
use super::zmtp::message;
use crate::config::{Endpoint, KvEventsConfig};

/// Most connections to one address.
const MAX_PEERS: usize = 256;
/// Pause between two attempts to connect.
const RECONNECT: Duration = Duration::from_secs(1);

/// Why nothing is published.
#[derive(Debug, thiserror::Error)]
#[error("--kv-events-config: {key}: cannot {attempt} {address}: {source}")]
pub struct ListenError {
    key: &'static str,
    attempt: &'static str,
    address: String,
    source: io::Error,
}

/// Where subscribers come from.
enum Source {
    Listener(StdListener),
    Address(String),
}

fn source(key: &'static str, endpoint: &Endpoint) -> Result<Source, ListenError> {
    match endpoint {
        Endpoint::Bind(address) => listen(key, address).map(Source::Listener),
        Endpoint::Connect(address) => {
            check_host(key, address)?;
            Ok(Source::Address(address.clone()))
        }
    }
}

/// Whoever is to be connected to may come later, but its name must be known now: a misspelled one would be silent.
fn check_host(key: &'static str, address: &str) -> Result<(), ListenError> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let found = address
        .to_socket_addrs()
        .and_then(|mut addresses| addresses.next().ok_or_else(none));
    let failed = |source| ListenError {
        key,
        attempt: "find the host of",
        address: address.to_owned(),
        source,
    };
    found.map(drop).map_err(failed)
}

fn listen(key: &'static str, address: &str) -> Result<StdListener, ListenError> {
    let bound = StdListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        tracing::info!(key, address = %listener.local_addr()?, "KV cache events");
        Ok(listener)
    });
    bound.map_err(|source| ListenError {
        key,
        attempt: "listen on",
        address: address.to_owned(),
        source,
    })
}

/// Starts the thread, which ends when no batch can come any more.
///
/// # Errors
/// [`ListenError`].
pub(super) fn start(
    config: &KvEventsConfig,
    batches: mpsc::Receiver<Batch>,
    num_dropped: Arc<AtomicU64>,
) -> Result<(), ListenError> {
    let subscribers = source("endpoint", &config.endpoint)?;
    let replay = config.replay_endpoint.as_ref();
    let replay = replay.map(|endpoint| source("replay_endpoint", endpoint));
    let replay = replay.transpose()?;
    let config = config.clone();
    let failed = |source| ListenError {
        key: "endpoint",
        attempt: "start",
        address: "a thread of its own".to_owned(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(failed)?;
    let run = move || {
        let end = runtime.block_on(run(&config, (subscribers, replay), batches, num_dropped));
        if let Err(error) = end {
            tracing::error!(%error, "KV cache events are not published any more");
        }
    };
    let thread = std::thread::Builder::new().name("kv-events".to_owned());
    thread.spawn(run).map_err(failed)?;
    Ok(())
}

async fn run(
    config: &KvEventsConfig,
    (source, replay_source): (Source, Option<Source>),
    mut batches: mpsc::Receiver<Batch>,
    num_dropped: Arc<AtomicU64>,
) -> io::Result<()> {
    let topic = config.topic.as_bytes();
    let subscribers = Arc::new(Subscribers::new(config.hwm, num_dropped));
    let replay = Arc::new(Replay::new(config.buffer_steps, topic, config.format));
    meet(source, {
        let subscribers = Arc::clone(&subscribers);
        move |stream| {
            let subscribers = Arc::clone(&subscribers);
            async move { subscribers.serve(stream).await }
        }
    })?;
    let replays = replay_source.is_some();
    if let Some(source) = replay_source {
        let replay = Arc::clone(&replay);
        meet(source, move |stream| {
            let replay = Arc::clone(&replay);
            async move { replay.serve(stream).await }
        })?;
    }
    while let Some(batch) = batches.recv().await {
        let payload = encode(&batch, config.format).map_err(io::Error::other)?;
        let bytes = message(&[topic, &batch.number.to_be_bytes(), &payload]);
        if replays {
            replay.keep(batch.number, payload.into());
        }
        subscribers.send(topic, &bytes.into());
    }
    Ok(())
}

/// Serves each connection in a task.
fn meet<F, S>(source: Source, serve: F) -> io::Result<()>
where
    F: Fn(TcpStream) -> S + Send + 'static,
    S: Future<Output = io::Result<()>> + Send + 'static,
{
    match source {
        Source::Listener(listener) => {
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(accept(listener, serve));
        }
        Source::Address(address) => {
            tokio::spawn(async move {
                loop {
                    let end = match TcpStream::connect(&address).await {
                        Ok(stream) => serve(stream).await,
                        Err(error) => Err(error),
                    };
                    tracing::debug!(?end, address, "a connection for KV cache events has ended");
                    sleep(RECONNECT).await;
                }
            });
        }
    }
    Ok(())
}

async fn accept<F, S>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream) -> S,
    S: Future<Output = io::Result<()>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_PEERS));
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = serve(stream);
                tokio::spawn(async move {
                    let end = served.await;
                    tracing::debug!(?end, "a connection for KV cache events has ended");
                    drop(place);
                });
            }
            // As when there are too many open files.
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection for KV cache events");
                sleep(RECONNECT).await;
            }
        }
    }
}
