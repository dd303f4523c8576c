//! The response object.

use serde::Serialize;
use serde_json::Value;

use super::Truncation;

/// An answer, or what is known of it before there is one.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseObject {
    /// `resp_…`.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// When it was complete.
    pub completed_at: Option<u64>,
    /// How far it is.
    pub status: Status,
    /// Whether it was computed without a client that waits: never.
    pub background: bool,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As in the request.
    pub instructions: Option<String>,
    /// As in the request.
    pub max_output_tokens: Option<usize>,
    /// As in the request.
    pub max_tool_calls: Option<usize>,
    /// The name the request used.
    pub model: String,
    /// Items.
    pub output: Vec<Value>,
    /// As in the request.
    pub parallel_tool_calls: bool,
    /// As in the request.
    pub previous_response_id: Option<String>,
    /// As in the request.
    pub prompt_cache_key: Option<String>,
    /// Effort and summary, as in the request.
    pub reasoning: Value,
    /// As in the request.
    pub safety_identifier: Option<String>,
    /// `default`: the server has one tier.
    pub service_tier: &'static str,
    /// Whether it is kept.
    pub store: bool,
    /// In force.
    pub temperature: f64,
    /// As in the request.
    pub text: Value,
    /// As in the request.
    pub tool_choice: Value,
    /// As in the request.
    pub tools: Vec<Value>,
    /// Alternatives per token.
    pub top_logprobs: i64,
    /// In force.
    pub top_p: f64,
    /// In force.
    pub presence_penalty: f64,
    /// In force.
    pub frequency_penalty: f64,
    /// As in the request.
    pub truncation: Truncation,
    /// Token counts, once it has ended.
    pub usage: Option<ResponseUsage>,
    /// As in the request.
    pub user: Option<String>,
    /// As in the request.
    pub metadata: Value,
}

/// How far a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the field's own words")]
pub enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

/// Why a response failed.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseError {
    /// `server_error`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResponseUsage {
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Part of them.
    pub input_tokens_details: InputTokensDetails,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// Part of them.
    pub output_tokens_details: OutputTokensDetails,
    /// All.
    pub total_tokens: usize,
}

/// Part of [`ResponseUsage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InputTokensDetails {
    /// Tokens found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens that a client paid to have cached: none.
    pub cache_write_tokens: usize,
}

/// Part of [`ResponseUsage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutputTokensDetails {
    /// Tokens of reasoning.
    pub reasoning_tokens: usize,
}

impl ResponseUsage {
    /// Usage from its counts.
    pub fn new(input: usize, cached: usize, output: usize, reasoning: usize) -> Self {
        Self {
            input_tokens: input,
            input_tokens_details: InputTokensDetails {
                cached_tokens: cached,
                cache_write_tokens: 0,
            },
            output_tokens: output,
            output_tokens_details: OutputTokensDetails {
                reasoning_tokens: reasoning,
            },
            total_tokens: input + output,
        }
    }
}

impl ResponseObject {
    /// As JSON.
    pub fn to_value(&self) -> Value {
        // Strings, numbers and JSON always serialize.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The number that a client wrote, which is not its nearest `f32`.
pub fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}
