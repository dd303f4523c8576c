//! A JSON array, element by element, without holding the whole of it.

use std::io::{self, BufRead};

/// The elements of an array as text. Whether an element is JSON is left to its parser.
pub(super) struct Elements<R> {
    stream: R,
    /// Elements given out.
    count: usize,
    /// Line of the next byte, from 1.
    line: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    Inside,
    Ended,
}

/// An element's index, first line and text; or the line of what is wrong with the array, and what it is.
pub(super) type Element = Result<Option<(usize, usize, Vec<u8>)>, (usize, String)>;

impl<R: BufRead> Elements<R> {
    /// The array that `stream` begins with.
    pub(super) fn new(stream: R) -> Self {
        Self {
            stream,
            count: 0,
            line: 1,
            state: State::Start,
        }
    }

    /// The next element; `None` after the last one.
    pub(super) fn next(&mut self) -> io::Result<Element> {
        if self.state == State::Start {
            self.state = State::Inside;
            self.blank()?;
            self.take()?;
        }
        match (self.state, self.blank()?) {
            (State::Ended, None) => return Ok(Ok(None)),
            (State::Ended, Some(byte)) => {
                return Ok(self.wrong(format!(
                    "expected nothing after the array, found {}",
                    show(byte)
                )));
            }
            (_, None) => return Ok(self.wrong("the array does not end".into())),
            (_, Some(b']')) => {
                self.take()?;
                self.state = State::Ended;
                return self.next();
            }
            (_, Some(b',')) if self.count > 0 => {
                self.take()?;
                if let Some(b']') = self.blank()? {
                    return Ok(self.wrong("trailing comma".into()));
                }
            }
            (_, Some(byte)) if self.count > 0 => {
                return Ok(self.wrong(format!("expected `,` or `]`, found {}", show(byte))));
            }
            _ => {}
        }
        self.blank()?;
        let line = self.line;
        let text = self.element()?;
        self.count += 1;
        Ok(Ok(Some((self.count - 1, line, text))))
    }

    /// Everything up to the `,` or `]` after an element.
    fn element(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let buffer = self.stream.fill_buf()?;
            if buffer.is_empty() {
                return Ok(text);
            }
            let mut taken = 0;
            let mut ended = false;
            for &byte in buffer {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    _ if in_string => {}
                    b'{' | b'[' => depth += 1,
                    b',' | b']' | b'}' if depth == 0 => {
                        ended = true;
                        break;
                    }
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                self.line += usize::from(byte == b'\n');
                taken += 1;
            }
            text.extend_from_slice(&buffer[..taken]);
            self.stream.consume(taken);
            if ended {
                text.truncate(text.trim_ascii_end().len());
                return Ok(text);
            }
        }
    }

    /// Skips white space; the byte after it stays.
    fn blank(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.stream.fill_buf()?.first().copied() {
                Some(byte) if byte.is_ascii_whitespace() => self.take()?,
                found => return Ok(found),
            }
        }
    }

    /// Skips one byte.
    fn take(&mut self) -> io::Result<()> {
        if self.stream.fill_buf()?.first() == Some(&b'\n') {
            self.line += 1;
        }
        self.stream.consume(1);
        Ok(())
    }

    fn wrong(&mut self, reason: String) -> Element {
        Err((self.line, reason))
    }
}

fn show(byte: u8) -> String {
    match byte.is_ascii_graphic() {
        true => format!("`{}`", char::from(byte)),
        false => format!("byte {byte:#04x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line and what is there.
    type At = (usize, String);

    /// Elements with their lines, and the error at the end.
    fn read(text: &str) -> (Vec<At>, Option<At>) {
        // A buffer of two bytes: every element crosses its end.
        let mut elements = Elements::new(io::BufReader::with_capacity(2, text.as_bytes()));
        let mut found = Vec::new();
        loop {
            match elements.next().unwrap() {
                Ok(Some((_, line, text))) => found.push((line, String::from_utf8(text).unwrap())),
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error)),
            }
        }
    }

    #[test]
    fn elements_keep_their_text_and_line() {
        let (found, error) = read("[ {\"a\": \"],\\\"{\"},\n\n [1, [2]] , 3\n]\n");
        let expected = [(1, "{\"a\": \"],\\\"{\"}"), (3, "[1, [2]]"), (3, "3")];
        let expected = expected.map(|(line, text)| (line, text.to_owned()));
        assert_eq!((found, error), (expected.to_vec(), None));
        assert_eq!(read("[]"), (Vec::new(), None));
    }

    #[test]
    fn what_is_wrong_with_an_array_is_named() {
        for (text, line, expected) in [
            ("[1,\n2", 2, "the array does not end"),
            ("[1\n,]", 2, "trailing comma"),
            ("[1] 2", 1, "expected nothing after the array, found `2`"),
            ("[1}", 1, "expected `,` or `]`, found `}`"),
        ] {
            assert_eq!(read(text).1, Some((line, expected.to_owned())), "{text}");
        }
    }
}
