//! What is rewarded, and why it may get no reward.

use serde_json::{Map, Value};
use thiserror::Error;

/// An answer to be rewarded.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The prompt as the data has it: a text, or messages.
    pub prompt: &'a Value,
    /// The answer's text, without special tokens.
    pub completion: &'a str,
    /// Its tokens, without the one that ended it.
    pub num_tokens: usize,
    /// The other fields of the prompt's record.
    pub columns: &'a Map<String, Value>,
}

/// A program that gave no rewards.
#[derive(Debug, Error)]
#[error("--reward-url {url}: {reason}")]
pub struct RewardError {
    /// Its address.
    pub url: String,
    /// What was expected and found.
    pub reason: String,
}

/// Why a record has no use for a reward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The field of this name has no value: any empty answer would be right.
    Value(String),
    /// A field is missing, or has another type: a message.
    Field(String),
}
