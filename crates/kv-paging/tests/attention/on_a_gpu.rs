//! What only a GPU does.

mod steps;
mod training;
