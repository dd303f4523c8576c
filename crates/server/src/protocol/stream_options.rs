//! `stream_options`.

use serde::Deserialize;

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// Send usage in a last chunk without choices.
    pub include_usage: Option<bool>,
    /// Send usage so far in every chunk.
    pub continuous_usage_stats: Option<bool>,
}
