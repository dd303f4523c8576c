//! Group relative policy optimization: the model answers each prompt several times, and learns which answers were better than
//! the mean of their group.
//!
//! A step: prompts → answers, drawn by the code that serves ([`crate::generation`]) → rewards ([`crate::rewards`]) →
//! [`advantages`](advantages::advantages) → [`PolicyLoss`] and its gradient.
//!
//! Source: `GRPOTrainer` of TRL.

pub mod advantages;
mod learner;
pub mod policy;
mod questions;
mod stillness;

pub(crate) use learner::Grpo;
pub(crate) use questions::{Questions, survey};

pub use policy::{PolicyLoss, PolicyStep, Rollout};
