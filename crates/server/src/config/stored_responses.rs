//! How many answers of `/v1/responses` the server keeps.

/// `--max-stored-responses`.
pub(super) const MAX_NUM: usize = 1000;
/// `--max-stored-responses-bytes`.
pub(super) const MAX_BYTES: &str = "64MiB";

/// How many answers of `/v1/responses` the server keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponses {
    /// At most so many; 0 = none.
    pub max_num: usize,
    /// At most so many bytes.
    pub max_bytes: u64,
}

impl Default for StoredResponses {
    fn default() -> Self {
        Self {
            max_num: MAX_NUM,
            max_bytes: 64 << 20,
        }
    }
}
