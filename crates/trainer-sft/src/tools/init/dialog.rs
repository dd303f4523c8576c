//! Questions on a terminal.

use std::io::{BufRead, Write};

use crate::tools::ToolError;

/// Where answers come from, and where questions go to.
pub(super) struct Dialog<'a> {
    input: &'a mut dyn BufRead,
    out: &'a mut dyn Write,
    /// Questions that have been answered.
    number: usize,
}

impl<'a> Dialog<'a> {
    pub(super) fn new(input: &'a mut dyn BufRead, out: &'a mut dyn Write) -> Self {
        Self {
            input,
            out,
            number: 0,
        }
    }

    /// Questions that have been answered.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// The questions after the first `number` are asked again.
    pub(super) fn go_back_to(&mut self, number: usize) {
        self.number = number;
    }

    /// Shows a line. A terminal that is gone gives no answer either.
    pub(super) fn say(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
    }

    /// Asks until the answer can be used; an empty one is the default. `flag` is the flag that says the same.
    pub(super) fn ask<T>(
        &mut self,
        flag: &'static str,
        question: &str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ToolError> {
        let shown = match default {
            "" => String::new(),
            default => format!(" [{default}]"),
        };
        let number = self.number + 1;
        loop {
            let _ =
                write!(self.out, "{number}. {question}{shown}\n> ").and_then(|()| self.out.flush());
            let mut line = String::new();
            let found = match self.input.read_line(&mut line) {
                Ok(0) => "the end of the input".to_owned(),
                Ok(_) => match parse(
                    Some(line.trim())
                        .filter(|own| !own.is_empty())
                        .unwrap_or(default),
                ) {
                    Ok(answer) => {
                        self.number = number;
                        return Ok(answer);
                    }
                    Err(reason) => {
                        self.say(&reason);
                        continue;
                    }
                },
                Err(error) => error.to_string(),
            };
            return Err(ToolError::Flag {
                flag,
                expected: "an answer".to_owned(),
                found,
            });
        }
    }
}
