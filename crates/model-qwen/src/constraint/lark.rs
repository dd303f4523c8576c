//! llguidance's dialect of Lark: grammars of clients, and how it writes regular expressions and texts.

use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::Value;

use super::grammar_error::{GrammarError, invalid};
use super::numbers;

/// Bytes of a grammar or of a regular expression, at most.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// A grammar that a client has written in Lark.
pub(super) fn to_llguidance(source: &str) -> Result<TopLevelGrammar, GrammarError> {
    numbers::check_lark(sized(source)?)?;
    Ok(TopLevelGrammar::from_lark(source.to_owned()))
}

/// A source, if it is neither empty nor too large.
pub(super) fn sized(source: &str) -> Result<&str, GrammarError> {
    if source.is_empty() {
        return invalid("expected a text, found an empty one");
    }
    match source.len() {
        ..=MAX_SOURCE_BYTES => Ok(source),
        len => Err(GrammarError::TooLarge(format!(
            "expected at most {MAX_SOURCE_BYTES} bytes, found {len}"
        ))),
    }
}

/// A regular expression as Lark writes it.
pub(super) fn lark_regex(regex: &str) -> String {
    format!("/{}/", regex_to_lark(regex, ""))
}

/// A text as Lark writes it.
pub(super) fn lark_string(text: &str) -> String {
    // Lark takes JSON's strings, but no bare DEL.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
