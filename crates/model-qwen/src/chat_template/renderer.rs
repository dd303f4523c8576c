//! The process that renders templates for another one, within limits of time and memory.
//!
//! minijinja does not count what comparing and joining values takes, and nothing ends a thread from outside. A process can end
//! itself, and the system takes its memory back.

use std::io::{self, BufReader};
use std::process::{self, ExitCode};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::apart;
use super::compiled::Compiled;
use super::error::TemplateError;
use super::frames::{self, Work};
use crate::sys::limits;

/// Processor time of a template.
pub(super) const MAX_TIME: Duration = Duration::from_millis(500);
/// More of it for each MiB that is rendered.
const MAX_TIME_PER_MIB: Duration = Duration::from_millis(100);
/// Memory of a template, its messages included.
pub(super) const MAX_MEMORY: u64 = 192 << 20;
/// Part of the memory; a value that is nested deeper than it has room for ends the process.
const STACK: usize = 32 << 20;
/// How often the time is looked at.
const PERIOD: Duration = Duration::from_millis(5);
/// Status of a process that ended itself because a template took too long.
pub(super) const TOO_SLOW: i32 = 3;

/// Renders what comes on standard input until it ends, and writes the texts to standard output. Programs that call
/// [`super::render_in_processes`] do this when they are started with [`super::RENDER_TEMPLATES`] as their only argument.
pub fn serve_renders() -> ExitCode {
    limits::leave_no_core();
    // A signal to the whole group is for the server, which may still have to render.
    limits::ignore_signals_to_end();
    let watch = watch();
    let mut input = BufReader::new(io::stdin().lock());
    let mut output = io::stdout().lock();
    let mut compiled = None;
    // The end of the input is the end of whoever wanted the texts.
    while let Ok(bytes) = frames::read(&mut input) {
        let mib = u32::try_from(bytes.len() >> 20).unwrap_or(u32::MAX);
        let time = MAX_TIME.saturating_add(MAX_TIME_PER_MIB.saturating_mul(mib));
        let _ = watch.send(Some(time));
        let answer = match Work::from_bytes(&bytes) {
            Some(work) => answer(work, &mut compiled),
            None => Err(TemplateError::Render(
                "the variables cannot be read".to_owned(),
            )),
        };
        let _ = watch.send(None);
        let answer = frames::answer_to_bytes(answer);
        if answer
            .and_then(|bytes| frames::write(&mut output, &bytes))
            .is_err()
        {
            break;
        }
    }
    ExitCode::SUCCESS
}

fn answer(work: Work, last: &mut Option<Compiled>) -> Result<String, TemplateError> {
    limits::limit_memory(Some(MAX_MEMORY));
    if last.as_ref().is_none_or(|last| last.source != work.source) {
        *last = Some(Compiled::new(work.source, "the given text")?);
    }
    let (Some(compiled), Some(variables)) = (&*last, work.variables) else {
        return Ok(String::new());
    };
    let rendered = apart::run(STACK, || compiled.render(variables, work.fuel));
    limits::limit_memory(None);
    rendered.map_err(|error| TemplateError::Render(error.to_string()))?
}

/// Starts a thread that ends the process when work takes longer than it may; it is told of the beginning and the end.
fn watch() -> Sender<Option<Duration>> {
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || watch_work(&receiver));
    if spawned.is_err() {
        process::exit(TOO_SLOW);
    }
    sender
}

fn watch_work(events: &Receiver<Option<Duration>>) {
    // Waits for work.
    while let Ok(event) = events.recv() {
        let Some(limit) = event else { continue };
        let (started, start) = (Instant::now(), limits::processor_time());
        while let Err(RecvTimeoutError::Timeout) = events.recv_timeout(PERIOD) {
            let used = match (start, limits::processor_time()) {
                (Some(start), Some(now)) => now.saturating_sub(start),
                _ => started.elapsed(),
            };
            if used > limit {
                process::exit(TOO_SLOW);
            }
        }
    }
}
