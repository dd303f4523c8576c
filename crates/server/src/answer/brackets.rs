//! Where a JSON value ends, without reading it.

/// The brackets of a JSON object or list whose text grows.
#[derive(Debug, Default)]
pub(super) struct Brackets {
    /// What closes those that are open.
    closing: Vec<char>,
    in_string: bool,
    is_escaped: bool,
}

/// Why [`Brackets::take`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The value is complete.
    Complete,
    /// The next character is `<`, outside of strings.
    Angle,
    /// The text is over.
    Text,
}

impl Brackets {
    /// Goes through a text that begins, or goes on with, a value. Gives the number of bytes that it went through, and what it
    /// read: the same text, but line ends and other control characters in strings are escaped, as JSON wants them.
    pub(super) fn take(&mut self, text: &str) -> (usize, String, Stop) {
        let mut read = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let mut is_complete = false;
            match c {
                _ if self.is_escaped => self.is_escaped = false,
                '\\' if self.in_string => self.is_escaped = true,
                '"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                '{' => self.closing.push('}'),
                '[' => self.closing.push(']'),
                '}' | ']' => {
                    self.closing.pop();
                    is_complete = self.closing.is_empty();
                }
                '<' => return (at, read, Stop::Angle),
                _ => {}
            }
            match self.in_string && c.is_ascii_control() {
                true => read.push_str(&escaped(c)),
                false => read.push(c),
            }
            if is_complete {
                return (at + 1, read, Stop::Complete);
            }
        }
        (text.len(), read, Stop::Text)
    }

    /// What closes the brackets that are still open.
    pub(super) fn closing(self) -> String {
        self.closing.into_iter().rev().collect()
    }
}

fn escaped(c: char) -> String {
    match c {
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        other => format!("\\u{:04x}", u32::from(other)),
    }
}
