//! Says now and then how much of a file has come, where no bar shows it.

use std::io::{self, Write};
use std::time::Duration;

use crate::seldom::Seldom;

/// Passes on what is written, and tells how much that was.
pub(super) struct Told<'a, W, T> {
    inner: W,
    name: &'a str,
    /// Bytes of the file, if they are known.
    length: Option<u64>,
    num_written: u64,
    seldom: Seldom,
    tell: T,
}

impl<'a, W: Write, T: FnMut(String)> Told<'a, W, T> {
    pub(super) fn new(
        (name, length): (&'a str, Option<u64>),
        every: Duration,
        inner: W,
        tell: T,
    ) -> Self {
        Self {
            inner,
            name,
            length,
            num_written: 0,
            seldom: Seldom::new(every),
            tell,
        }
    }
}

impl<W: Write, T: FnMut(String)> Write for Told<'_, W, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let num = self.inner.write(bytes)?;
        self.num_written += num as u64;
        if self.seldom.is_due() {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let of = self.length.map(|length| format!(" of {:.1}", mib(length)));
            let (name, of) = (self.name, of.unwrap_or_default());
            (self.tell)(format!("{name}: {:.1}{of} MiB", mib(self.num_written)));
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
        let tell = |line| lines.push(line);
        let mut told = Told::new(("a", Some(3 << 20)), Duration::ZERO, &mut file, tell);
        for _ in 0..2 {
            told.write_all(&vec![7; 3 << 19]).unwrap();
        }
        assert_eq!(file.len(), 3 << 20);
        assert_eq!(lines, ["a: 1.5 of 3.0 MiB", "a: 3.0 of 3.0 MiB"]);
        let mut seldom = Vec::new();
        let hour = Duration::from_secs(3600);
        let tell = |line| seldom.push(line);
        let mut told = Told::new(("a", None), hour, io::sink(), tell);
        told.write_all(&[7; 9]).unwrap();
        assert!(seldom.is_empty());
    }
}
