//! The `server` program: a command line to a [`Command`], and what that does until a signal.

use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;
use std::process::ExitCode;

use anyhow::{Context, Result};
use axum::serve::{Listener, ListenerExt};
use server::batch::{self, Progress, RunBatch};
use server::bench::Bench;
use server::command::Command;
use server::config::{Config, ConfigError, Listen};
use server::engine::Engine;
use server::state::AppState;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    model_qwen::sys::share_freed_memory();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A closed stderr ends no server.
        .log_internal_errors(false)
        .init();
    let result = match Command::from_command_line(std::env::args_os()) {
        Ok(command) => start(&command),
        // Prints help and version to stdout with status 0, errors to stderr with status 2.
        Err(ConfigError::Usage(error)) => error.exit(),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let error = model_qwen::with_causes(error.as_ref());
            // Without stderr the status remains.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: &Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(run(command));
    // Requests that outlived --shutdown-timeout do not hold the process.
    runtime.shutdown_background();
    result
}

async fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Serve(config) => serve(config).await.map(|()| ExitCode::SUCCESS),
        Command::RunBatch(batch) => run_batch(batch).await,
        Command::Bench(bench) => run_bench(bench).await,
    }
}

/// Measures, and prints the result.
async fn run_bench(bench: &Bench) -> Result<ExitCode> {
    let measured = bench.run().await?;
    print(&measured.text)?;
    match measured.error {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Writes to stdout. A reader that wants no more is no error.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// Answers a file of requests.
async fn run_batch(batch: &RunBatch) -> Result<ExitCode> {
    let signals = signals()?;
    let files = batch.open()?;
    let Some(state) = load(&batch.config, &signals).await? else {
        return Ok(INTERRUPTED.into());
    };
    let progress = Progress::new(files.num_bytes);
    let app = server::app(state);
    let stop = signaled(signals);
    let summary = match batch::run(app, files, batch.options(), progress, stop).await {
        // The reader, such as `head`, wants no more.
        Err(error)
            if error.kind() == io::ErrorKind::BrokenPipe && batch.args.output_file == "-" =>
        {
            return Ok(ExitCode::SUCCESS);
        }
        summary => summary?,
    };
    let (answered, failed) = (summary.num_answered, summary.num_failed);
    let output = &batch.args.output_file;
    if summary.stopped {
        tracing::warn!(
            answered,
            failed,
            output,
            "the batch was stopped before its end"
        );
        return Ok(INTERRUPTED.into());
    }
    tracing::info!(answered, failed, output, "the batch is complete");
    Ok(ExitCode::SUCCESS)
}

/// The status of a process that a signal ends.
const INTERRUPTED: u8 = 130;

async fn serve(config: &Config) -> Result<()> {
    let signals = signals()?;
    // The port is taken before the model is loaded, so that a busy one is known at once. Until then the answer is 503.
    match &config.listen {
        Listen::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port)).await.with_context(|| {
                format!("cannot listen on {host}:{port} (is another server running? choose another --port)")
            })?;
            let address = listener
                .local_addr()
                .context("cannot read the address of the socket")?;
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
    let mut serving = pin!(server::run_loading(
        listener,
        loaded,
        signaled(signals.clone())
    ));
    let state = tokio::select! {
        state = load(config, &signals) => state?,
        () = &mut serving => None,
    };
    let Some(state) = state else { return Ok(()) };
    announce(&state, config, url, curl)?;
    // The receiver lives as long as `serving`.
    let _ = sender.send(state);
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
async fn load(config: &Config, signals: &watch::Receiver<bool>) -> Result<Option<AppState>> {
    tokio::select! {
        started = Engine::start_owned(config) => {
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
        Listen::Tcp { .. } if config.api.page => format!("Or open {url} in a browser.\n\n"),
        _ => String::new(),
    };
    let body = serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "Hello!" }] });
    let body = body.to_string().replace('\'', "'\\''");
    let table = &state.model().memory_table;
    print(&format!(
        "{table}\n\nServing {model} at {url}. Try:\n\n  \
         {curl} {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'\n\n{page}"
    ))
}

/// Becomes true at the first SIGTERM or Ctrl-C; a second one ends the process at once.
fn signals() -> Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?
    };
    tokio::spawn(async move {
        loop {
            #[cfg(unix)]
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            #[cfg(not(unix))]
            let _ = tokio::signal::ctrl_c().await;
            if sender.send_replace(true) {
                std::process::exit(INTERRUPTED.into());
            }
        }
    });
    Ok(receiver)
}

/// Completes at the first signal.
async fn signaled(mut signals: watch::Receiver<bool>) {
    if signals.wait_for(|&signaled| signaled).await.is_err() {
        // Without a signal task there is nothing to wait for.
        std::future::pending::<()>().await;
    }
}
