//! The JSON bodies of the API: OpenAI's, with vLLM's extra fields.
//!
//! Requests are read in two steps. The body becomes a [`serde_json::Value`] first; then the endpoint's own fields and the
//! shared [`common::SamplingFields`] are read from it, each naming the field that does not fit. [`fields`] says what becomes of
//! fields that nobody reads.

pub mod anthropic;
pub mod anthropic_answer;
pub mod body;
pub(crate) mod call_grammar;
pub mod chat;
pub mod chat_answer;
pub mod classify;
pub mod common;
pub mod completions;
mod field_names;
pub mod fields;
pub mod grammar;
pub mod logprobs;
mod messages;
pub mod models;
mod object;
pub mod ollama;
pub mod ollama_answer;
pub mod pooling;
pub mod reasoning_effort;
pub mod responses;
pub mod sampling;
pub mod scores;
pub mod stream_options;
pub(crate) mod switches;
pub mod tokenize;
pub mod tools;
pub mod usage;
