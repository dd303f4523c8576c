//! How many answers of `/v1/responses` the server keeps.

use clap::Args;

use super::units;

const MAX_NUM: usize = 1000;
const MAX_BYTES: u64 = 64 << 20;

/// How many answers of `/v1/responses` the server keeps.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StoredResponses {
    /// Answers of /v1/responses that are kept for `previous_response_id`, the oldest forgotten first; 0 keeps none
    #[arg(id = "max_stored_responses", long = "max-stored-responses", value_name = "N", default_value_t = MAX_NUM)]
    pub max_num: usize,

    /// Most memory for these (64MiB, bytes); the oldest are forgotten first
    #[arg(id = "max_stored_responses_bytes", long = "max-stored-responses-bytes", value_name = "SIZE", default_value = "64MiB",
        value_parser = units::bytes)]
    pub max_bytes: u64,
}

impl Default for StoredResponses {
    fn default() -> Self {
        Self {
            max_num: MAX_NUM,
            max_bytes: MAX_BYTES,
        }
    }
}
