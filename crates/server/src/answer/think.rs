//! The tags of reasoning.

/// Begins reasoning.
pub const OPEN_THINK: &str = "<think>";
/// Ends reasoning.
pub const CLOSE_THINK: &str = "</think>";

/// Where reasoning begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningStart {
    /// Nowhere: all is content.
    #[default]
    None,
    /// With `<think>`, if the answer begins with it.
    Tag,
    /// In the prompt, or without a tag: all is reasoning until `</think>`.
    Prompt,
}
