//! Lines of Prometheus' text format and of OpenMetrics.

use std::fmt::Write as _;

use super::format::Format;
use crate::histogram::Histogram;

/// A page of metrics in the making.
pub(super) struct Exposition {
    out: String,
    format: Format,
}

impl Exposition {
    pub(super) fn new(format: Format) -> Self {
        Self {
            out: String::new(),
            format,
        }
    }

    /// The whole page.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, labels: &str, value: f64) {
        self.gauges(name, help, [(labels.to_owned(), value)]);
    }

    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        self.header(name, help, "gauge");
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    /// A counter, `name` without `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str, labels: &str, value: f64) {
        self.counters(name, help, [(labels.to_owned(), value)]);
    }

    pub(super) fn counters(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        let total = format!("{name}_total");
        // OpenMetrics names the family, its samples add the ending.
        let family = match self.format {
            Format::Prometheus => &total,
            Format::OpenMetrics => name,
        };
        self.header(family, help, "counter");
        for (labels, value) in samples {
            self.sample(&total, &labels, value);
        }
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, labels: &str, values: &Histogram) {
        self.histograms(name, help, [(labels.to_owned(), values)]);
    }

    pub(super) fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (String, &'a Histogram)>,
    ) {
        self.header(name, help, "histogram");
        for (labels, histogram) in histograms {
            let values = histogram.snapshot();
            let comma = if labels.is_empty() { "" } else { "," };
            let bucket = format!("{name}_bucket");
            for (bound, below) in values.buckets {
                let labels = format!("{labels}{comma}le=\"{bound:?}\"");
                self.sample(&bucket, &labels, below as f64);
            }
            let labels_of_all = format!("{labels}{comma}le=\"+Inf\"");
            self.sample(&bucket, &labels_of_all, values.count as f64);
            self.sample(&format!("{name}_sum"), &labels, values.sum);
            self.sample(&format!("{name}_count"), &labels, values.count as f64);
        }
    }

    /// Sums without buckets: labels, count and sum.
    pub(super) fn summaries(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, u64, u64)>,
    ) {
        self.header(name, help, "summary");
        for (labels, count, sum) in samples {
            self.sample(&format!("{name}_count"), &labels, count as f64);
            self.sample(&format!("{name}_sum"), &labels, sum as f64);
        }
    }

    fn header(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels.is_empty() {
            true => writeln!(self.out, "{name} {value}"),
            false => writeln!(self.out, "{name}{{{labels}}} {value}"),
        };
    }
}

/// A label value: backslash, quote and newline escaped.
pub(super) fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
