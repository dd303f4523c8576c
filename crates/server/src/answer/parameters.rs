//! The parameters of a call in the form of Qwen3-Coder.

/// A function's parameters so far.
#[derive(Debug)]
pub(super) struct Parameters {
    /// Index of the tool, if it is one of the request's.
    pub(super) tool: Option<usize>,
    pub(super) num: usize,
    /// Text between them.
    pub(super) stray: String,
}
