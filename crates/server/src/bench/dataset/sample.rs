//! One request of a run.

/// Prompts that are made at once, where a server has the tokenizer.
pub(super) const AT_ONCE: usize = 16;

/// One request.
#[derive(Debug, PartialEq)]
pub(in crate::bench) struct Sample {
    /// Its text.
    pub(in crate::bench) prompt: String,
    /// Tokens of the text, without any around it.
    pub(in crate::bench) prompt_len: usize,
    /// Tokens to generate.
    pub(in crate::bench) output_len: usize,
}
