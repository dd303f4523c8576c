//! What several of the example programs use.

pub mod profile;
