//! The HTTP API over a socket, with a scripted engine behind it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod answers;
mod anthropic;
mod batch;
mod bench;
mod call_grammars;
mod compat;
mod connections;
mod deploy;
mod endpoints;
mod envelope;
mod errors;
mod fields;
mod fim;
mod function_calls;
mod grammars;
mod lifecycle;
mod metrics;
mod ollama;
mod ollama_embed;
mod page;
mod pooling;
mod prompts;
mod reasoning;
mod responses;
mod responses_stored;
mod schemas;
mod tools;

#[path = "../support/mod.rs"]
mod support;

use std::future::{Future, pending};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::engine::{FinishReason, SequenceError};
use support::{Answer, IM_END, IM_START, MAX_MODEL_LEN, Play, TestServer, bytes, says};
use ureq::http::Method;

/// The joined text of choice `index` in chat or completion events.
fn streamed_text(events: &[Value], index: u64) -> String {
    let choices = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| {
        choice["text"]
            .as_str()
            .or_else(|| choice["delta"]["content"].as_str())
    })
    .collect()
}
