//! `output_config`.

use serde::Deserialize;
use serde_json::Value;

use crate::protocol::reasoning_effort::ReasoningEffort;

/// `output_config`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct OutputConfig {
    /// `low`, `medium`, `high`, `xhigh`, `max`.
    pub effort: Option<ReasoningEffort>,
    /// `{"type": "json_schema", "schema": …}`.
    pub format: Option<Value>,
}
