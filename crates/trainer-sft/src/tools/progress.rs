//! How far a command is, on standard error.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use model_qwen::merge::MergeProgress;

/// A bar on a terminal, and nothing elsewhere.
pub(super) fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::no_length().with_message(what);
    let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Moves a bar on, and says whether to go on.
pub(super) fn follow<'a>(
    bar: &'a ProgressBar,
    stop: &'a AtomicBool,
) -> impl FnMut(MergeProgress<'_>) -> ControlFlow<()> + 'a {
    |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.num_bytes);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
