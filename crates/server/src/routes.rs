//! Request handlers, one file per group of endpoints.

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
mod prompt;
pub mod responses;
mod responses_format;
pub mod stored_responses;
pub mod tokenize;
