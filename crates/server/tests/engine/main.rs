//! The real engine behind the HTTP API, on a small random model.

#![allow(clippy::unwrap_used)]

mod adapters;
mod batching;
mod client;
mod folders;
mod generated_schemas;
mod grammars;
mod json_schema;
mod lifecycle;
mod logprobs;
mod memory;
mod model;
mod pooling;
mod prefix_cache;
mod reasoning;
mod sampling;
mod speculation;
mod trained_adapters;
