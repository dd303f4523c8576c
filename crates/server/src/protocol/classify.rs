//! Answers of `/classify`.

use schemars::JsonSchema;
use serde::Serialize;

use super::usage::Usage;

/// Answer of `/classify`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ClassifyResponse {
    /// `classify-…`.
    pub id: String,
    /// `list`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name the request used.
    pub model: String,
    /// In the order of the inputs.
    pub data: Vec<Classified>,
    /// Token counts.
    pub usage: Usage,
}

/// The class of one text in a [`ClassifyResponse`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct Classified {
    /// Which input.
    pub index: usize,
    /// Name of the most probable class, if it has one.
    pub label: Option<String>,
    /// The probability of each class; the logits with `use_activation: false`.
    pub probs: Vec<f32>,
    /// How many classes there are.
    pub num_classes: usize,
}
