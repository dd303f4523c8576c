//! What several of the example programs use.

pub mod answers;
pub mod profile;
