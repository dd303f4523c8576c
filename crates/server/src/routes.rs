//! Request handlers, one file per group of endpoints.

pub mod anthropic;
pub mod auth;
pub mod chat;
mod chat_format;
pub mod classify;
mod completion_format;
pub mod completions;
mod constraint;
mod conversation;
pub mod embeddings;
pub mod health;
pub mod info;
pub mod invocations;
pub mod lora;
pub mod models;
pub mod ollama;
mod pooling;
mod prompt;
pub mod render;
pub mod responses;
mod responses_format;
pub mod scores;
pub mod stored_responses;
mod thoughts;
pub mod tokenize;
pub mod track;
