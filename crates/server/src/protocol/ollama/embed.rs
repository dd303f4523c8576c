//! Requests to `/api/embed` and `/api/embeddings`.

use model_qwen::json_type;
use serde::Deserialize;
use serde_json::Value;

use super::{Options, read_options, take_options};
use crate::error::ApiError;
use crate::protocol::body::Body;

/// The option that vectors depend on.
const NUM_CTX: &str = "num_ctx";
/// What the log shows of the others.
const MAX_NAMES: usize = 20;

/// Fields of `/api/embed` besides `input` and `options`.
#[derive(Clone, Debug, Deserialize)]
pub struct EmbedFields {
    /// Served name or adapter name, with `:latest` or without.
    pub model: String,
    /// Whether a long text is cut; true by default.
    pub truncate: Option<bool>,
    /// Length of the vectors; 0 = the model's.
    pub dimensions: Option<i64>,
}

/// Fields of `/api/embeddings` besides `options`.
#[derive(Clone, Debug, Deserialize)]
pub struct PromptFields {
    /// Served name or adapter name, with `:latest` or without.
    pub model: String,
    /// The text.
    pub prompt: Option<String>,
}

/// Takes the texts out of the body of `/api/embed`. A text alone may be empty: then there is none.
///
/// # Errors
/// 400 with the place of what is no text.
pub fn take_input(body: &mut Body) -> Result<Vec<String>, ApiError> {
    match body.take("input") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(items)) => {
            let texts = items.into_iter().enumerate().map(|(i, item)| match item {
                Value::String(text) => Ok(text),
                other => Err(ApiError::expected(
                    format!("input[{i}]"),
                    "a text",
                    json_type(&other),
                )),
            });
            texts.collect()
        }
        Some(other) => Err(ApiError::expected(
            "input",
            "a text or a list of texts",
            json_type(&other),
        )),
    }
}

/// Takes the options out of a body. The log names those that no vector depends on.
///
/// # Errors
/// 400 with the option that is wrong or refused.
pub fn take_pooling_options(body: &mut Body) -> Result<Options, ApiError> {
    let given = take_options(body)?;
    let options = read_options(given.clone())?;
    let ignored = given.keys().filter(|name| *name != NUM_CTX);
    let ignored: Vec<&String> = ignored.take(MAX_NAMES).collect();
    if !ignored.is_empty() {
        tracing::warn!(options = ?ignored, "ignored options: vectors do not depend on them");
    }
    Ok(options)
}
