//! Values of flags; an error says what was expected, and clap adds the flag and what was found.

/// A count.
pub(super) fn whole(text: &str) -> Result<usize, String> {
    parse(text, "a whole number, 0 or more")
}

/// A seed.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    parse(text, "a whole number from 0 to 2^64 - 1")
}

/// A number with or without a fraction.
pub(super) fn number(text: &str) -> Result<f64, String> {
    parse(text, "a number such as 0.5 or 2e-4")
}

fn parse<T: std::str::FromStr>(text: &str, expected: &str) -> Result<T, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("expected {expected}, found `{text}`"))
}
