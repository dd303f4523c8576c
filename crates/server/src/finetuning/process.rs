//! A job in a process of its own, which this server starts and which does not outlive it.
//!
//! The process reads what it is asked from its standard input, which closes when this server ends, however it ends. It tells what
//! it does on its standard output.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::FineTuning;
use super::events::{Event, Level};
use super::gate::Gate;
use super::job::Status;
use super::messages::{End, Failure, JobCommand, JobMessage};
use super::run::Turn;
use super::work::Work;

/// The command of this program that works on a job.
pub(crate) const COMMAND: &str = "finetuning-job";
/// How often it is looked whether the job is to end.
const LOOK: Duration = Duration::from_millis(50);

/// The process of a job, which ends with this value.
struct Process {
    child: Mutex<Child>,
    input: Mutex<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // It has ended.
        let _ = locked(&self.child).wait();
    }
}

/// Sets what it holds when it goes.
struct SetAtTheEnd<'a>(&'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Process {
    fn ask(&self, asked: &impl Serialize) -> io::Result<()> {
        let line = serde_json::to_string(asked)? + "\n";
        locked(&self.input).write_all(line.as_bytes())
    }

    fn kill(&self) {
        // One that has ended cannot be killed.
        let _ = locked(&self.child).kill();
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This program, also where its file has been replaced since it was started.
fn program() -> io::Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    match own.exists() {
        true => Ok(own),
        false => std::env::current_exe(),
    }
}

impl FineTuning {
    /// Trains in a process of its own, and hears what it tells.
    pub(super) fn train_elsewhere(&self, turn: &Turn, work: &Work) -> Result<End, Failure> {
        let failed = |error: io::Error| {
            Failure::of_server(format!("the process of the job cannot be started: {error}"))
        };
        let mut command = Command::new(program().map_err(failed)?);
        command
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // Ctrl-C is for the server, which then asks for a checkpoint.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let process = Process {
            child: Mutex::new(child),
            input: Mutex::new(input),
        };
        process.ask(work).map_err(failed)?;
        let text = format!(
            "The job runs in a process of its own on {}",
            work.source.device
        );
        self.hear(
            &turn.job.id,
            JobMessage::Event(Event::message(Level::Info, text)),
        );
        let gate = self.gate(turn);
        let has_ended = AtomicBool::new(false);
        let ended = thread::scope(|scope| {
            scope.spawn(|| self.watch_over(turn, &process, &has_ended));
            // Also after a panic: the scope waits for the watcher.
            let _end = SetAtTheEnd(&has_ended);
            // A driver may write a line that is no text; it is none of the job's.
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            let mut lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
            lines.find_map(|line| match serde_json::from_str(&line) {
                Ok(JobMessage::Ended(ended)) => Some(ended),
                Ok(JobMessage::Waits) => {
                    let is_busy = gate.as_ref().is_some_and(Gate::wait_for_turn);
                    // One that is gone tells nothing more.
                    let _ = process.ask(&JobCommand::Go { is_busy });
                    None
                }
                Ok(message) => {
                    self.hear(&turn.job.id, message);
                    None
                }
                Err(_) => {
                    tracing::debug!(line, "a job's process wrote something else");
                    None
                }
            })
        });
        ended.unwrap_or_else(|| self.lost(turn, &process))
    }

    /// Asks the process to stop when the job is to end, and ends it where the job is given up.
    fn watch_over(&self, turn: &Turn, process: &Process, has_ended: &AtomicBool) {
        let mut was_asked = false;
        while !has_ended.load(Ordering::Relaxed) {
            if turn.stop.load(Ordering::Relaxed) {
                let mut state = self.state();
                let status = state.entry(&turn.job.id).map(|entry| entry.job.status);
                drop(state);
                if status == Some(Status::Cancelled) {
                    process.kill();
                    return;
                }
                if !was_asked {
                    was_asked = true;
                    // One that is gone needs not be asked.
                    let _ = process.ask(&JobCommand::Stop);
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// The process has ended without a word.
    fn lost(&self, turn: &Turn, process: &Process) -> Result<End, Failure> {
        // One that has closed its output has nothing more to say.
        process.kill();
        let status = locked(&process.child).wait();
        if turn.stop.load(Ordering::Relaxed) {
            // It was ended, or something ends the server and its processes together.
            return Ok(End::Stopped);
        }
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        Err(Failure::of_server(format!(
            "the process of the job has ended ({how}); the server's log may say why. One that the system has killed took too much \
             memory: give a smaller `batch_size` or `max_length`"
        )))
    }

    /// What the job passes before each unit of its work, where it may be in the way of requests.
    pub(super) fn gate(&self, turn: &Turn) -> Option<Gate> {
        let (engine, stop) = (self.0.engine.clone(), turn.stop.clone());
        let device = self.0.base.device()?;
        Some(Gate::new(engine, self.0.config.priority, device, stop))
    }
}
