//! The progress of reading.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::info;

use super::report::DataReport;

/// Time between lines of the log, where no terminal shows the progress.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The progress of reading: a bar on a terminal, lines of the log elsewhere.
pub(super) struct Shown {
    pub(super) bar: ProgressBar,
    logs: bool,
    total: u64,
    last: Instant,
}

impl Shown {
    pub(super) fn new(total: u64, show: bool) -> Self {
        let target = match show {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = "reading {bar:30} {bytes}/{total_bytes}, {elapsed} < {eta}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            logs: show && bar.is_hidden(),
            bar,
            total,
            last: Instant::now(),
        }
    }

    pub(super) fn update(&mut self, bytes: u64, report: &DataReport) {
        self.bar.set_length(self.total.max(bytes));
        self.bar.set_position(bytes);
        self.bar
            .set_message(format!("{} records", report.num_records));
        if self.logs && self.last.elapsed() > LOG_EVERY {
            self.last = Instant::now();
            let (records, mib) = (report.num_records, |bytes: u64| {
                bytes as f64 / f64::from(1 << 20)
            });
            info!(
                "reading: {records} records, {:.0} of {:.0} MiB",
                mib(bytes),
                mib(self.total)
            );
        }
    }
}
