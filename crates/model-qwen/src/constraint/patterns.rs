//! Regular expressions of clients, and what is wrong with them.

use regex_syntax::ast::parse::Parser;

use super::grammar_error::{GrammarError, invalid};

/// Characters of an expression that a message shows.
pub(super) const MAX_SHOWN: usize = 60;

/// Checks the syntax of a regular expression.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn check(regex: &str) -> Result<(), GrammarError> {
    match fault(regex) {
        None => Ok(()),
        Some(fault) => invalid(fault),
    }
}

/// What is wrong with the syntax of a regular expression.
pub(super) fn fault(regex: &str) -> Option<String> {
    let error = Parser::new().parse(regex).err()?;
    let (start, end) = (error.span().start.offset, error.span().end.offset);
    let (Some(before), Some(rest)) = (regex.get(..start), regex.get(start..end.max(start))) else {
        return Some(error.kind().to_string());
    };
    let place = before.chars().count() + 1;
    let shown: String = rest.chars().take(MAX_SHOWN).collect();
    Some(match shown.is_empty() {
        true => format!("{} at character {place}", error.kind()),
        false => format!("{} at character {place}: `{shown}`", error.kind()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_its_place() {
        for (regex, expected) in [
            ("[0-9]+", None),
            ("é(a", Some("unclosed group at character 2: `(`")),
            (
                "a{3,1}",
                Some(
                    "invalid repetition count range, the start must be <= the end at character 2: `{3,1}`",
                ),
            ),
            (
                r"a\",
                Some(
                    r"incomplete escape sequence, reached end of pattern prematurely at character 2: `\`",
                ),
            ),
            (
                r"(a)\1",
                Some(r"backreferences are not supported at character 4: `\1`"),
            ),
        ] {
            assert_eq!(fault(regex).as_deref(), expected, "{regex}");
        }
    }
}
