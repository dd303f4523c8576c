//! Serves a model over HTTP, from before it is loaded.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::pin::pin;

use anyhow::{Context, Result};
use axum::serve::{Listener, ListenerExt};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use super::print::print;
use super::signals::{signaled, signals};
use super::status_line;
use crate::config::{Config, Listen};
use crate::engine::{Engine, StartProgress};
use crate::state::AppState;

/// Most open files that the server asks for.
#[cfg(unix)]
const MAX_FILES: u64 = 65_536;

pub(super) async fn serve(config: &Config) -> Result<()> {
    let signals = signals()?;
    #[cfg(unix)]
    allow_many_connections();
    // The port is taken before the model is loaded, so that a busy one is known at once. Until then the answer is 503.
    match &config.listen {
        Listen::Tcp { host, port } => {
            let bound = TcpListener::bind((host.as_str(), *port)).await;
            let listener = bound.map_err(|error| {
                let hint = match error.kind() {
                    ErrorKind::AddrInUse => "is another server running? choose another --port",
                    ErrorKind::PermissionDenied => "choose a --port above 1023",
                    _ => "--host: expected an address of this machine, as 127.0.0.1 or 0.0.0.0",
                };
                anyhow::Error::new(error)
                    .context(format!("cannot listen on {host}:{port} ({hint})"))
            })?;
            let address = listener
                .local_addr()
                .context("cannot read the address of the socket")?;
            warn_if_open(config, address.ip());
            let listener = listener.tap_io(|stream| {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
            });
            serve_on(
                listener,
                config,
                signals,
                &format!("http://{address}"),
                "curl",
            )
            .await
        }
        #[cfg(unix)]
        Listen::Unix(path) => {
            let listener = bind_unix(path)?;
            let curl = format!("curl --unix-socket {}", path.display());
            let served = serve_on(listener, config, signals, "http://localhost", &curl).await;
            let removed = std::fs::remove_file(path)
                .with_context(|| format!("cannot remove {}", path.display()));
            served.and(removed)
        }
        #[cfg(not(unix))]
        Listen::Unix(_) => anyhow::bail!("--uds: this system has no Unix domain sockets"),
    }
}

/// Each connection is a file, of which a process may often have no more than 1024 open unless it asks for more.
#[cfg(unix)]
fn allow_many_connections() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MAX_FILES).min(MAX_FILES);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "cannot raise the limit of open files");
        }
    }
}

/// Says that everybody may use the server, where other machines reach it.
fn warn_if_open(config: &Config, address: IpAddr) {
    if config.api_keys.is_empty() && !address.to_canonical().is_loopback() {
        tracing::warn!(
            %address,
            "other machines reach this address, and nobody needs a key: set VLLM_API_KEY or --api-key-file, or listen on 127.0.0.1 (--host)"
        );
    }
}

/// Loads the model while the listener answers that it is being loaded, then serves it.
async fn serve_on<L: Listener>(
    listener: L,
    config: &Config,
    signals: watch::Receiver<bool>,
    url: &str,
    curl: &str,
) -> Result<()> {
    let (sender, receiver) = oneshot::channel();
    let loaded = async {
        match receiver.await {
            Ok(state) => state,
            Err(_) => std::future::pending().await,
        }
    };
    let progress = StartProgress::default();
    let loading = crate::Loading {
        progress: progress.clone(),
        cors: config.api.cors.clone(),
        page: config.api.page,
    };
    let mut serving = pin!(crate::run_loading(
        listener,
        loaded,
        loading,
        signaled(signals.clone())
    ));
    let state = tokio::select! {
        state = load(config, &progress, &signals) => state?,
        () = &mut serving => None,
        never = status_line::show(&progress) => match never {},
    };
    let Some(state) = state else { return Ok(()) };
    // The receiver lives as long as `serving`, which takes the model up before anybody is told of it.
    let _ = sender.send(state.clone());
    tokio::select! {
        biased;
        () = &mut serving => return Ok(()),
        () = std::future::ready(()) => {}
    }
    announce(&state, config, url, curl)?;
    serving.await;
    Ok(())
}

/// Binds a Unix domain socket; one that a dead server left behind is replaced.
#[cfg(unix)]
fn bind_unix(path: &std::path::Path) -> Result<tokio::net::UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::UnixStream;

    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    tokio::net::UnixListener::bind(path)
        .with_context(|| format!("cannot listen on {} (--uds)", path.display()))
}

/// Loads the model and starts the engine; `None` if a signal came first.
pub(super) async fn load(
    config: &Config,
    progress: &StartProgress,
    signals: &watch::Receiver<bool>,
) -> Result<Option<AppState>> {
    tokio::select! {
        started = Engine::start_owned(config, progress) => {
            let (engine, model) = started?;
            let state = AppState::new(config, engine, model);
            state.start_finetuning(config)?;
            Ok(Some(state))
        }
        () = signaled(signals.clone()) => Ok(None),
    }
}

/// Prints where the server is, a command to try it, and where the page is.
fn announce(state: &AppState, config: &Config, url: &str, curl: &str) -> Result<()> {
    let model = &state.served_model_names()[0];
    let key = match config.api_keys.is_empty() {
        true => "",
        false => " -H \"Authorization: Bearer $VLLM_API_KEY\"",
    };
    // Browsers open no Unix domain sockets.
    let page = match &config.listen {
        Listen::Tcp { .. } if config.api.page => {
            format!("Or open {} in a browser.\n\n", from_here(url))
        }
        _ => String::new(),
    };
    let pooling = state.model().pooling.as_ref();
    let (path, body) = example(model, pooling.map(|pooling| pooling.score.is_some()));
    let body = body.to_string().replace('\'', "'\\''");
    let table = &state.model().memory_table;
    print(&format!(
        "{table}\n\nServing {model} at {url}. Try:\n\n  \
         {curl} {url}{path}{key} -H 'Content-Type: application/json' -d '{body}'\n\n{page}"
    ))
}

/// A request that the model can answer, which generates text unless it pools: to scores, or to vectors.
fn example(model: &str, scores: Option<bool>) -> (&'static str, serde_json::Value) {
    let input = || serde_json::json!({ "model": model, "input": "Hello!" });
    match scores {
        None => {
            let messages = serde_json::json!([{ "role": "user", "content": "Hello!" }]);
            let body = serde_json::json!({ "model": model, "messages": messages });
            ("/v1/chat/completions", body)
        }
        Some(true) => ("/classify", input()),
        Some(false) => ("/v1/embeddings", input()),
    }
}

/// The address at which a browser of this machine reaches a server that listens on all addresses.
fn from_here(url: &str) -> String {
    url.replace("://0.0.0.0:", "://127.0.0.1:")
        .replace("://[::]:", "://[::1]:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_an_address_that_it_can_open() {
        for (url, expected) in [
            ("http://0.0.0.0:8000", "http://127.0.0.1:8000"),
            ("http://[::]:80", "http://[::1]:80"),
            ("http://10.0.0.0:8000", "http://10.0.0.0:8000"),
        ] {
            assert_eq!(from_here(url), expected);
        }
    }

    #[test]
    fn the_example_is_of_what_the_model_does() {
        for (scores, path, field) in [
            (None, "/v1/chat/completions", "messages"),
            (Some(false), "/v1/embeddings", "input"),
            (Some(true), "/classify", "input"),
        ] {
            let (found, body) = example("m", scores);
            assert_eq!((found, &body["model"]), (path, &"m".into()));
            assert!(!body[field].is_null(), "{body}");
        }
    }
}
