//! The process of one job: the other side of [`super::process`].

use std::io::{self, BufRead as _, StdinLock, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use model_qwen::{is_gpu, parse_device};
use trainer_sft::WorkUnit;

use super::gate::WorkUnits;
use super::messages::{JobCommand, JobMessage};
use super::process::COMMAND;
use super::work::{Means, Tell, Work};
use crate::config::JobPriority;

/// Ends the run after its step.
static STOP: AtomicBool = AtomicBool::new(false);
/// The status of a process that was started otherwise than by a server.
const WRONG_COMMAND_LINE: u8 = 2;

/// Works on the job that standard input names.
pub(crate) fn run() -> ExitCode {
    model_qwen::sys::keep_freed_memory();
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    let work: Option<Work> = read.ok().and_then(|_| serde_json::from_str(&line).ok());
    let Some(work) = work else {
        let mut stderr = io::stderr();
        // Without stderr the status remains.
        let _ = writeln!(
            stderr,
            "error: `{COMMAND}` is how a server starts the process of a job (--finetuning-device), and of no other use"
        );
        return ExitCode::from(WRONG_COMMAND_LINE);
    };
    let (sender, turns) = mpsc::channel();
    thread::spawn(move || listen(io::stdin().lock(), &sender));
    let trained = work.train(
        Means {
            stop: Some(&STOP),
            gate: work.waits.then(|| gate(&work, turns)),
            ..Means::default()
        },
        &(Arc::new(tell) as Tell),
    );
    let code = match &trained {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    };
    tell(JobMessage::Ended(trained));
    code
}

fn tell(message: JobMessage) {
    let mut stdout = io::stdout().lock();
    let line = serde_json::to_string(&message).unwrap_or_default() + "\n";
    let written = stdout.write_all(line.as_bytes());
    if written.and_then(|()| stdout.flush()).is_err() {
        end();
    }
}

/// Does what the server asks, as long as there is one.
fn listen(input: StdinLock<'_>, turns: &Sender<bool>) {
    for line in input.lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(JobCommand::Stop) => STOP.store(true, Ordering::Relaxed),
            // A run that has ended needs no turn.
            Ok(JobCommand::Go { is_busy }) => drop(turns.send(is_busy)),
            Err(error) => tracing::warn!(%error, "the server asks for something unknown"),
        }
    }
    end();
}

/// Waits for the server's word, when the device has done nearly all that came before.
fn gate(work: &Work, turns: Receiver<bool>) -> Box<dyn Fn(WorkUnit) + Send + Sync> {
    let device = parse_device(&work.source.device).ok().filter(is_gpu);
    // One of normal priority is told to wait only on the server's own GPU.
    let units = WorkUnits::new(work.priority, device.is_some());
    let priority = work.priority;
    let (turns, is_busy) = (Mutex::new(turns), AtomicBool::new(true));
    Box::new(move |unit| {
        if !units.waits_before(unit) {
            units.launch(unit);
            return;
        }
        let is_due = match (unit, priority) {
            (WorkUnit::Batch, _) => true,
            (WorkUnit::Layer, JobPriority::Low) => units.is_far(),
            // A device that nobody else needs is not waited for.
            (WorkUnit::Layer, JobPriority::Normal) => is_busy.load(Ordering::Relaxed),
        };
        if let Some(device) = device.as_ref().filter(|_| is_due) {
            // What was launched would otherwise be counted as none. A device that fails says so at its next work.
            let _ = device.sync();
            units.restart();
        }
        tell(JobMessage::Waits);
        let turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a server the process ends.
        let others_wait = turns.recv().unwrap_or_default();
        is_busy.store(others_wait, Ordering::Relaxed);
        if priority == JobPriority::Normal && !others_wait {
            // Nobody waits for what was launched: the server is asked again after as many layers.
            units.restart();
        }
        units.launch(unit);
    })
}

/// Ends this process at once: without its server nobody wants what it makes. Drivers may wait for a device in `exit`.
fn end() -> ! {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        // Nothing can be done about a refusal.
        let _ = kill_process(getpid(), Signal::KILL);
    }
    std::process::abort()
}
