//! `--max-model-len`.

/// How long prompt and output may be together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxModelLen {
    /// The largest that fits, at most the model's limit.
    Auto,
    /// This many tokens; an error if they do not fit.
    Tokens(usize),
}
