//! What models write around a call.

/// A block of code begins and ends with it.
pub(super) const FENCE: &str = "```";

/// Tags of the list of tools in Qwen's templates, which models repeat around calls.
pub(super) const TOOLS: [&str; 2] = ["<tools>", "</tools>"];
/// What ends what is around a call, if there is something.
pub(super) type Fence = Option<&'static str>;
