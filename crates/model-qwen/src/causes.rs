//! What a program says of an error.

use std::error::Error;

/// An error with its causes, each one that the text does not have yet.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{told}")]
    struct Told {
        told: &'static str,
        source: Option<Box<Told>>,
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = |told, source: Option<Told>| Told {
            told,
            source: source.map(Box::new),
        };
        let cause = || error("no such file", None);
        let twice = error("cannot read x: no such file", Some(cause()));
        assert_eq!(with_causes(&twice), "cannot read x: no such file");
        let once = error(
            "loading failed",
            Some(error("cannot read x", Some(cause()))),
        );
        assert_eq!(
            with_causes(&once),
            "loading failed: cannot read x: no such file"
        );
    }
}
