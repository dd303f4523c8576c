//! How often tokens came up.

/// How often a token came up among the tokens that count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// In the prompt and in the output. Kept only where a window is.
    pub(super) num_held: usize,
    pub(super) num_output: u32,
}
