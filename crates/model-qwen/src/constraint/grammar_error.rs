//! Why a grammar can't be used.

/// Characters of a reason that are of use to anybody.
const MAX_REASON: usize = 600;

/// A grammar that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is not understood, contradicts itself, or needs something that is not supported.
    #[error("{0}")]
    Invalid(String),
    /// It is more than the limits allow.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The tokenizer's vocabulary can't be used.
    #[error("the tokenizer cannot be used with grammars: {0}")]
    Tokenizer(String),
}

pub(super) fn invalid<T>(message: impl Into<String>) -> Result<T, GrammarError> {
    Err(GrammarError::Invalid(message.into()))
}

/// What is worth reading in an error of llguidance.
pub(super) fn reason(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let ends = ["<non-verbose/>", "<backtrace>", "<state>"];
    let end = ends.iter().filter_map(|end| text.find(end)).min();
    let text = text[..end.unwrap_or(text.len())].trim();
    let text = match text {
        // llguidance's name for it.
        "NoExtensionBias" => "no text fits it",
        text => text,
    };
    match text.chars().nth(MAX_REASON) {
        None => text.to_owned(),
        Some(_) => text.chars().take(MAX_REASON).chain("…".chars()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short_and_without_states() {
        assert_eq!(reason(&"no\n<state>\n5"), "no");
        assert_eq!(reason(&"NoExtensionBias"), "no text fits it");
        assert_eq!(reason(&"é".repeat(2000)).chars().count(), MAX_REASON + 1);
    }
}
