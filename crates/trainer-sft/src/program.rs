//! The program: a command line to a run or a [`Tool`], and what that does until a signal.

mod signals;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use lora_4bit::peft::LoraConfig;
use model_qwen::Quantization;
use tracing_subscriber::EnvFilter;

pub use crate::commands::Commands;
use crate::commands::quoted;

use crate::args::{Args, ArgsError};
use crate::chat_format::{ChatFormat, ModelFilesError};
use crate::config::Config;
use crate::data::Dataset;
use crate::metrics::AboveBar;
use crate::preview::preview;
use crate::tools::{End, Tool, ToolError};
use crate::{Summary, TrainError, Training};

/// Does what a command line says, the program's name first, and prints what comes of it. A wrong command line ends the process
/// with status 2.
pub fn run(command_line: impl IntoIterator<Item = OsString>, commands: Commands) -> ExitCode {
    model_qwen::sys::keep_freed_memory();
    match carry_out(command_line.into_iter().collect(), commands) {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(TrainError::Stopped)) => {
            say(&error);
            ExitCode::from(signals::exit_code())
        }
        Err(error) => {
            say(format_args!(
                "error: {}",
                model_qwen::with_causes(error.as_ref())
            ));
            match is_of_command_line(&error) {
                true => ExitCode::from(WRONG_COMMAND_LINE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Writes a line to standard error. Where nobody reads it, the exit code still says how the program has ended.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The exit code of a command line that cannot be carried out, as clap has it.
const WRONG_COMMAND_LINE: u8 = 2;

/// Whether what is wrong is the command line, or the file of settings that it names.
fn is_of_command_line(error: &anyhow::Error) -> bool {
    let run = error.downcast_ref().map(TrainError::is_of_settings);
    let tool = error.downcast_ref().map(ToolError::is_of_settings);
    let model = error.downcast_ref().map(ModelFilesError::is_of_settings);
    error.is::<ArgsError>() || run.or(tool).or(model).unwrap_or(false)
}

fn carry_out(command_line: Vec<OsString>, commands: Commands) -> Result<ExitCode> {
    if let Some(tool) = Tool::parse(command_line.iter().cloned()) {
        return use_tool(tool.unwrap_or_else(|error| error.exit()), commands);
    }
    let config = match Args::parse_config(command_line) {
        Ok(config) => config,
        Err(ArgsError::Clap(error)) => error.exit(),
        Err(error) => return Err(error.into()),
    };
    log_to_stderr();
    if config.memory.dry_run {
        let planned = Training::new(&config).plan()?;
        write_out(&mut std::io::stdout(), &format!("{planned}\n"))?;
        return Ok(match planned.refusal {
            None => ExitCode::SUCCESS,
            Some(_) => ExitCode::FAILURE,
        });
    }
    match config.run.preview {
        Some(count) => show(&config, count).map(|()| ExitCode::SUCCESS),
        None => train(&config, commands),
    }
}

fn log_to_stderr() {
    // Each generation captures its own CUDA graphs.
    let default = "info,model_qwen::graph_runner=warn";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| AboveBar)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        // A terminal that is gone ends no run.
        .log_internal_errors(false)
        .init();
}

/// A command that is no run.
fn use_tool(tool: Tool, commands: Commands) -> Result<ExitCode> {
    log_to_stderr();
    if tool.writes() {
        signals::watch()?;
        signals::stop_between_tensors();
    }
    if tool.talks() {
        signals::watch()?;
        signals::stop_answers();
    }
    let said = match tool.run(&signals::STOP, commands) {
        Err(error) if error.is_stopped() => return Ok(ExitCode::from(signals::exit_code())),
        said => said?,
    };
    let written = write_out(&mut std::io::stdout(), &said.text);
    match said.end {
        End::Stopped => Ok(stopped(written)),
        End::Well => written.map(|()| ExitCode::SUCCESS),
        End::Problems => written.map(|()| ExitCode::FAILURE),
    }
}

fn show(config: &Config, count: usize) -> Result<()> {
    let format = ChatFormat::load(config)?;
    let train = Dataset::of(config, &format)?;
    let mut out = std::io::stdout();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let shown = preview(&train.examples, &format.tokenizer, count, colour)?;
    write_out(&mut out, &shown)
}

fn train(config: &Config, commands: Commands) -> Result<ExitCode> {
    signals::watch()?;
    let summary = Training::new(config)
        .stop_when(&signals::STOP)
        .on_start(signals::stop_after_a_step)
        .progress_bar(true)
        .run()?;
    let what_next = match summary.stopped {
        Some(_) => String::new(),
        None => serve_command(config, &summary, commands)? + "\n",
    };
    let folder = summary.stopped.as_ref().unwrap_or(&summary.output);
    let written = write_out(&mut std::io::stdout(), &format!("{summary}\n{what_next}"))
        .with_context(|| format!("what was learnt is in {}", folder.display()));
    match summary.stopped {
        Some(_) => Ok(stopped(written)),
        None => written.map(|()| ExitCode::SUCCESS),
    }
}

/// The exit code of what a signal has ended, whether or not somebody reads what was said at its end.
fn stopped(written: Result<()>) -> ExitCode {
    if let Err(error) = written {
        say(format_args!("{error:#}"));
    }
    ExitCode::from(signals::exit_code())
}

/// Whether the adapter that a run has written has whole weights, too.
fn has_saved_modules(folder: &Path) -> Result<bool> {
    let config = LoraConfig::from_json(&std::fs::read(folder.join("adapter_config.json"))?)?;
    Ok(!config.modules_to_save.is_empty())
}

/// The name by which requests ask for the adapter of a folder.
fn adapter_name(folder: &Path, base: Option<&str>) -> String {
    let name = folder
        .file_name()
        .map_or_else(|| "adapter".into(), |name| name.to_string_lossy());
    // A word of a command line, and of requests.
    let name = name.split_whitespace().collect::<Vec<_>>().join("-");
    // What stands before the first `=` is the name, and the base model keeps its own.
    let name = name.replace('=', "-");
    if base.unwrap_or("bundled") == name {
        return name + "-adapter";
    }
    name
}

/// How to talk to the result.
fn serve_command(config: &Config, summary: &Summary, commands: Commands) -> Result<String> {
    let Commands { serve, tool, .. } = commands;
    let folder = summary.output.display().to_string();
    let output = quoted(&folder);
    if config.run.full {
        return Ok(format!("Serve it: {serve} --model {output}"));
    }
    let name = adapter_name(&summary.output, config.model.model.as_deref());
    let model = config
        .model
        .model
        .as_ref()
        .map_or_else(String::new, |model| format!("--model {} ", quoted(model)));
    if has_saved_modules(&summary.output)? {
        let merged = quoted(&format!("{folder}-merged"));
        return Ok(format!(
            "Merge it, since embedding and head are one for all requests: {tool} merge --adapter {output} \
             --output {merged}\nServe it: {serve} --model {merged}"
        ));
    }
    // As the adapter was trained: it has learnt beside the weights in four bits.
    let quantization = match config.quantization() {
        Quantization::Nf4 => "--quantization nf4 ",
        Quantization::None => "",
    };
    let module = quoted(&format!("{name}={folder}"));
    Ok(format!(
        "Serve it: {serve} {model}{quantization}--enable-lora --lora-modules {module}"
    ))
}

/// Writes to standard output; a reader or a terminal that goes away (`| head`) is no error.
fn write_out(out: &mut impl Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if !is_of_nobody(&error) => {
            Err(error).context("standard output cannot be written")
        }
        _ => Ok(()),
    }
}

/// Whether a write fails because nobody is left to read it.
fn is_of_nobody(error: &std::io::Error) -> bool {
    // What Unix says of a terminal that was closed.
    const EIO: i32 = 5;
    let is_terminal_gone = cfg!(unix) && error.raw_os_error() == Some(EIO);
    error.kind() == std::io::ErrorKind::BrokenPipe || is_terminal_gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_an_adapter_can_be_given() {
        for (folder, base, name) in [
            ("runs/the next", Some("base"), "the-next"),
            ("runs/lr=1e-4 r=8", None, "lr-1e-4-r-8"),
            ("runs/base", Some("base"), "base-adapter"),
            ("runs/base", Some("models/base"), "base"),
            ("runs/bundled", None, "bundled-adapter"),
            ("/", None, "adapter"),
        ] {
            assert_eq!(adapter_name(Path::new(folder), base), name, "{folder}");
        }
    }
}
