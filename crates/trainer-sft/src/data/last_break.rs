//! A file whose last line ends as its other ones do, so that lines can be counted by their ends.

use std::io::{self, BufRead, Read};

use super::open::Stream;

pub(super) struct EndsInBreak {
    stream: Stream,
    /// The last byte.
    last: u8,
    /// How the first line ends.
    line_break: Option<&'static [u8]>,
    /// Within a quoted cell, which a line break would be a part of.
    is_quoted: bool,
    /// What is left to be given of the end that was missing; `None` before the end of the stream.
    rest: Option<&'static [u8]>,
}

impl EndsInBreak {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            last: b'\n',
            line_break: None,
            is_quoted: false,
            rest: None,
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' && self.line_break.is_none() {
                let is_crlf = self.last == b'\r';
                self.line_break = Some(if is_crlf { b"\r\n" } else { b"\n" });
            }
            self.is_quoted ^= byte == b'"';
            self.last = byte;
        }
    }
}

impl Read for EndsInBreak {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_none() {
            let num = self.stream.fill_buf()?.read(to)?;
            self.stream.consume(num);
            self.see(&to[..num]);
            if num > 0 || to.is_empty() {
                return Ok(num);
            }
        }
        let missing = match self.last {
            _ if self.is_quoted => &b""[..],
            b'\n' => b"",
            _ => self.line_break.unwrap_or(b"\n"),
        };
        let rest = self.rest.get_or_insert(missing);
        rest.read(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_end_is_that_of_the_lines_before() {
        for (text, expected) in [
            ("", ""),
            ("a", "a\n"),
            ("a\nb", "a\nb\n"),
            ("a\r\nb", "a\r\nb\r\n"),
            ("a\r\nb\r\n", "a\r\nb\r\n"),
            ("a\r\n\"b\nc\"", "a\r\n\"b\nc\"\r\n"),
            ("a\n\"cut", "a\n\"cut"),
            ("a\n\"\"\"b\"\"\"", "a\n\"\"\"b\"\"\"\n"),
        ] {
            let mut found = String::new();
            let stream: Stream = Box::new(text.as_bytes());
            EndsInBreak::new(stream).read_to_string(&mut found).unwrap();
            assert_eq!(found, expected);
        }
    }
}
