//! What several of the example programs use.

pub mod choices;
pub mod profile;
