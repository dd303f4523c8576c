//! Request handlers, one file per group of endpoints.

pub mod anthropic;
pub mod auth;
pub mod chat;
mod chat_format;
mod completion_format;
pub mod completions;
mod constraint;
mod conversation;
pub mod health;
pub mod lora;
pub mod models;
pub mod ollama;
mod prompt;
mod thoughts;
pub mod tokenize;
