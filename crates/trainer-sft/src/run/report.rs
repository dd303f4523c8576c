//! The report and the picture that a run leaves.

use std::fs;

use tracing::warn;

use super::Run;
use crate::error::TrainError;
use crate::metrics::Record;
use crate::report::Report;

impl Run<'_> {
    /// Writes `report.html` and `loss.svg` of a run that has ended, by an error where there is a `failure`.
    pub(super) fn write_report(&self, failure: Option<&TrainError>) {
        let records = self.state.log_history.iter();
        let records = records.filter_map(|line| serde_json::from_str(line.get()).ok());
        let report = Report {
            summary: &self.summary,
            settings: &self.config.to_toml(),
            records: &records.collect::<Vec<Record>>(),
            samples: self.samples.as_ref(),
            pictures: &self.pictures,
            examples: (self.loader.steps_per_epoch()).map(|_| self.loader.examples()),
            method: self.config.method.method,
            failure: failure.map(TrainError::to_string),
        };
        for (name, text) in [
            ("report.html", report.html()),
            ("loss.svg", report.loss_svg()),
        ] {
            let path = self.config.run.output.join(name);
            if !text.is_empty()
                && let Err(error) = fs::write(&path, text)
            {
                // Half of it shows nothing.
                let _ = fs::remove_file(&path);
                warn!("{}: {error}; nothing else needs it", path.display());
            }
        }
    }
}
