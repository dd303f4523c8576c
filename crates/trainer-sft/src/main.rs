//! `trainer-sft`: settings in, adapter folder out.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tracing_subscriber::EnvFilter;
use trainer_sft::Training;
use trainer_sft::args::{Args, ArgsError};
use trainer_sft::chat_format::ChatFormat;
use trainer_sft::config::Config;
use trainer_sft::data::{Datasets, Records};
use trainer_sft::preview::preview;

fn main() -> ExitCode {
    model_qwen::sys::keep_freed_memory();
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let config = match Args::parse_config(std::env::args_os()) {
        Ok(config) => config,
        Err(ArgsError::Clap(error)) => error.exit(),
        Err(error) => return Err(error.into()),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    match config.run.preview {
        Some(count) => show(&config, count).map(|()| ExitCode::SUCCESS),
        None => train(&config),
    }
}

fn show(config: &Config, count: usize) -> Result<()> {
    let format = ChatFormat::load(config)?;
    let data = Datasets::load(config, &format, Records::default())?;
    let mut out = std::io::stdout();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    write_out(
        &mut out,
        &preview(&data.train.examples, &format.tokenizer, count, colour),
    )
}

fn train(config: &Config) -> Result<ExitCode> {
    tracing::info!("output folder: {}", config.run.output.display());
    let summary = Training::new(config)
        .stop_when(stop_at_signal()?)
        .progress_bar(true)
        .run()?;
    let (what_next, code) = match summary.stopped {
        // As a shell reports a program that SIGINT has ended.
        Some(_) => (String::new(), ExitCode::from(130)),
        None => (serve_command(config) + "\n", ExitCode::SUCCESS),
    };
    write_out(&mut std::io::stdout(), &format!("{summary}\n{what_next}"))?;
    Ok(code)
}

/// Becomes true at Ctrl-C; the second one ends the program.
fn stop_at_signal() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        let told = "\nstopping after this step, with a checkpoint; once more to end at once\n";
        // The terminal may be gone.
        let _ = std::io::stderr().write_all(told.as_bytes());
    })?;
    Ok(&STOP)
}

/// How to talk to the result.
fn serve_command(config: &Config) -> String {
    let output = config.run.output.display();
    if config.run.full {
        return format!("Serve it: cargo run -p server -- --model {output}");
    }
    let name = config
        .run
        .output
        .file_name()
        .map_or_else(|| "adapter".into(), |name| name.to_string_lossy());
    let model = config
        .model
        .model
        .as_ref()
        .map_or_else(String::new, |model| format!("--model {model} "));
    format!("Serve it: cargo run -p server -- {model}--enable-lora --lora-modules {name}={output}")
}

/// Writes to standard output; a reader that goes away (`| head`) is no error.
fn write_out(out: &mut impl Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
