//! JSON without tags of its own.

use super::brackets::Brackets;
use super::fence::Fence;

/// JSON without tags, up to where it was read.
#[derive(Debug, Default)]
pub(super) struct BareJson {
    /// Without a call it is content.
    pub(super) lead: String,
    pub(super) fence: Fence,
    pub(super) brackets: Brackets,
    pub(super) len: usize,
}

impl BareJson {
    pub(super) fn new(lead: String, fence: Fence) -> Self {
        Self {
            lead,
            fence,
            ..Self::default()
        }
    }
}
