//! What a kernel is compiled for.

/// How ranks are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) unroll: usize,
    /// Planes that share a rank.
    pub(super) planes: usize,
    /// Whether the last loads of a row lie past its end.
    pub(super) is_ragged: bool,
}
