//! A file whose last line ends as its other ones do, and none in a carriage return alone, so that lines can be counted by their ends.

use std::io::{self, BufRead, Read};

use super::open::Stream;

pub(super) struct EndsInBreak {
    stream: Stream,
    /// The last byte.
    last: u8,
    /// How the first line ends.
    line_break: Option<&'static [u8]>,
    /// Whether the first line ends in a carriage return alone.
    ends_in_return: bool,
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
            ends_in_return: false,
            is_quoted: false,
            rest: None,
        }
    }

    /// Takes note of what was read; `next` is the byte after it. A line that ends in a carriage return ends in a line feed instead,
    /// and where the first one does, so do lines within cells.
    fn see(&mut self, bytes: &mut [u8], next: Option<u8>) {
        for at in 0..bytes.len() {
            let is_before_feed = bytes.get(at + 1).copied().or(next) == Some(b'\n');
            let is_alone = bytes[at] == b'\r' && !is_before_feed;
            if is_alone && (!self.is_quoted || self.ends_in_return) {
                self.ends_in_return |= self.line_break.is_none();
                bytes[at] = b'\n';
            }
            let byte = bytes[at];
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
            let next = match to[..num].last() {
                Some(b'\r') => self.stream.fill_buf()?.first().copied(),
                _ => None,
            };
            self.see(&mut to[..num], next);
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
            ("a\rb\rc", "a\nb\nc\n"),
            ("a\r\"b\rc\"\r", "a\n\"b\nc\"\n"),
            ("a\n\"b\rc\"\r", "a\n\"b\rc\"\n"),
            ("a\r\nb\r", "a\r\nb\n"),
            ("a\n\"\"\"b\"\"\"", "a\n\"\"\"b\"\"\"\n"),
        ] {
            // As it comes in pieces of one byte, too.
            for size in [1, 4096] {
                let stream = io::BufReader::with_capacity(size, text.as_bytes());
                let mut found = String::new();
                let mut reader = EndsInBreak::new(Box::new(stream));
                reader.read_to_string(&mut found).unwrap();
                assert_eq!(found, expected);
            }
        }
    }
}
