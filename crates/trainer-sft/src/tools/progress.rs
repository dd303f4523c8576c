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

/// Moves a bar on to so many bytes of so many, and says whether to go on.
pub(super) fn follow(
    bar: &ProgressBar,
    stop: &AtomicBool,
) -> impl FnMut(u64, u64) -> ControlFlow<()> {
    |num_bytes, total_bytes| {
        bar.set_length(total_bytes);
        bar.set_position(num_bytes);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// [`follow`] for merged weights.
pub(super) fn follow_merge(
    bar: &ProgressBar,
    stop: &AtomicBool,
) -> impl FnMut(MergeProgress<'_>) -> ControlFlow<()> {
    let mut follow = follow(bar, stop);
    move |progress| follow(progress.num_bytes, progress.total_bytes)
}
