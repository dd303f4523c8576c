//! The program: a command line to a [`Command`], and what that does until a signal.

mod print;
mod serve;
mod signals;
mod status_line;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context, Result};
use model_qwen::chat_template::{RENDER_TEMPLATES, render_in_processes, serve_renders};
use tracing_subscriber::EnvFilter;

pub(crate) use self::print::print;
use self::serve::{load, serve};
use self::signals::{INTERRUPTED, signaled, signals};
use crate::batch::{self, Progress, RunBatch};
use crate::bench::Bench;
use crate::command::Command;
use crate::config::{Config, ConfigError};
use crate::engine::{StartError, StartProgress};
use crate::finetuning::JOB_COMMAND;

/// Does what a command line says, the program's name first, and prints what comes of it. The status is 2 if the settings are
/// wrong (the command line, or a file of settings that it names), and 1 for what fails later.
pub fn run(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command_line: Vec<OsString> = command_line.into_iter().collect();
    if command_line.get(1).is_some_and(|word| word == JOB_COMMAND) {
        log_to_stderr();
        return run_job_process();
    }
    if is_renderer(&command_line) {
        return serve_renders();
    }
    model_qwen::sys::share_freed_memory();
    log_to_stderr();
    let result = match Command::from_command_line(command_line) {
        Ok(command) => start(&command),
        // Prints help and version to stdout with status 0, errors to stderr with status 2.
        Err(ConfigError::Usage(error)) => error.exit(),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let code = exit_code(&error);
            let error = model_qwen::with_causes(error.as_ref());
            // Without stderr the status remains.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            code
        }
    }
}

/// Works on one job of a server, which is who ends it: a signal to both is for the server.
pub(crate) fn run_job_process() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return ExitCode::FAILURE;
    };
    #[cfg(unix)]
    let _guard = runtime.enter();
    #[cfg(unix)]
    let _ignored = {
        use tokio::signal::unix::{SignalKind, signal};
        // From now on nothing happens at these signals.
        [SignalKind::terminate(), SignalKind::interrupt()].map(signal)
    };
    #[cfg(not(unix))]
    drop(runtime);
    crate::finetuning::run_job()
}

/// The status of a program whose settings are wrong, as clap has it.
pub(crate) const WRONG_SETTINGS: u8 = 2;

/// 2 for settings, 1 for what failed while the program ran.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let start = error.downcast_ref().map(StartError::is_of_settings);
    match error.is::<ConfigError>() || start.unwrap_or(false) {
        true => ExitCode::from(WRONG_SETTINGS),
        false => ExitCode::FAILURE,
    }
}

/// Whether another process of this program wants templates rendered.
pub(crate) fn is_renderer(command_line: &[OsString]) -> bool {
    command_line.len() == 2 && command_line[1] == RENDER_TEMPLATES
}

/// Templates of clients run in processes that end when a template does too much.
fn render_apart(config: &Config) -> Result<()> {
    if !config.api.trust_request_chat_template {
        return Ok(());
    }
    render_in_processes().context(
        "--trust-request-chat-template needs processes that render the templates, and none can be started",
    )
}

pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| status_line::Log)
        .with_ansi(std::io::stderr().is_terminal())
        // A closed stderr ends no server.
        .log_internal_errors(false)
        .init();
}

fn start(command: &Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(carry_out(command));
    // Requests that outlived --shutdown-timeout do not hold the process.
    runtime.shutdown_background();
    result
}

async fn carry_out(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Serve(config) => {
            render_apart(config)?;
            serve(config).await.map(|()| ExitCode::SUCCESS)
        }
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

/// Answers a file of requests.
async fn run_batch(batch: &RunBatch) -> Result<ExitCode> {
    let signals = signals()?;
    let files = batch.open()?;
    render_apart(&batch.config)?;
    let Some(state) = load(&batch.config, &StartProgress::default(), &signals).await? else {
        return Ok(INTERRUPTED.into());
    };
    let progress = Progress::new(files.num_bytes);
    let app = crate::app(state);
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
