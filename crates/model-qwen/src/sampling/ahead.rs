//! Tokens that a sampler has not observed yet.

/// The tokens between the last one that a sampler has observed and the one that is drawn.
#[derive(Clone, Copy, Debug)]
pub enum Ahead<'a> {
    /// These, which the host guesses.
    Tokens(&'a [u32]),
    /// One that the device draws in the step before.
    Drawn,
}

impl<'a> Ahead<'a> {
    /// None: the next token is drawn.
    pub const NONE: Ahead<'static> = Ahead::Tokens(&[]);

    /// How many there are.
    pub fn num(self) -> usize {
        self.tokens().map_or(1, <[u32]>::len)
    }

    /// The tokens, if the host knows them.
    pub(super) fn tokens(self) -> Option<&'a [u32]> {
        match self {
            Self::Tokens(tokens) => Some(tokens),
            Self::Drawn => None,
        }
    }
}
