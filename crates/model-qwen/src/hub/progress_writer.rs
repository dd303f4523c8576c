//! Says now and then how much of a file has come, where no bar shows it.

use std::io::{self, Write};
use std::time::Duration;

use crate::throttle::Throttle;

/// Passes on what is written, and reports how much that was.
pub(super) struct ProgressWriter<'a, W, T> {
    inner: W,
    name: &'a str,
    /// Bytes of the file, if they are known.
    length: Option<u64>,
    num_written: u64,
    throttle: Throttle,
    report: T,
}

impl<'a, W: Write, T: FnMut(String)> ProgressWriter<'a, W, T> {
    pub(super) fn new(
        (name, length): (&'a str, Option<u64>),
        every: Duration,
        inner: W,
        report: T,
    ) -> Self {
        Self {
            inner,
            name,
            length,
            num_written: 0,
            throttle: Throttle::new(every),
            report,
        }
    }
}

impl<W: Write, T: FnMut(String)> Write for ProgressWriter<'_, W, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let num = self.inner.write(bytes)?;
        self.num_written += num as u64;
        if self.throttle.is_due() {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let of = self.length.map(|length| format!(" of {:.1}", mib(length)));
            let (name, of) = (self.name, of.unwrap_or_default());
            (self.report)(format!("{name}: {:.1}{of} MiB", mib(self.num_written)));
        }
        Ok(num)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_how_much_has_come() {
        let (mut lines, mut file) = (Vec::new(), Vec::new());
        let report = |line| lines.push(line);
        let mut writer =
            ProgressWriter::new(("a", Some(3 << 20)), Duration::ZERO, &mut file, report);
        for _ in 0..2 {
            writer.write_all(&vec![7; 3 << 19]).unwrap();
        }
        assert_eq!(file.len(), 3 << 20);
        assert_eq!(lines, ["a: 1.5 of 3.0 MiB", "a: 3.0 of 3.0 MiB"]);
        let mut none = Vec::new();
        let hour = Duration::from_secs(3600);
        let report = |line| none.push(line);
        let mut writer = ProgressWriter::new(("a", None), hour, io::sink(), report);
        writer.write_all(&[7; 9]).unwrap();
        assert!(none.is_empty());
    }
}
