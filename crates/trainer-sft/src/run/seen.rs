//! The numbers of the steps: metrics.jsonl and TensorBoard's events.

use std::io;
use std::path::Path;

use tracing::warn;

use crate::config::Config;
use crate::error::{TrainError, output_error};
use crate::metrics::{MetricsFile, Record};
use crate::tensorboard::EventFile;

/// Where the numbers of the steps go; a disk that fills up does not end the run.
pub(super) struct Metrics {
    file: MetricsFile,
    events: Option<EventFile>,
    has_failed: bool,
}

impl Metrics {
    /// The files of a run in `output` that goes on after `resumed` steps.
    pub(super) fn open(
        config: &Config,
        output: &Path,
        resumed: Option<usize>,
    ) -> Result<Self, TrainError> {
        let path = output.join("metrics.jsonl");
        let file = MetricsFile::open(&path, resumed).map_err(output_error(&path))?;
        let events = match config.run.events_folder(output) {
            Some(folder) => {
                let events = EventFile::create(&folder, resumed).map_err(output_error(&folder))?;
                Some(events)
            }
            None => None,
        };
        Ok(Self {
            file,
            events,
            has_failed: false,
        })
    }

    /// Writes a record, whose JSON is `line`.
    pub(super) fn write(&mut self, record: &Record, line: &str) {
        let written = self.file.write_line(line);
        self.tell(written, |metrics| Some(metrics.file.path()));
        if let Some(events) = &mut self.events {
            let written = events.write(record);
            self.tell(written, |metrics| Some(metrics.events.as_ref()?.path()));
        }
    }

    fn tell(&mut self, written: io::Result<()>, path: impl Fn(&Self) -> Option<&Path>) {
        if let Err(error) = written
            && !self.has_failed
        {
            self.has_failed = true;
            let path = path(self).unwrap_or(Path::new(""));
            warn!("{}: {error}; the run goes on", path.display());
        }
    }
}
