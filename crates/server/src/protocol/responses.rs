//! Bodies of `/v1/responses`.

pub mod callee;
pub mod choice;
pub mod items;
pub mod messages;
pub mod output;
pub mod response;
pub mod settings;
pub mod tools;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::body::Body;
use crate::error::ApiError;
use crate::request_id::RequestId;

/// Fields of a request besides [`super::common::SamplingFields`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ResponsesFields {
    /// Served name or adapter name.
    pub model: Option<String>,
    /// A text, or items: see [`items::read_input`].
    #[serde(default)]
    pub input: Value,
    /// What the system says, before everything else.
    pub instructions: Option<String>,
    /// The answer after which the input comes.
    pub previous_response_id: Option<String>,
    /// Most tokens to generate; the rest of the context by default.
    pub max_output_tokens: Option<usize>,
    /// Most calls of the server's own tools, of which there are none.
    pub max_tool_calls: Option<usize>,
    /// See [`tools::read_tools`].
    pub tools: Option<Vec<Value>>,
    /// See [`choice::chat_choice`].
    pub tool_choice: Option<Value>,
    /// Whether an answer may have several calls; true by default.
    pub parallel_tool_calls: Option<bool>,
    /// How many alternatives per token.
    pub top_logprobs: Option<i64>,
    /// See [`settings::read_include`].
    pub include: Option<Vec<String>>,
    /// See [`settings::read_reasoning`].
    pub reasoning: Option<Value>,
    /// Whether to send the answer's reasoning; true by default.
    pub include_reasoning: Option<bool>,
    /// Most tokens of reasoning; -1 = any number.
    pub thinking_token_budget: Option<i64>,
    /// See [`settings::read_text`].
    pub text: Option<Value>,
    /// Whether to cut a long prompt.
    pub truncation: Option<Truncation>,
    /// Whether to keep the answer; true by default.
    pub store: Option<bool>,
    /// Variables for the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Texts that come back with the answer.
    pub metadata: Option<Value>,
    /// Comes back with the answer.
    pub user: Option<String>,
    /// Comes back with the answer.
    pub safety_identifier: Option<String>,
    /// Comes back with the answer.
    pub prompt_cache_key: Option<String>,
}

/// `truncation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// A prompt that is too long is cut at its beginning.
    Auto,
    /// A prompt that is too long is refused.
    #[default]
    Disabled,
}

impl ResponsesFields {
    /// Reads the fields of a body, and takes the input out of it.
    ///
    /// # Errors
    /// 400 with the field that is missing or has the wrong type.
    pub(crate) fn take(body: &mut Body) -> Result<Self, ApiError> {
        let input = body.take("input").unwrap_or_default();
        let fields = body.read()?;
        // `SamplingFields` knows only some of its keys.
        settings::check_stream_options(body.get("stream_options"))?;
        Ok(Self { input, ..fields })
    }
}

/// A new id, such as `msg_…`.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", RequestId::default().or(None))
}
