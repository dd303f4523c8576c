//! Questions on a terminal.

use std::io::{BufRead, Write};

use crate::tools::ToolError;

/// Where answers come from, and where questions go to.
pub(super) struct Dialog<'a> {
    input: &'a mut dyn BufRead,
    out: &'a mut dyn Write,
}

impl<'a> Dialog<'a> {
    pub(super) fn new(input: &'a mut dyn BufRead, out: &'a mut dyn Write) -> Self {
        Self { input, out }
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
        loop {
            // A terminal that is gone gives no answer either.
            let _ = write!(self.out, "{question}{shown}\n> ").and_then(|()| self.out.flush());
            let mut line = String::new();
            let found = match self.input.read_line(&mut line) {
                Ok(0) => "the end of the input".to_owned(),
                Ok(_) => match parse(
                    Some(line.trim())
                        .filter(|own| !own.is_empty())
                        .unwrap_or(default),
                ) {
                    Ok(answer) => return Ok(answer),
                    Err(reason) => {
                        let _ = writeln!(self.out, "{reason}");
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
