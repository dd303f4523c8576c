//! Why a model generates no text.

use std::fmt;

/// What says that a model computes embeddings or scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyPooling {
    /// `--runner`, `--convert` or `--task`.
    Flags,
    /// The file of sentence-transformers.
    Modules,
    /// `architectures` of `config.json`.
    Architecture,
    /// `classifier_from_token`.
    Classifier,
    /// The weights.
    NoHead,
}

impl fmt::Display for WhyPooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flags => "the server's flags say so",
            Self::Modules => "its folder has modules.json",
            Self::Architecture => "`architectures` in its config.json says so",
            Self::Classifier => "it has `classifier_from_token`",
            Self::NoHead => "its folder has no lm_head",
        })
    }
}
