//! Ctrl-C, SIGTERM and SIGHUP: end at once while loading, with a checkpoint while training.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::Result;

/// Ctrl-C.
const INTERRUPT: i32 = 2;

/// Becomes true at the first signal.
pub(super) static STOP: AtomicBool = AtomicBool::new(false);
/// Whether steps are being taken, after which a checkpoint can be written.
static TRAINS: AtomicBool = AtomicBool::new(false);
/// Whether a command is carried out, and no training.
static IS_TOOL: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C ends an answer, where one is being given.
static TALKS: AtomicBool = AtomicBool::new(false);
/// The first signal.
static SIGNAL: AtomicI32 = AtomicI32::new(INTERRUPT);

/// From now on a signal ends the run after the current step, with a checkpoint.
pub(super) fn stop_after_a_step() {
    TRAINS.store(true, Ordering::SeqCst);
}

/// From now on a signal ends the command at its next tensor, and no half of a result is left behind.
pub(super) fn stop_between_tensors() {
    IS_TOOL.store(true, Ordering::SeqCst);
    TRAINS.store(true, Ordering::SeqCst);
}

/// From now on Ctrl-C ends the answer that is being given; twice, or where there is none, it ends the program.
pub(super) fn stop_answers() {
    TALKS.store(true, Ordering::SeqCst);
}

/// As a shell reports a program that the signal has ended.
pub(super) fn exit_code() -> u8 {
    128 + SIGNAL.load(Ordering::SeqCst) as u8
}

fn receive(signal: i32) {
    let is_first = !STOP.swap(true, Ordering::SeqCst);
    let ends_answer = TALKS.load(Ordering::SeqCst) && crate::tools::is_answering();
    if is_first && ends_answer && signal == INTERRUPT {
        return;
    }
    if is_first {
        SIGNAL.store(signal, Ordering::SeqCst);
    }
    if !is_first || !TRAINS.load(Ordering::SeqCst) {
        crate::discard_unused_output();
        crate::tools::discard_unfinished();
        std::process::exit(128 + signal);
    }
    let told = match IS_TOOL.load(Ordering::SeqCst) {
        true => "\nstopping; once more to end at once\n",
        false => "\nstopping after this step, with a checkpoint; once more to end at once\n",
    };
    // The terminal may be gone.
    let _ = crate::metrics::AboveBar.write_all(told.as_bytes());
}

/// Starts to listen.
#[cfg(unix)]
pub(super) fn watch() -> Result<()> {
    use model_qwen::sys::is_ignored;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let mut signals = vec![SIGINT, SIGTERM];
    // `nohup` has it ignored, and means it.
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            receive(signal);
        }
    });
    Ok(())
}

/// Starts to listen.
#[cfg(not(unix))]
pub(super) fn watch() -> Result<()> {
    ctrlc::set_handler(|| receive(INTERRUPT))?;
    Ok(())
}
