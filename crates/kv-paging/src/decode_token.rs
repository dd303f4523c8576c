//! What a sequence computes in a step of one token per sequence.

/// The token that a sequence computes in a step of one token per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeToken {
    /// One that is known.
    Id(u32),
    /// The one that the step before chose in this row: the host need not know it yet.
    ChosenIn(usize),
}
