//! Where questions come from: the lines of a pipe or a file, or a terminal on which they are written with its editing keys.

use std::io::{self, BufRead, ErrorKind, IsTerminal as _, Write};

use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use super::failed;
use crate::tools::ToolError;

/// What stands before a question.
const PROMPT: &str = "> ";

/// The lines to come.
pub(super) enum Input<'a> {
    /// Read as they are.
    Lines {
        lines: Box<dyn BufRead + 'a>,
        /// How many there were.
        num_read: usize,
        /// Whether someone types them, at a terminal that only this side of the program has.
        is_typed: bool,
    },
    /// Written with arrow keys and earlier lines. What is pasted stays together.
    Edited(Box<DefaultEditor>),
}

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(String),
    /// A line that is no text, and why.
    Wrong(String),
    /// Nothing will come.
    End,
}

impl Input<'static> {
    /// Standard input.
    pub(super) fn open() -> Self {
        let is_typed = io::stdin().is_terminal();
        if is_typed && io::stdout().is_terminal() {
            let config = Config::builder().auto_add_history(true).build();
            if let Ok(editor) = DefaultEditor::with_config(config) {
                return Self::Edited(Box::new(editor));
            }
        }
        Self::Lines {
            lines: Box::new(io::stdin().lock()),
            num_read: 0,
            is_typed,
        }
    }
}

impl Input<'_> {
    /// Whether someone types: then questions are asked for, and a mistake ends nothing.
    pub(super) fn is_typed(&self) -> bool {
        match self {
            Self::Lines { is_typed, .. } => *is_typed,
            Self::Edited(_) => true,
        }
    }

    /// The next line, or several that were pasted at once.
    pub(super) fn next(&mut self, out: &mut dyn Write) -> Result<Line, ToolError> {
        match self {
            Self::Lines {
                lines,
                num_read,
                is_typed,
            } => {
                if *is_typed {
                    super::write_now(out, PROMPT).map_err(failed("standard output"))?;
                }
                let mut line = Vec::new();
                let read = lines.read_until(b'\n', &mut line);
                if read.map_err(failed("standard input"))? == 0 {
                    return Ok(Line::End);
                }
                *num_read += 1;
                Ok(match String::from_utf8(line) {
                    Ok(line) => Line::Text(line),
                    Err(error) => {
                        let at = error.utf8_error().valid_up_to();
                        let byte = error.as_bytes()[at];
                        Line::Wrong(format!(
                            "line {num_read}: expected UTF-8, found the byte 0x{byte:02x} at column {}",
                            at + 1
                        ))
                    }
                })
            }
            Self::Edited(editor) => loop {
                return match editor.readline(PROMPT) {
                    Ok(line) => Ok(Line::Text(line)),
                    Err(ReadlineError::Eof) => Ok(Line::End),
                    // As a signal would end it.
                    Err(ReadlineError::Interrupted) => Err(ToolError::Stopped),
                    // The window has another size.
                    Err(ReadlineError::Signal(_)) => continue,
                    Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                        discard_typed();
                        Ok(Line::Wrong(
                            "expected UTF-8, found other bytes; nothing of the line is sent"
                                .to_owned(),
                        ))
                    }
                    Err(ReadlineError::Io(error)) => Err(failed("standard input")(error)),
                    Err(error) => Err(failed("standard input")(io::Error::other(error))),
                };
            },
        }
    }
}

/// Forgets what was typed and is not read yet: the rest of such a line would be a question of its own.
fn discard_typed() {
    #[cfg(unix)]
    {
        use rustix::termios::{QueueSelector, tcflush};
        // A terminal that is gone says so at the next line.
        let _ = tcflush(io::stdin(), QueueSelector::IFlush);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_text_is_named_and_the_next_one_comes() {
        let mut input = Input::Lines {
            lines: Box::new(&b"one\ntw\xe4o\n\xffthree\nfour"[..]),
            num_read: 0,
            is_typed: false,
        };
        let mut out = Vec::new();
        let mut next = || input.next(&mut out).unwrap();
        let wrong = |text: &str| Line::Wrong(text.to_owned());
        assert_eq!(next(), Line::Text("one\n".to_owned()));
        assert_eq!(
            next(),
            wrong("line 2: expected UTF-8, found the byte 0xe4 at column 3")
        );
        assert_eq!(
            next(),
            wrong("line 3: expected UTF-8, found the byte 0xff at column 1")
        );
        assert_eq!(next(), Line::Text("four".to_owned()));
        assert_eq!(next(), Line::End);
        assert!(out.is_empty());
    }
}
