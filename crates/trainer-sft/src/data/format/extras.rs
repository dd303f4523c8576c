//! What a template gets besides the messages.

use serde_json::{Map, Value};

/// Functions and variables for the template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// Function schemas.
    pub tools: Option<Value>,
    /// Further variables, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}
