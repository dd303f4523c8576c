//! What a command has to say.

/// What a command has to say.
#[derive(Debug)]
pub struct ToolOutput {
    /// For standard output.
    pub text: String,
    /// How it has ended.
    pub end: End,
}

/// How a command ends that has not failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All is well.
    Well,
    /// It was to look for problems, and has found some.
    Problems,
    /// It was stopped when its result was written already.
    Stopped,
}
