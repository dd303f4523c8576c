//! What somebody might send or publish to harm whoever reads it: templates and files that are wrong on purpose.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod files;
mod mutate;
mod templates;
