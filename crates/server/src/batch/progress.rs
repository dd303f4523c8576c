//! How far a batch is: a bar on a terminal, otherwise a line in the log.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Summary;

/// How often the log has a line.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How often the bar moves.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// Counts answered lines and shows them.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Bytes of the input, if it is a file.
    total_bytes: Option<u64>,
    num_bytes: u64,
    summary: Summary,
}

impl Progress {
    /// For an input of so many bytes: a bar if stderr is a terminal, otherwise the log.
    pub fn new(total_bytes: Option<u64>) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            bar: is_terminal.then(|| bar(total_bytes)),
            total_bytes,
            num_bytes: 0,
            summary: Summary::default(),
        }
    }

    /// How often [`Self::show`] is to be called.
    pub(super) fn interval(&self) -> Duration {
        match self.bar {
            Some(_) => BAR_INTERVAL,
            None => LOG_INTERVAL,
        }
    }

    /// Counts an answered line.
    pub(super) fn answered(&mut self, num_bytes: usize, is_error: bool) {
        self.num_bytes += num_bytes as u64;
        self.summary.num_answered += 1;
        self.summary.num_failed += usize::from(is_error);
    }

    /// Shows where the batch is.
    pub(super) fn show(&self, num_running: usize) {
        let Summary {
            num_answered: answered,
            num_failed: failed,
            ..
        } = self.summary;
        if let Some(bar) = &self.bar {
            bar.set_position(self.num_bytes);
            bar.set_message(format!(
                "{answered} answered, {failed} with errors, {num_running} running"
            ));
            return;
        }
        let percent = self.total_bytes.filter(|&total| total > 0);
        match percent.map(|total| (100 * self.num_bytes / total).min(100)) {
            Some(percent) => tracing::info!(
                answered,
                failed,
                running = num_running,
                "batch: {percent} % of the file"
            ),
            None => tracing::info!(answered, failed, running = num_running, "batch"),
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    pub(super) fn summary(&self) -> Summary {
        self.summary
    }
}

fn bar(total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:30} {percent:>3} %  {msg}  {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
